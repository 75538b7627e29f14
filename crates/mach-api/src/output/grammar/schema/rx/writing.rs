//! Sets of texts as terminals of a grammar.

use std::fmt::Write;

use regex_syntax::hir::ClassUnicode;

use super::{Quote, Rx, class as class_of};

impl Rx {
    /// As an expression for a terminal of the grammar.
    pub(in crate::output::grammar) fn lark(&self, quote: Quote) -> String {
        let all = |list: &[Self], between: &str| {
            let list: Vec<String> = list.iter().map(|item| item.lark(quote)).collect();
            format!("({})", list.join(between))
        };
        match self {
            rx if rx.is_empty() => "\"\"".to_owned(),
            rx if rx.pure() => {
                let mut out = "/".to_owned();
                rx.regex(quote, &mut out);
                out.push('/');
                out
            }
            Self::Concat(list) => all(list, " "),
            Self::Alt(list) => all(list, " | "),
            Self::And(list) => all(list, " & "),
            // Only whole letters: the complement of the terminals is one of bytes.
            Self::Not(inner) => format!("({} & ~{})", Self::any().lark(quote), inner.lark(quote)),
            Self::Repeat(inner, least, most) => {
                let inner = inner.lark(quote);
                let most = most.map_or(String::new(), |most| most.to_string());
                if (*least, most.as_str()) == (0, "") {
                    format!("({inner})*")
                } else {
                    format!("({inner}){{{least},{most}}}")
                }
            }
            Self::Text(_) | Self::Class(_) => String::new(),
        }
    }

    /// As a regular expression between slashes.
    fn regex(&self, quote: Quote, out: &mut String) {
        // A `String` takes every write.
        match self {
            Self::Text(text) => text.chars().for_each(|c| letter(c, quote, out)),
            Self::Class(class) => class_regex(class, quote, out),
            Self::Concat(list) => {
                for item in list {
                    let group = matches!(item, Self::Alt(_));
                    out.push_str(if group { "(?:" } else { "" });
                    item.regex(quote, out);
                    out.push_str(if group { ")" } else { "" });
                }
            }
            // A class without letters.
            Self::Alt(list) if list.is_empty() => out.push_str("[a&&b]"),
            Self::Alt(list) => {
                for (i, item) in list.iter().enumerate() {
                    out.push_str(if i > 0 { "|" } else { "" });
                    item.regex(quote, out);
                }
            }
            Self::Repeat(inner, least, most) => {
                out.push_str("(?:");
                inner.regex(quote, out);
                out.push(')');
                match (least, most) {
                    (0, None) => out.push('*'),
                    (1, None) => out.push('+'),
                    (0, Some(1)) => out.push('?'),
                    (least, Some(most)) if least == most => {
                        let _ = write!(out, "{{{least}}}");
                    }
                    (least, most) => {
                        let most = most.map_or(String::new(), |most| most.to_string());
                        let _ = write!(out, "{{{least},{most}}}");
                    }
                }
            }
            Self::And(_) | Self::Not(_) => {}
        }
    }
}

fn plain(c: char, out: &mut String) {
    if c.is_ascii_alphanumeric() || matches!(c, ' ' | '_' | ',' | ':' | ';' | '=' | '"' | '\'' | '%' | '@') {
        out.push(c);
    } else {
        let _ = write!(out, "\\x{{{:x}}}", c as u32);
    }
}

/// Letters that JSON strings hold only with a backslash.
fn escape(c: char) -> Option<String> {
    Some(match c {
        '"' => "\\\"".into(),
        '\\' => "\\\\".into(),
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        '\u{8}' => "\\b".into(),
        '\u{c}' => "\\f".into(),
        c if c < ' ' || c == '\u{7f}' => format!("\\u{:04x}", c as u32),
        _ => return None,
    })
}

fn letter(c: char, quote: Quote, out: &mut String) {
    match escape(c).filter(|_| quote == Quote::Json) {
        Some(text) => text.chars().for_each(|c| plain(c, out)),
        None => plain(c, out),
    }
}

fn class_regex(class: &ClassUnicode, quote: Quote, out: &mut String) {
    let single = |class: &ClassUnicode| match class.ranges() {
        [range] if range.start() == range.end() => Some(range.start()),
        _ => None,
    };
    if let Some(c) = single(class) {
        let escaped = quote == Quote::Json && escape(c).is_some();
        out.push_str(if escaped { "(?:" } else { "" });
        letter(c, quote, out);
        out.push_str(if escaped { ")" } else { "" });
        return;
    }
    let ranges = |class: &ClassUnicode, out: &mut String| {
        out.push('[');
        for range in class.iter() {
            plain(range.start(), out);
            if range.end() > range.start() {
                out.push('-');
                plain(range.end(), out);
            }
        }
        out.push(']');
    };
    let mut quoted = class.clone();
    quoted.intersect(&class_of(&[('\0', '\u{1f}'), ('"', '"'), ('\\', '\\'), ('\u{7f}', '\u{7f}')]));
    if quote == Quote::Plain || quoted.ranges().is_empty() {
        match class.ranges().is_empty() {
            true => out.push_str("[a&&b]"),
            false => ranges(class, out),
        }
        return;
    }
    let mut rest = class.clone();
    rest.difference(&quoted);
    let (mut short, mut long) = (String::new(), Vec::new());
    for c in quoted.iter().flat_map(|range| range.start()..=range.end()) {
        match escape(c) {
            Some(text) if text.len() == 2 => plain(text.chars().nth(1).unwrap_or(c), &mut short),
            _ => long.push(c),
        }
    }
    let mut options = Vec::new();
    if !rest.ranges().is_empty() {
        let mut text = String::new();
        ranges(&rest, &mut text);
        options.push(text);
    }
    if !short.is_empty() {
        options.push(format!("\\x{{5c}}[{short}]"));
    }
    // All of them, as mostly, are few words.
    if long.len() == 28 {
        options.push("\\x{5c}u00(?:0[0-7bef]|1[0-9a-f]|7f)".to_owned());
    } else {
        options.extend(long.iter().map(|&c| format!("\\x{{5c}}u{:04x}", c as u32)));
    }
    let _ = write!(out, "(?:{})", options.join("|"));
}
