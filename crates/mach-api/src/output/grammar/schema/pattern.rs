//! Patterns as JSON Schema has them (ECMA-262), as sets of texts.

use regex_syntax::hir::{Class, ClassUnicode, HirKind};

use super::rx::{Rx, class};

/// Groups nest at most this deep.
const DEPTH: usize = 64;
/// Repetitions that are counted.
const MOST: u32 = 20_000;
/// Nodes of one pattern.
const SIZE: usize = 20_000;

/// The texts in which a pattern is found.
pub(super) fn pattern(source: &str) -> Result<Rx, String> {
    let letters: Vec<char> = source.chars().collect();
    let mut reader = Reader { letters: &letters, at: 0, fold: false, all: false, depth: 0 };
    let tree = reader.alternatives()?;
    if reader.at < letters.len() {
        return Err("the pattern has a `)` too many".to_owned());
    }
    let rx = found(&[tree], 0)?;
    if rx.size() > SIZE { Err("the pattern is too large".to_owned()) } else { Ok(rx) }
}

/// What a pattern is made of.
#[derive(Debug, Clone)]
enum Node {
    Class(ClassUnicode),
    Concat(Vec<Node>),
    Alt(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
    Start,
    End,
    /// What follows must begin like this, or must not.
    Ahead(Box<Node>, bool),
}

impl Node {
    /// Holds nothing that looks at its surroundings.
    fn plain(&self) -> bool {
        match self {
            Self::Class(_) => true,
            Self::Concat(list) | Self::Alt(list) => list.iter().all(Self::plain),
            Self::Repeat(inner, ..) => inner.plain(),
            Self::Start | Self::End | Self::Ahead(..) => false,
        }
    }

    fn holds_start(&self) -> bool {
        match self {
            Self::Start => true,
            Self::Concat(list) | Self::Alt(list) => list.iter().any(Self::holds_start),
            Self::Repeat(inner, ..) => inner.holds_start(),
            _ => false,
        }
    }

    /// As a set, if it is plain.
    fn rx(&self) -> Rx {
        match self {
            Self::Class(class) => match class.ranges() {
                [range] if range.start() == range.end() => Rx::text(range.start()),
                _ => Rx::Class(class.clone()),
            },
            Self::Concat(list) => Rx::concat(list.iter().map(Self::rx)),
            Self::Alt(list) => Rx::alt(list.iter().map(Self::rx)),
            Self::Repeat(inner, least, most) => inner.rx().repeat(*least, *most),
            Self::Start | Self::End | Self::Ahead(..) => Rx::empty(),
        }
    }
}

const BEHIND: &str = "only what looks ahead without repeating can be enforced";

/// The texts that hold the sequence somewhere, or begin with it where it says so.
fn found(items: &[Node], depth: usize) -> Result<Rx, String> {
    if depth > DEPTH * 4 {
        return Err("the pattern nests too deep".to_owned());
    }
    // Conditions in front of the start hold there as well.
    let ahead = items.iter().take_while(|item| matches!(item, Node::Ahead(..))).count();
    match items.get(ahead) {
        Some(Node::Start) => {
            let rest: Vec<Node> = items[..ahead].iter().chain(&items[ahead + 1..]).cloned().collect();
            anchored(&rest, depth)
        }
        Some(Node::Concat(list)) if list.iter().any(Node::holds_start) => {
            let rest: Vec<Node> =
                items[..ahead].iter().chain(list).chain(&items[ahead + 1..]).cloned().collect();
            found(&rest, depth + 1)
        }
        Some(Node::Alt(list)) if list.iter().any(Node::holds_start) => {
            let with = |option: &Node| {
                let one = std::slice::from_ref(option);
                let rest: Vec<Node> =
                    items[..ahead].iter().chain(one).chain(&items[ahead + 1..]).cloned().collect();
                found(&rest, depth + 1)
            };
            Ok(Rx::alt(list.iter().map(with).collect::<Result<Vec<_>, _>>()?))
        }
        _ => Ok(Rx::concat([Rx::any(), sequence(items, Rx::any(), depth)?])),
    }
}

/// The texts that begin with the sequence; further starts say nothing new.
fn anchored(items: &[Node], depth: usize) -> Result<Rx, String> {
    let starts = items.iter().take_while(|item| matches!(item, Node::Start)).count();
    let mut items = items[starts..].to_vec();
    for item in &mut items {
        match item {
            Node::Ahead(inner, _) => without_start(inner),
            _ => break,
        }
    }
    sequence(&items, Rx::any(), depth)
}

/// What says once more that it is at the start.
fn without_start(node: &mut Node) {
    match node {
        Node::Start => *node = Node::Concat(Vec::new()),
        Node::Concat(list) => {
            if let Some(first) = list.first_mut() {
                without_start(first);
            }
        }
        Node::Alt(list) => list.iter_mut().for_each(without_start),
        _ => {}
    }
}

/// The sequence, and behind it what is in `rest`.
fn sequence(items: &[Node], rest: Rx, depth: usize) -> Result<Rx, String> {
    if depth > DEPTH * 4 {
        return Err("the pattern nests too deep".to_owned());
    }
    let mut rest = rest;
    for item in items.iter().rev() {
        if rest.size() > SIZE {
            return Err("the pattern is too large".to_owned());
        }
        rest = match item {
            item if item.plain() => Rx::concat([item.rx(), rest]),
            Node::Start => return Err("`^` inside of a pattern cannot be enforced".to_owned()),
            Node::End if rest.lengths().0 == 0 => Rx::empty(),
            Node::End => Rx::never(),
            Node::Ahead(inner, wanted) => {
                let inner = sequence(std::slice::from_ref(inner), Rx::any(), depth + 1)?;
                Rx::and([if *wanted { inner } else { inner.not() }, rest])
            }
            Node::Concat(list) => sequence(list, rest, depth + 1)?,
            Node::Alt(list) => {
                let with = |option: &Node| sequence(std::slice::from_ref(option), rest.clone(), depth + 1);
                Rx::alt(list.iter().map(with).collect::<Result<Vec<_>, _>>()?)
            }
            Node::Repeat(inner, least, most) => repeated(inner, *least, *most, rest, depth)?,
            Node::Class(_) => rest,
        };
    }
    Ok(rest)
}

/// Repetitions of what looks at its surroundings.
fn repeated(inner: &Node, least: u32, most: Option<u32>, rest: Rx, depth: usize) -> Result<Rx, String> {
    if let Some(most) = most.filter(|&most| most <= 4) {
        let mut all = Vec::new();
        for count in least..=most {
            let items = vec![inner.clone(); count as usize];
            all.push(sequence(&items, rest.clone(), depth + 1)?);
        }
        return Ok(Rx::alt(all));
    }
    // `(?:(?!x).)*` to the end: one letter a time, none of which begins an `x`.
    if let Node::Concat(list) = inner
        && let Some((last, conditions)) = list.split_last()
        && last.plain()
        && last.rx().lengths() == (1, 1)
        && rest.is_empty()
    {
        let mut all = vec![last.rx().repeat(least, most)];
        for condition in conditions {
            let Node::Ahead(inner, false) = condition else { return Err(BEHIND.to_owned()) };
            let begins = sequence(std::slice::from_ref(inner), Rx::any(), depth + 1)?;
            if begins.lengths().0 == 0 {
                return Err(BEHIND.to_owned());
            }
            all.push(Rx::concat([Rx::any(), begins]).not());
        }
        return Ok(Rx::and(all));
    }
    Err(BEHIND.to_owned())
}

struct Reader<'t> {
    letters: &'t [char],
    at: usize,
    /// Upper and lower case are the same.
    fold: bool,
    /// A dot is every letter.
    all: bool,
    depth: usize,
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

    fn alternatives(&mut self) -> Result<Node, String> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_find_what_they_should() {
        for (source, yes, no) in [
            ("a", &["a", "xax", "a\n"][..], &["", "b"][..]),
            ("^a+$", &["a", "aa"], &["", "ba", "ab"]),
            ("^a|b$", &["ax", "xb"], &["xa", "bx"]),
            ("(^a$)|(^b$)", &["a", "b"], &["ab", "xa"]),
            ("^(?:a|b){2,3}$", &["ab", "bba"], &["a", "abab"]),
            (r"^\d{3}-\w+\.\s?$", &["123-a_B. ", "000-x."], &["12-a.", "٣33-a.", "123-é."]),
            (r"^[^\s,]+$", &["aé"], &["a b", "a,", "a\u{1c}b", ""]),
            (r"^[\w.+-]+@[a-z\d-]+(\.[a-z]{2,})+$", &["a.b+c@d-1.org"], &["a@b", "@b.co"]),
            ("^(?!foo)[a-z]+$", &["fo", "bar", "xfoo"], &["foo", "foobar", ""]),
            ("^(?!.*--)[a-z-]+$", &["a-b"], &["a--b"]),
            (r"^(?=.*[A-Z])(?=.*\d).{4,8}$", &["aB3x", "9999Z"], &["ab3x", "aB3", "abcdefG123"]),
            (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", &["1", "-0.5", "007"], &["", "-", "+.", "1.2.3"]),
            ("^(?:(?!ab).)*$", &["", "ba", "a"], &["ab", "xabx"]),
            ("^a(?!b)", &["a", "ac"], &["ab", "ba"]),
            ("^(?!(?:con|nul)$).+$", &["cons", "x"], &["con", "nul", ""]),
            (r"^[\u4e00-\u9fa5\u{1f600}]+$", &["中", "😀"], &["a"]),
            (r"^\ud83d\ude00$", &["😀"], &["a"]),
            (r"^\p{Lu}\P{Lu}$", &["Éa", "A1"], &["aA", "AA"]),
            ("^[]$", &[], &["", "a"]),
            ("^[^]$", &["\n", "a"], &["", "aa"]),
            (r"^[a\-z\]\[]+$", &["-", "[]", "az"], &["b"]),
            ("^(?i)ab$", &["AB", "aB"], &["b"]),
            ("^x{,2}$", &["x{,2}"], &["xx"]),
            ("^a??b*?$", &["", "ab", "bb"], &["aa"]),
            (r"\Aa\Z", &["a"], &["ab"]),
            (r"^\/[\/\.]\x41$", &["//A", "/.A"], &["/A"]),
            ("", &["", "x"], &[]),
            (r"^(?<year>\d{4})$", &["2024"], &["24"]),
        ] {
            let rx = pattern(source).unwrap();
            yes.iter().for_each(|text| assert_eq!(rx.matches(text), Some(true), "{source} {text:?}"));
            no.iter().for_each(|text| assert_eq!(rx.matches(text), Some(false), "{source} {text:?}"));
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_an_error() {
        for source in [
            r"\bword\b",
            r"(a)\1",
            "(?<=a)b",
            "(",
            ")",
            "[a",
            "a{3,1}",
            "[b-a]",
            "*a",
            r"\",
            r"\y",
            "a{99999}",
            "x^a",
            "(?:(?!b)a)*c",
            r"\p{Nope}",
            "(?>a)",
        ] {
            assert!(pattern(source).is_err(), "{source}");
        }
        assert!(pattern(&"(".repeat(500)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(source in r"[\[\](){}^$|*+?.\\a-cdpu0-3,!=:<-]{0,24}", text in "[ab0]{0,6}") {
            if let Ok(rx) = pattern(&source) {
                let _ = rx.matches(&text);
                let _ = rx.lark(crate::output::grammar::schema::rx::Quote::Json);
            }
        }

        #[test]
        fn patterns_agree_with_a_regex_library(source in "(\\^)?([ab.]|\\[ab\\]|\\[\\^a\\]|\\(a\\|b\\)|\\(\\?:ab\\))([*+?]|\\{1,2\\})?[ab]?\\$?",
            text in "[abc]{0,5}") {
            let rx = pattern(&source).unwrap();
            let expected = regex_lite::Regex::new(&source).unwrap().is_match(&text);
            prop_assert_eq!(rx.matches(&text), Some(expected));
        }
    }
}
