//! The formats of strings.

use super::pattern::pattern;
use super::rx::Rx;

const DATE: &str = "(?:(?!0000)[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|\
    (?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|\
    (?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)";
const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?\
    (?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const DURATION: &str = "P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|\
    [0-9]{1,9}M(?:[0-9]{1,9}D)?|[0-9]{1,9}D)(?:T(?:H))?|T(?:H))";
const CLOCK: &str = "[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S";
const UUID: &str = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}";
const LABEL: &str = "[a-zA-Z0-9]{1,20}(?:-[a-zA-Z0-9]{1,20}){0,2}";
const ATOM: &str = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,20}";
const BYTE: &str = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
const WORD: &str = "[0-9a-fA-F]{1,4}";
/// What a path holds.
const PATH: &str = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@/-]|%[0-9a-fA-F]{2})";
/// What stands behind `?` and `#`.
const QUERY: &str = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})";
/// Beginnings of URIs that name no host.
const BARE: &str = "(?:mailto|urn|tel|data|news|file|about)";

/// What a format says.
#[derive(Debug)]
pub(super) enum Format {
    /// The texts that have it.
    Texts(Rx),
    /// Nothing that could be enforced: a note to readers.
    Note,
}

/// The texts of a format.
pub(super) fn format(name: &str) -> Format {
    let host = format!("{LABEL}(?:\\.{LABEL}){{0,3}}");
    let uri = || {
        format!(
            "(?:[a-zA-Z][a-zA-Z0-9+.-]{{0,15}}://{host}(?::[0-9]{{1,4}})?(?:/{PATH}*)?|{BARE}:[a-zA-Z0-9]{PATH}*)\
             (?:\\?{QUERY}*)?(?:#{QUERY}*)?"
        )
    };
    let source = match name {
        "date" => DATE.to_owned(),
        "time" => TIME.to_owned(),
        "date-time" => format!("{DATE}T{TIME}"),
        "duration" => DURATION.replace('H', CLOCK),
        "uuid" => UUID.to_owned(),
        "email" | "idn-email" => {
            format!("{ATOM}(?:\\.{ATOM}){{0,2}}@{LABEL}(?:\\.{LABEL}){{0,2}}\\.[a-zA-Z]{{2,20}}")
        }
        "hostname" | "idn-hostname" => host,
        "ipv4" => format!("{BYTE}(?:\\.{BYTE}){{3}}"),
        "ipv6" => ipv6(),
        "uri" | "iri" | "url" => uri(),
        // A colon in the first part would make it a scheme.
        "uri-reference" | "iri-reference" => {
            format!("(?:{}|/?(?:[a-zA-Z0-9._~-]{{1,60}}(?:/{PATH}*)?)?(?:\\?{QUERY}*)?(?:#{QUERY}*)?)", uri())
        }
        "uri-template" => format!("(?:[a-zA-Z0-9._~:/?#@!$&*+,;=-]|%[0-9a-fA-F]{{2}}|\\{{{WORD_NAME}\\}})*"),
        "json-pointer" => "(?:/(?:[^~/\\x00-\\x1f]|~[01])*)*".to_owned(),
        "relative-json-pointer" => "(?:0|[1-9][0-9]{0,4})(?:#|(?:/(?:[^~/\\x00-\\x1f]|~[01])*)*)".to_owned(),
        _ => return Format::Note,
    };
    pattern(&format!("^(?:{source})$")).map_or(Format::Note, Format::Texts)
}

const WORD_NAME: &str = "[a-zA-Z_][a-zA-Z0-9_]{0,30}";

/// Eight words, of which one run of zeros may be left out.
fn ipv6() -> String {
    let mut all = vec![format!("(?:{WORD}:){{7}}{WORD}")];
    for before in 0..=6 {
        let most = 6 - before;
        let head = if before == 0 { String::new() } else { format!("{WORD}(?::{WORD}){{{}}}", before - 1) };
        let tail = format!("(?:{WORD}(?::{WORD}){{0,{most}}})?");
        all.push(format!("{head}::{tail}"));
    }
    all.push(format!("(?:{WORD}:){{7}}:"));
    format!("(?:{})", all.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_hold_what_they_should() {
        for (name, yes, no) in [
            (
                "date",
                &["2024-02-29", "2000-02-29", "2023-12-31"][..],
                &["2023-02-29", "1900-02-29", "2023-04-31", "2023-13-01", "0000-01-01", "2023-1-1"][..],
            ),
            ("time", &["12:00:00Z", "23:59:59.123+02:00"], &["24:00:00Z", "12:00:00", "12:60:00Z"]),
            ("date-time", &["2024-02-29T12:00:00Z"], &["2024-02-29 12:00:00Z", "2024-02-29"]),
            ("duration", &["P1Y2M3DT4H5M6S", "PT1H", "P2W", "P1D"], &["P", "PT", "P1S", "1D", "P1YT"]),
            ("uuid", &["123e4567-e89b-12d3-a456-426614174000"], &["123e4567e89b12d3a456426614174000"]),
            ("email", &["a.b@c.org", "x+y@sub.example.com"], &["a", "a@b", "@b.co", ".a@b.co", "a b@c.de"]),
            ("hostname", &["a", "a-b.example.org"], &["", "-a", "a..b", "a_b"]),
            ("ipv4", &["0.0.0.0", "255.254.199.10"], &["256.0.0.1", "1.2.3", "01.2.3.4"]),
            (
                "ipv6",
                &["::", "::1", "1::", "fe80::1:2", "1:2:3:4:5:6:7:8"],
                &["1:2", ":::", "1::2::3", "12345::"],
            ),
            ("uri", &["https://a.org/x?y=1#z", "mailto:a@b.c", "http://a"], &["a b", "//x", "http://", "/x"]),
            ("json-pointer", &["", "/a/~0b"], &["a", "/~2"]),
        ] {
            let Format::Texts(rx) = format(name) else { panic!("{name}") };
            yes.iter().for_each(|text| assert_eq!(rx.matches(text), Some(true), "{name} {text}"));
            no.iter().for_each(|text| assert_eq!(rx.matches(text), Some(false), "{name} {text}"));
        }
        for name in ["time", "uri-reference", "uri-template", "relative-json-pointer"] {
            assert!(matches!(format(name), Format::Texts(_)), "{name}");
        }
        for name in ["binary", "password", "int32", "made-up", "regex"] {
            assert!(matches!(format(name), Format::Note), "{name}");
        }
    }
}
