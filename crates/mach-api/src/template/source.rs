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
/// `if` that is always true, with the same whitespace control. The line break after `{% raw %}` stays, as in Jinja2.
pub(super) fn neutralise(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = if raw {
            rest.starts_with("{%").then(|| behind(rest, "%}")).flatten()
        } else if rest.starts_with("{{") {
            closing(rest, "}}")
        } else if rest.starts_with("{%") {
            closing(rest, "%}")
        } else if rest.starts_with("{#") {
            behind(rest, "#}")
        } else {
            None
        };
        let Some(end) = end.map(|at| at + 2) else {
            out.push('{');
            rest = &rest[1..];
            continue;
        };
        let tag = &rest[..end];
        let body = &tag[2..tag.len() - 2];
        let word = if tag.starts_with("{%") { body.trim_matches(['-', '+']).trim() } else { "" };
        match word {
            "endraw" if raw => raw = false,
            // What looks like a tag inside of raw text may hold the end of it.
            _ if raw => {
                out.push('{');
                rest = &rest[1..];
                continue;
            }
            "raw" => raw = true,
            _ => {}
        }
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            "raw" if !body.ends_with(['-', '+']) => out.push_str(&format!("{{%{body}+%}}")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Where these characters are first, behind the two that open a tag: in `{#}` and `{%}` the second character closes nothing.
fn behind(tag: &str, end: &str) -> Option<usize> {
    tag.get(2..)?.find(end).map(|at| at + 2)
}

/// Where a tag ends: the first of these characters outside of a string.
fn closing(tag: &str, end: &str) -> Option<usize> {
    let mut quote = None;
    let mut chars = tag.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => _ = chars.next(),
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, _) if tag[at..].starts_with(end) => return Some(at),
            (None, _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_where_they_are_tags() {
        for (source, want) in [
            ("{% generation %}a{%- endgeneration -%}", "{% if true %}a{%- endif -%}"),
            ("{{ '{% generation %}' }}{# {% raw %} #}", "{{ '{% generation %}' }}{# {% raw %} #}"),
            ("{% raw %}\n{% generation %}{% {% endraw %}", "{% raw +%}\n{% generation %}{% {% endraw %}"),
            ("{% raw -%} x {% endraw %}{% generation %}", "{% raw -%} x {% endraw %}{% if true %}"),
            ("{#}{% generation %}", "{#}{% if true %}"),
            ("{#}{% generation %}#}{##}", "{#}{% generation %}#}{##}"),
            ("{% raw %}{%}{% endraw %}{% generation %}", "{% raw +%}{%}{% endraw %}{% if true %}"),
            ("{% if '%}' == \"{%\" %}{", "{% if '%}' == \"{%\" %}{"),
        ] {
            assert_eq!(neutralise(source), want);
        }
    }

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
