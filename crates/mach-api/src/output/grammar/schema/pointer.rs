//! References inside a schema.

use serde_json::Value;

/// What a reference points at.
pub(in crate::output) fn find<'v>(root: &'v Value, reference: &str) -> Option<&'v Value> {
    // The document's own address may stand in front.
    let own = |key: &str| root.get(key).and_then(Value::as_str).map(|id| id.trim_end_matches('#'));
    let mut fragment = reference.strip_prefix('#');
    for id in [own("$id"), own("id")].into_iter().flatten() {
        let rest = reference.strip_prefix(id).filter(|_| !id.is_empty());
        fragment = fragment
            .or_else(|| rest.and_then(|rest| rest.strip_prefix('#').or(rest.is_empty().then_some(""))));
    }
    let fragment = decoded(fragment?)?;
    if fragment.is_empty() || fragment == "/" {
        return Some(root);
    }
    if !fragment.starts_with('/') {
        return anchor(root, &fragment, 0);
    }
    root.pointer(&fragment)
}

/// Percent signs and what they stand for.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let hex = [bytes.next()?, bytes.next()?];
        let digits = std::str::from_utf8(&hex).ok()?;
        out.push(u8::from_str_radix(digits, 16).ok()?);
    }
    String::from_utf8(out).ok()
}

/// The schema of this name.
fn anchor<'v>(value: &'v Value, name: &str, depth: usize) -> Option<&'v Value> {
    if depth > 128 {
        return None;
    }
    match value {
        Value::Object(map) => {
            let here =
                ["$anchor", "$dynamicAnchor"].iter().any(|key| map.get(*key).is_some_and(|v| v == name));
            if here { Some(value) } else { map.values().find_map(|value| anchor(value, name, depth + 1)) }
        }
        Value::Array(list) => list.iter().find_map(|value| anchor(value, name, depth + 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_read_with_their_escapes() {
        let root = json!({"$id": "https://x.org/s", "$defs": {"a/b": 1, "a b": 2, "a~b": 3, "ä%": {"$anchor": "here"}, "l": [4]}});
        for (reference, found) in [
            ("#/$defs/a~1b", json!(1)),
            ("#/$defs/a%20b", json!(2)),
            ("#/$defs/a b", json!(2)),
            ("#/$defs/a~0b", json!(3)),
            ("#/%24defs/a%7E1b", json!(1)),
            ("#/$defs/%C3%A4%25", json!({"$anchor": "here"})),
            ("#here", json!({"$anchor": "here"})),
            ("#/$defs/l/0", json!(4)),
            ("https://x.org/s#/$defs/a~1b", json!(1)),
        ] {
            assert_eq!(find(&root, reference), Some(&found), "{reference}");
        }
        assert_eq!((find(&root, "#"), find(&root, "https://x.org/s")), (Some(&root), Some(&root)));
        for reference in ["#/nope", "other.json#/x", "#/$defs/%2", "#nope"] {
            assert_eq!(find(&root, reference), None, "{reference}");
        }
    }
}
