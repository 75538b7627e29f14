//! JSON as models write it, read letter by letter: strict JSON goes through as it is; what Python writes instead (`True`, `None`,
//! single quotes, tuples, a comma at the end, `5.`) becomes JSON.

use serde_json::Number;

/// Readers bound how deep JSON nests; the object of all arguments is around it.
const DEEPEST: usize = 120;
/// A number or word is shorter.
const LONGEST_WORD: usize = 4096;

/// This is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unsound;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Value,
    /// A value, or the end of an array.
    Item,
    /// A key, or the end of an object.
    Key,
    Colon,
    /// Behind a value: a comma or the end.
    After,
    /// In quotes of this kind.
    Text {
        quote: char,
        key: bool,
    },
    /// Behind a backslash.
    Escape {
        quote: char,
        key: bool,
    },
    /// In `\u` or `\x`: that many digits are left.
    Digits {
        quote: char,
        key: bool,
        left: u8,
    },
    Word,
    Done,
}

/// Follows one value.
#[derive(Debug)]
pub(super) struct Relaxed {
    place: Place,
    /// What closes what is open, innermost last.
    open: Vec<char>,
    /// A number or word so far.
    word: String,
    /// A comma, which is dropped if the end follows, and the white space behind it.
    comma: Option<String>,
}

impl Default for Relaxed {
    fn default() -> Self {
        Self { place: Place::Value, open: Vec::new(), word: String::new(), comma: None }
    }
}

impl Relaxed {
    /// Takes a letter and appends JSON; true if the value is complete with it. A number or word at the outermost level ends
    /// with the letter behind it, which is not part of it: see [`Relaxed::finish`].
    pub(super) fn push(&mut self, c: char, out: &mut String) -> Result<bool, Unsound> {
        if self.place == Place::Word {
            if (c.is_alphanumeric() || matches!(c, '+' | '-' | '.' | '_')) && self.word.len() < LONGEST_WORD {
                self.word.push(c);
                return Ok(false);
            }
            self.word(out)?;
        }
        let white = matches!(c, ' ' | '\n' | '\t' | '\r');
        match self.place {
            Place::Text { quote, key } => self.text(c, quote, key, out),
            Place::Escape { quote, key } => self.escape(c, quote, key, out),
            Place::Digits { quote, key, left } => {
                if !c.is_ascii_hexdigit() {
                    return Err(Unsound);
                }
                out.push(c);
                self.place = match left {
                    1 => Place::Text { quote, key },
                    _ => Place::Digits { quote, key, left: left - 1 },
                };
                Ok(false)
            }
            _ if white => {
                self.comma.as_mut().unwrap_or(out).push(c);
                Ok(false)
            }
            Place::Item | Place::Key if Some(&c) == self.open.last() => self.close(out),
            Place::After if Some(&c) == self.open.last() => self.close(out),
            Place::After if c == ',' => {
                self.comma = Some(String::new());
                self.place = if self.open.last() == Some(&'}') { Place::Key } else { Place::Item };
                Ok(false)
            }
            Place::Colon if c == ':' => {
                out.push(c);
                self.place = Place::Value;
                Ok(false)
            }
            Place::Key if matches!(c, '"' | '\'') => {
                self.separate(out);
                out.push('"');
                self.place = Place::Text { quote: c, key: true };
                Ok(false)
            }
            Place::Value | Place::Item => self.value(c, out),
            _ => Err(Unsound),
        }
    }

    /// Ends the text: a number or word may be waiting for it. True if there is one value and no more.
    pub(super) fn finish(&mut self, out: &mut String) -> bool {
        if self.place == Place::Word && self.word(out).is_err() {
            return false;
        }
        self.open.is_empty() && matches!(self.place, Place::Done)
    }

    /// The comma before this, if there is one.
    fn separate(&mut self, out: &mut String) {
        if let Some(white) = self.comma.take() {
            out.push(',');
            out.push_str(&white);
        }
    }

    fn value(&mut self, c: char, out: &mut String) -> Result<bool, Unsound> {
        self.separate(out);
        match c {
            '"' | '\'' => {
                out.push('"');
                self.place = Place::Text { quote: c, key: false };
            }
            '{' | '[' | '(' => {
                if self.open.len() >= DEEPEST {
                    return Err(Unsound);
                }
                out.push(if c == '{' { '{' } else { '[' });
                self.open.push(match c {
                    '{' => '}',
                    '[' => ']',
                    _ => ')',
                });
                self.place = if c == '{' { Place::Key } else { Place::Item };
            }
            _ if c.is_alphanumeric() || matches!(c, '+' | '-' | '.') => {
                self.word.push(c);
                self.place = Place::Word;
            }
            _ => return Err(Unsound),
        }
        Ok(false)
    }

    fn close(&mut self, out: &mut String) -> Result<bool, Unsound> {
        out.push_str(&self.comma.take().unwrap_or_default());
        out.push(if self.open.pop() == Some('}') { '}' } else { ']' });
        Ok(self.ended())
    }

    fn ended(&mut self) -> bool {
        let done = self.open.is_empty();
        self.place = if done { Place::Done } else { Place::After };
        done
    }

    fn text(&mut self, c: char, quote: char, key: bool, out: &mut String) -> Result<bool, Unsound> {
        match c {
            '\\' => self.place = Place::Escape { quote, key },
            _ if c == quote => {
                out.push('"');
                if key {
                    self.place = Place::Colon;
                } else {
                    return Ok(self.ended());
                }
            }
            '"' => out.push_str("\\\""),
            _ if c < ' ' => return Err(Unsound),
            _ => out.push(c),
        }
        Ok(false)
    }

    fn escape(&mut self, c: char, quote: char, key: bool, out: &mut String) -> Result<bool, Unsound> {
        self.place = Place::Text { quote, key };
        match c {
            '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => out.extend(['\\', c]),
            '\'' => out.push('\''),
            'u' => {
                out.push_str("\\u");
                self.place = Place::Digits { quote, key, left: 4 };
            }
            'x' => {
                out.push_str("\\u00");
                self.place = Place::Digits { quote, key, left: 2 };
            }
            _ => return Err(Unsound),
        }
        Ok(false)
    }

    fn word(&mut self, out: &mut String) -> Result<(), Unsound> {
        let word = std::mem::take(&mut self.word);
        match word.as_str() {
            "true" | "True" => out.push_str("true"),
            "false" | "False" => out.push_str("false"),
            "null" | "None" => out.push_str("null"),
            _ => out.push_str(&number(&word).ok_or(Unsound)?),
        }
        self.ended();
        Ok(())
    }
}

/// A number as JSON or Python writes it, as JSON. All digits are kept.
pub(super) fn number(text: &str) -> Option<String> {
    if serde_json::from_str::<Number>(text).is_ok() {
        return Some(text.to_owned());
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let digits: String = match digits.contains("__") || digits.starts_with('_') || digits.ends_with('_') {
        true => return None,
        false => digits.chars().filter(|&c| c != '_').collect(),
    };
    for (prefix, radix) in [("0x", 16), ("0X", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = digits.strip_prefix(prefix) {
            let plain = digits.starts_with(|c: char| c.is_digit(radix));
            return u128::from_str_radix(digits, radix).ok().filter(|_| plain).map(|n| format!("{sign}{n}"));
        }
    }
    let (mantissa, exponent) = match digits.find(['e', 'E']) {
        Some(at) => digits.split_at(at),
        None => (digits.as_str(), ""),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    let fraction = if fraction.is_empty() { "0" } else { fraction };
    let point = if mantissa.contains('.') { format!(".{fraction}") } else { String::new() };
    let all = format!("{sign}{whole}{point}{exponent}");
    serde_json::from_str::<Number>(&all).is_ok().then_some(all)
}

/// A whole text as one value in JSON, if it is one, in JSON or as Python writes it.
pub(super) fn read(text: &str) -> Option<String> {
    let (mut relaxed, mut out) = (Relaxed::default(), String::new());
    for c in text.trim().chars() {
        relaxed.push(c, &mut out).ok()?;
    }
    relaxed.finish(&mut out).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stays_as_it_is() {
        for text in [
            r#"{"a": [1, -2.5e3, "x\n\u00e9"], "b": {}, "c" :null}"#,
            "[ ]",
            "[[], {\"a\":1 , \"b\":[true,false]}]",
            "12345678901234567890123",
            "\"it's\"",
        ] {
            assert_eq!(read(text).as_deref(), Some(text));
        }
    }

    #[test]
    fn python_becomes_json() {
        for (python, json) in [
            ("{'a': True, 'b': None}", "{\"a\": true, \"b\": null}"),
            ("['it\\'s', 'a \"b\"', \"c'd\"]", "[\"it's\", \"a \\\"b\\\"\", \"c'd\"]"),
            ("(1, 2,)", "[1, 2]"),
            ("{'a': [1, 2, ], }", "{\"a\": [1, 2 ] }"),
            ("[.5, 5., +3, 1_000, 0x1F]", "[0.5, 5.0, 3, 1000, 31]"),
            ("['\\x41']", "[\"\\u0041\"]"),
            ("[{\"a\": 'pending'}, false]", "[{\"a\": \"pending\"}, false]"),
        ] {
            assert_eq!(read(python).as_deref(), Some(json));
        }
    }

    #[test]
    fn what_is_none_is_told() {
        for text in [
            "",
            "{",
            "[1",
            "[1 2]",
            "{a: 1}",
            "{\"a\" 1}",
            "tru",
            "nan",
            "Infinity",
            "[1]]",
            "\"a\nb\"",
            "'a",
            "{,}",
            "[,]",
            "1__0",
            "0x",
            "--1",
            "[)",
            "\"\\q\"",
            ".",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(read(&"[".repeat(500)), None);
    }
}
