//! Patterns as JSON Schema has them (ECMA-262), as sets of texts.

mod reader;

use reader::Reader;
use regex_syntax::hir::ClassUnicode;

use super::rx::Rx;

/// Groups nest at most this deep.
const DEPTH: usize = 64;
/// Nodes of one pattern.
const SIZE: usize = 20_000;
/// Letters of one pattern whose repeated groups are written out.
const WRITTEN_OUT: u64 = 5_000;

/// The texts in which a pattern is found.
pub(super) fn pattern(source: &str) -> Result<Rx, String> {
    let letters: Vec<char> = source.chars().collect();
    let mut reader = Reader { letters: &letters, at: 0, fold: false, all: false, depth: 0 };
    let tree = reader.alternatives()?;
    if reader.at < letters.len() {
        return Err("the pattern has a `)` too many".to_owned());
    }
    let rx = found(&[tree], 0)?;
    if rx.size() > SIZE {
        return Err("the pattern is too large".to_owned());
    }
    match rx.written_out() {
        letters if letters > WRITTEN_OUT => Err(format!(
            "the pattern repeats groups to {letters} letters; at most {WRITTEN_OUT} are supported"
        )),
        _ => Ok(rx),
    }
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
