//! Where text is in text, counted in characters.

/// The part of `text` from character `start` to `end`, which may be negative, and where it begins in characters; `None`
/// where it would begin behind the end of the text.
pub(super) fn part(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    if start.is_none() && end.is_none() {
        return Some((0, text));
    }
    let len = i64::try_from(text.chars().count()).ok()?;
    let place = |n: i64| if n < 0 { (n + len).max(0) } else { n };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(len)).min(len));
    if start > end {
        return None;
    }
    let byte = |chars: i64| {
        let chars = usize::try_from(chars).unwrap_or(0);
        text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at)
    };
    Some((usize::try_from(start).ok()?, text.get(byte(start)..byte(end))?))
}

/// `str.find`, or `str.rfind` from the right.
pub(super) fn find(text: &str, what: &str, bounds: (Option<i64>, Option<i64>), right: bool) -> Option<usize> {
    let (start, text) = part(text, bounds.0, bounds.1)?;
    let at = if right { text.rfind(what) } else { text.find(what) }?;
    Some(start + text.get(..at)?.chars().count())
}

/// White space of `str.isspace`, `str.strip` and `str.split`.
pub(in crate::template) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.split()` without a separator.
pub(super) fn split_space(text: &str, most: Option<usize>) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if most.is_some_and(|most| out.len() >= most) {
            out.push(rest.to_owned());
            break;
        }
        let (word, more) = rest.split_once(is_space).unwrap_or((rest, ""));
        out.push(word.to_owned());
        rest = more.trim_start_matches(is_space);
    }
    out
}

/// `str.rsplit()` without a separator.
pub(super) fn rsplit_space(text: &str, most: Option<usize>) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if most.is_some_and(|most| out.len() >= most) {
            out.push(rest.to_owned());
            break;
        }
        let (more, word) = rest.rsplit_once(is_space).unwrap_or(("", rest));
        out.push(word.to_owned());
        rest = more.trim_end_matches(is_space);
    }
    out.reverse();
    out
}

/// Whether a line ends here.
pub(in crate::template) fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `str.splitlines`.
pub(in crate::template) fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_break(*c)) {
        let mut next = at + c.len_utf8();
        if c == '\r' && rest.get(next..).is_some_and(|rest| rest.starts_with('\n')) {
            next += 1;
        }
        out.push(rest.get(..if keep_ends { next } else { at }).unwrap_or_default().to_owned());
        rest = rest.get(next..).unwrap_or_default();
    }
    if !rest.is_empty() {
        out.push(rest.to_owned());
    }
    out
}
