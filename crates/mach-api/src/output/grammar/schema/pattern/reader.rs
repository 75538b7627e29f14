//! From a pattern's text to what it is made of.

use regex_syntax::hir::{Class, ClassUnicode, HirKind};

use super::super::rx::class;
use super::{DEPTH, Node};

/// Repetitions that are counted.
const MOST: u32 = 20_000;

/// Reads a pattern letter by letter.
pub(super) struct Reader<'t> {
    pub(super) letters: &'t [char],
    pub(super) at: usize,
    /// Upper and lower case are the same.
    pub(super) fold: bool,
    /// A dot is every letter.
    pub(super) all: bool,
    pub(super) depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn eat(&mut self, text: &str) -> bool {
        let count = text.chars().count();
        let there = self.letters.len() >= self.at + count
            && text.chars().eq(self.letters[self.at..self.at + count].iter().copied());
        self.at += if there { count } else { 0 };
        there
    }

    pub(super) fn alternatives(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err("the pattern nests too deep".to_owned());
        }
        let mut all = vec![self.sequence()?];
        while self.eat("|") {
            all.push(self.sequence()?);
        }
        self.depth -= 1;
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Alt(all) })
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut all = Vec::new();
        while let Some(c) = self.peek() {
            if c == '|' || c == ')' {
                break;
            }
            self.at += 1;
            let Some(atom) = self.atom(c)? else { continue };
            all.push(self.quantified(atom)?);
        }
        Ok(Node::Concat(all))
    }

    fn quantified(&mut self, atom: Node) -> Result<Node, String> {
        let before = self.at;
        let (least, most) = match self.next() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => match self.braces()? {
                Some(counts) => counts,
                None => {
                    self.at = before;
                    return Ok(atom);
                }
            },
            _ => {
                self.at = before;
                return Ok(atom);
            }
        };
        // That it takes as little as it can changes nothing in which texts there are.
        if !self.eat("?") && self.peek() == Some('+') {
            return Err("possessive quantifiers cannot be enforced".to_owned());
        }
        if matches!(atom, Node::Start | Node::End) {
            return Err("a quantifier repeats nothing".to_owned());
        }
        Ok(Node::Repeat(Box::new(atom), least, most))
    }

    /// `{n}`, `{n,}`, `{n,m}`; `None` if it is text.
    fn braces(&mut self) -> Result<Option<(u32, Option<u32>)>, String> {
        let Some(least) = self.number()? else { return Ok(None) };
        let counts = if self.eat(",") { (least, self.number()?) } else { (least, Some(least)) };
        if !self.eat("}") {
            return Ok(None);
        }
        if counts.1.is_some_and(|most| most < counts.0) {
            return Err("the pattern has a quantifier out of order".to_owned());
        }
        Ok(Some(counts))
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        let from = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        if from == self.at {
            return Ok(None);
        }
        let text: String = self.letters[from..self.at].iter().collect();
        match text.parse() {
            Ok(number) if number <= MOST => Ok(Some(number)),
            _ => Err(format!("the pattern repeats more than {MOST} times")),
        }
    }

    fn atom(&mut self, c: char) -> Result<Option<Node>, String> {
        Ok(Some(match c {
            '^' => Node::Start,
            '$' => Node::End,
            '.' if self.all => Node::Class(class(&[('\0', char::MAX)])),
            '.' => {
                let mut all = class(&[('\n', '\n'), ('\r', '\r'), ('\u{2028}', '\u{2029}')]);
                all.negate();
                Node::Class(all)
            }
            '(' => return self.group(),
            '[' => Node::Class(self.class()?),
            '\\' => return self.escape().map(Some),
            '*' | '+' | '?' => {
                return Err("the pattern has a quantifier without anything before it".to_owned());
            }
            c => self.letter(c),
        }))
    }

    fn letter(&self, c: char) -> Node {
        Node::Class(self.folded(class(&[(c, c)])))
    }

    fn folded(&self, mut class: ClassUnicode) -> ClassUnicode {
        if self.fold {
            // Without its tables the class stays as it is.
            let _ = class.try_case_fold_simple();
        }
        class
    }

    fn group(&mut self) -> Result<Option<Node>, String> {
        let (fold, all) = (self.fold, self.all);
        let mut ahead = None;
        if self.eat("?") {
            if self.eat("=") {
                ahead = Some(true);
            } else if self.eat("!") {
                ahead = Some(false);
            } else if self.eat("<=") || self.eat("<!") {
                return Err("looking behind cannot be enforced".to_owned());
            } else if self.eat("<") || self.eat("P<") {
                while self.next().is_some_and(|c| c != '>') {}
            } else {
                self.flags()?;
                if self.eat(")") {
                    return Ok(None);
                }
                if !self.eat(":") {
                    return Err("the pattern has a group of an unknown kind".to_owned());
                }
            }
        }
        let inner = self.alternatives()?;
        if !self.eat(")") {
            return Err("the pattern has a `(` without its `)`".to_owned());
        }
        (self.fold, self.all) = (fold, all);
        Ok(Some(match ahead {
            Some(wanted) => Node::Ahead(Box::new(inner), wanted),
            None => inner,
        }))
    }

    fn flags(&mut self) -> Result<(), String> {
        let mut on = true;
        while let Some(c) = self.peek().filter(|&c| c != ':' && c != ')') {
            match c {
                'i' => self.fold = on,
                's' => self.all = on,
                'u' | 'a' => {}
                '-' => on = false,
                _ => return Err("the pattern has a group of an unknown kind".to_owned()),
            }
            self.at += 1;
        }
        Ok(())
    }

    fn escape(&mut self) -> Result<Node, String> {
        let c = self.next().ok_or("the pattern ends in a backslash")?;
        match c {
            'A' => return Ok(Node::Start),
            'Z' | 'z' => return Ok(Node::End),
            'b' | 'B' => return Err("word boundaries cannot be enforced".to_owned()),
            '1'..='9' | 'k' => return Err("references to groups cannot be enforced".to_owned()),
            _ => {}
        }
        let found = self.escaped(c, false)?;
        Ok(Node::Class(self.folded(found)))
    }

    /// What stands behind a backslash. In a class that is negated, white space is whatever any reader takes for it.
    fn escaped(&mut self, c: char, negated: bool) -> Result<ClassUnicode, String> {
        let space = |broad: bool| {
            let mut space = class(&[
                ('\t', '\r'),
                (' ', ' '),
                ('\u{a0}', '\u{a0}'),
                ('\u{1680}', '\u{1680}'),
                ('\u{2000}', '\u{200a}'),
                ('\u{2028}', '\u{2029}'),
                ('\u{202f}', '\u{202f}'),
                ('\u{205f}', '\u{205f}'),
                ('\u{3000}', '\u{3000}'),
            ]);
            if broad {
                space.union(&class(&[('\u{1c}', '\u{1f}'), ('\u{85}', '\u{85}'), ('\u{feff}', '\u{feff}')]));
            }
            space
        };
        let mut out = match c {
            'd' | 'D' => class(&[('0', '9')]),
            'w' | 'W' => class(&[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')]),
            's' => space(negated),
            'S' => space(!negated),
            'p' | 'P' => return self.property(c),
            't' => class(&[('\t', '\t')]),
            'n' => class(&[('\n', '\n')]),
            'r' => class(&[('\r', '\r')]),
            'f' => class(&[('\u{c}', '\u{c}')]),
            'v' => class(&[('\u{b}', '\u{b}')]),
            '0' => class(&[('\0', '\0')]),
            'x' => self.code(2)?,
            'u' => self.code(4)?,
            'c' => {
                let c = self.next().filter(char::is_ascii_alphabetic);
                let c = c.ok_or("the pattern has an unknown escape")?;
                let control = char::from(c as u8 % 32);
                class(&[(control, control)])
            }
            c if c.is_ascii_alphanumeric() => {
                return Err(format!("the pattern has an unknown escape `\\{c}`"));
            }
            c => class(&[(c, c)]),
        };
        if matches!(c, 'D' | 'W' | 'S') {
            out.negate();
        }
        Ok(out)
    }

    /// A letter by its number.
    fn code(&mut self, count: usize) -> Result<ClassUnicode, String> {
        let unknown = || "the pattern has an unknown escape".to_owned();
        let hex =
            |text: &[char]| u32::from_str_radix(&text.iter().collect::<String>(), 16).map_err(|_| unknown());
        let mut code = if self.eat("{") {
            let from = self.at;
            while self.next().is_some_and(|c| c != '}') {}
            hex(&self.letters[from..self.at.saturating_sub(1).max(from)])?
        } else {
            let text = self.letters.get(self.at..self.at + count).ok_or_else(unknown)?;
            self.at += count;
            hex(text)?
        };
        if (0xd800..0xdc00).contains(&code) && self.eat("\\u") {
            let low = hex(self.letters.get(self.at..self.at + 4).ok_or_else(unknown)?)?;
            self.at += 4;
            code = 0x10000 + ((code - 0xd800) << 10) + low.checked_sub(0xdc00).ok_or_else(unknown)?;
        }
        let c = char::from_u32(code).ok_or_else(unknown)?;
        Ok(class(&[(c, c)]))
    }

    /// `\p{...}`.
    fn property(&mut self, c: char) -> Result<ClassUnicode, String> {
        let from = self.at;
        if self.eat("{") {
            while self.next().is_some_and(|c| c != '}') {}
        } else {
            self.at += 1;
        }
        let name: String = self.letters.get(from..self.at).unwrap_or_default().iter().collect();
        let parsed = regex_syntax::parse(&format!("\\{c}{name}"));
        match parsed.map(regex_syntax::hir::Hir::into_kind) {
            Ok(HirKind::Class(Class::Unicode(class))) => Ok(class),
            _ => Err("the pattern has an unknown class of letters".to_owned()),
        }
    }

    fn class(&mut self) -> Result<ClassUnicode, String> {
        let negated = self.eat("^");
        let mut all = class(&[]);
        loop {
            let c = self.next().ok_or("the pattern has a `[` without its `]`")?;
            if c == ']' {
                break;
            }
            let from = self.member(c, negated)?;
            let dash = self.peek() == Some('-') && !matches!(self.letters.get(self.at + 1), Some(']') | None);
            if !dash {
                all.union(&from);
                continue;
            }
            self.at += 1;
            let c = self.next().ok_or("the pattern has a `[` without its `]`")?;
            let to = self.member(c, negated)?;
            let single = |class: &ClassUnicode| match class.ranges() {
                [range] if range.start() == range.end() => Some(range.start()),
                _ => None,
            };
            match (single(&from), single(&to)) {
                (Some(from), Some(to)) if from <= to => all.union(&class(&[(from, to)])),
                (Some(_), Some(_)) => return Err("the pattern has a range out of order".to_owned()),
                _ => {
                    all.union(&from);
                    all.union(&to);
                    all.union(&class(&[('-', '-')]));
                }
            }
        }
        let mut all = self.folded(all);
        if negated {
            all.negate();
        }
        Ok(all)
    }

    fn member(&mut self, c: char, negated: bool) -> Result<ClassUnicode, String> {
        if c != '\\' {
            return Ok(class(&[(c, c)]));
        }
        match self.next().ok_or("the pattern ends in a backslash")? {
            'b' => Ok(class(&[('\u{8}', '\u{8}')])),
            c => self.escaped(c, negated),
        }
    }
}
