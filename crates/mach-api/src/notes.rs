//! What a request held beside what was understood: fields that nobody knows, and things that were let pass.

/// What is done with fields that neither OpenAI nor vLLM nor mach know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// They are noted; the request is answered without them.
    #[default]
    Ignore,
    /// The request is refused, and the field named.
    Refuse,
}

/// Notes of one request. They never change its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    ignored: Vec<String>,
    warnings: Vec<String>,
}

/// Entries of a kind, at most.
const MOST: usize = 32;

impl Notes {
    /// Paths of the fields that were ignored, in order, each once; list indices are left out (`messages[].x`).
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// What was let pass, in words.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Notes a field by its path.
    pub(crate) fn ignore(&mut self, path: &str) {
        note(&mut self.ignored, without_indices(path));
    }

    /// Notes something that was let pass.
    pub(crate) fn warn(&mut self, text: String) {
        note(&mut self.warnings, text);
    }
}

fn note(list: &mut Vec<String>, text: String) {
    if list.len() < MOST && !list.contains(&text) {
        list.push(text);
    }
}

/// `messages[12].x` as `messages[].x`, so that a long conversation names a field once.
fn without_indices(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ if inside && c.is_ascii_digit() => continue,
            _ => {}
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_noted_once_whatever_its_message() {
        let mut notes = Notes::default();
        for path in ["messages[0].x", "messages[17].x", "a1", "messages[2].content[3].y"] {
            notes.ignore(path);
        }
        assert_eq!(notes.ignored(), ["messages[].x", "a1", "messages[].content[].y"]);
        (0..1000).for_each(|i| notes.ignore(&format!("x{i}")));
        assert_eq!(notes.ignored().len(), MOST);
    }
}
