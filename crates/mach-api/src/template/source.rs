//! A template's text as Jinja2 reads it, with what only transformers knows taken out.

/// Line breaks of any kind become `\n`, and one at the very end is dropped.
pub(super) fn normalise(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

/// Replaces the `{% generation %}` tag, which marks the assistant's own words for training and prints nothing, by an
/// `if` that is always true, with the same whitespace control.
pub(super) fn neutralise(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let end = start + len + 2;
        let tag = &rest[start..end];
        let body = &tag[2..tag.len() - 2];
        let word = body.trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_are_jinjas() {
        for (source, want) in [
            ("a\r\nb\rc\n", "a\nb\nc"),
            ("a\n\n", "a\n"),
            ("a\r", "a"),
            ("\n", ""),
            ("", ""),
            ("a\n\r\n", "a\n"),
        ] {
            assert_eq!(normalise(source), want, "{source:?}");
        }
    }
}
