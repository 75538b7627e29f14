//! Halves of surrogate pairs in JSON text: JavaScript and Python write them where a string was cut inside of a character.

use std::borrow::Cow;

/// The same text with U+FFFD in the place of each half that stands alone, escaped (`\ud83e`) or as three bytes. The
/// length stays, so that complaints about the text name the right place.
pub(crate) fn mend(json: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Cow::Borrowed(json);
    let mut inside = false;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        let len = match byte {
            b'"' => {
                inside = !inside;
                1
            }
            b'\\' if inside => match escape(json, at) {
                Some(0xd800..=0xdbff) if matches!(escape(json, at + 6), Some(0xdc00..=0xdfff)) => 12,
                Some(0xd800..=0xdfff) => {
                    replace(&mut out, at, br"\ufffd");
                    6
                }
                Some(_) => 6,
                None => 2,
            },
            // No character of UTF-8 begins with these.
            0xed if matches!(json.get(at + 1..at + 3), Some([0xa0..=0xbf, 0x80..=0xbf])) => {
                replace(&mut out, at, "\u{fffd}".as_bytes());
                3
            }
            _ => 1,
        };
        at += len;
    }
    out
}

/// The same for text.
pub(crate) fn mend_text(json: &str) -> Cow<'_, str> {
    match mend(json.as_bytes()) {
        Cow::Borrowed(_) => Cow::Borrowed(json),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// The code unit that an escape at this place stands for.
fn escape(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(br"\u")?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn replace(out: &mut Cow<'_, [u8]>, at: usize, by: &[u8]) {
    if let Some(place) = out.to_mut().get_mut(at..at + by.len()) {
        place.copy_from_slice(by);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_halves_that_stand_alone_are_replaced() {
        for (text, want) in [
            (r#""\ud83e""#, "\u{fffd}"),
            (r#""\ud83e...\udd14""#, "\u{fffd}...\u{fffd}"),
            (r#""\ud83e\udd14""#, "🤔"),
            (r#""\uD83E\uDD14\ud83e""#, "🤔\u{fffd}"),
            (r#""\ud83e\ud83e\udd14""#, "\u{fffd}🤔"),
            (r#""\udd14\ud83e""#, "\u{fffd}\u{fffd}"),
            (r#""\\ud83e""#, r"\ud83e"),
            (r#""\\\ud83e""#, "\\\u{fffd}"),
            (r#""\ud83e\\udd14""#, "\u{fffd}\\udd14"),
            (r#""\ud83e\n\u0041""#, "\u{fffd}\nA"),
            (r#""\ud83eA""#, "\u{fffd}A"),
            (r#""\"\ud83e""#, "\"\u{fffd}"),
        ] {
            let mended = mend(text.as_bytes());
            assert_eq!(mended.len(), text.len());
            assert_eq!(serde_json::from_slice::<String>(&mended).unwrap(), want, "{text}");
        }
        for bytes in [&b"\"\xed\xa0\xbe\""[..], b"\"\xed\xbf\xbf\""] {
            assert_eq!(serde_json::from_slice::<String>(&mend(bytes)).unwrap(), "\u{fffd}");
        }
        for text in [r#""\ud8"#, r#""\u"#, r#""\"#, r#"\ud83e"#, r#""\ud83g""#, "\u{d7ff}", ""] {
            assert!(matches!(mend(text.as_bytes()), Cow::Borrowed(_)), "{text}");
        }
    }

    proptest! {
        /// Any string of 16-bit units, escaped in any way, is read as `String::from_utf16_lossy` reads its units.
        #[test]
        fn units_are_read_as_by_a_lossy_decoder(units in prop::collection::vec(prop_oneof![
            0xd800u16..0xe000, 0xd83eu16..0xd840, 0xdd14u16..0xdd16, any::<u16>(), 0x20u16..0x7f, Just(0x5c)], 0..12),
            upper in any::<bool>()) {
            let mut json = String::from("\"");
            for &unit in &units {
                match u8::try_from(unit) {
                    Ok(c @ (b'"' | b'\\')) => json.extend(['\\', char::from(c)]),
                    Ok(c @ 0x20..=0x7e) => json.push(char::from(c)),
                    _ if upper => json.push_str(&format!("\\u{unit:04X}")),
                    _ => json.push_str(&format!("\\u{unit:04x}")),
                }
            }
            json.push('"');
            let mended = mend(json.as_bytes());
            let read: String = serde_json::from_slice(&mended).unwrap();
            prop_assert_eq!(read, String::from_utf16_lossy(&units));
            let text = mend_text(&json);
            prop_assert_eq!(text.as_bytes(), &*mended);
        }

        /// What is JSON already stays as it is.
        #[test]
        fn json_stays(text in any::<String>(), raw in prop::collection::vec(any::<u8>(), 0..40)) {
            let json = serde_json::to_string(&text).unwrap();
            prop_assert!(matches!(mend(json.as_bytes()), Cow::Borrowed(_)));
            prop_assert_eq!(mend(&raw).len(), raw.len());
        }
    }
}
