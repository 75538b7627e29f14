//! Names of mach's files. What is called otherwise is not touched.

use crate::chain::{Hash, hex};

/// Damaged files are set aside in a directory of this name.
pub(crate) const QUARANTINE: &str = "quarantine";
const SUFFIX: &str = ".seg";
const TEMPORARY: &str = "tmp-";

/// The directory of a namespace.
pub(crate) fn namespace(namespace: &Hash) -> String {
    hex(namespace.get(..16).unwrap_or_default())
}

/// The file of a segment.
pub(crate) fn segment(key: &Hash) -> String {
    format!("{}{SUFFIX}", hex(key.get(..20).unwrap_or_default()))
}

/// A file that is being written.
pub(crate) fn temporary(process: u32, number: u64) -> String {
    format!("{TEMPORARY}{process}-{number}")
}

/// A segment that was set aside: its name, and what keeps it apart from others that had the same.
pub(crate) fn set_aside(segment: &str, process: u32, number: u64) -> String {
    format!("{}-{process}-{number}{SUFFIX}", segment.strip_suffix(SUFFIX).unwrap_or(segment))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

pub(crate) fn is_namespace(name: &str) -> bool {
    is_hex(name, 32)
}

pub(crate) fn is_segment(name: &str) -> bool {
    name.strip_suffix(SUFFIX).is_some_and(|stem| is_hex(stem, 40))
}

pub(crate) fn is_temporary(name: &str) -> bool {
    let numbers = name.strip_prefix(TEMPORARY).and_then(|rest| rest.split_once('-'));
    numbers.is_some_and(|(process, number)| is_number(process) && is_number(number))
}

pub(crate) fn is_set_aside(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(SUFFIX) else { return false };
    let mut parts = stem.split('-');
    let segment = parts.next().is_some_and(|segment| is_hex(segment, 40));
    // Earlier builds kept the segment's name.
    segment && (parts.clone().next().is_none() || (parts.clone().count() == 2 && parts.all(is_number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_again_and_others_are_not() {
        let key = [0xab; 32];
        let segment = segment(&key);
        assert!(is_segment(&segment) && is_set_aside(&segment) && !is_temporary(&segment));
        let aside = set_aside(&segment, 17, 3);
        assert!(is_set_aside(&aside) && !is_segment(&aside));
        assert!(is_temporary(&temporary(17, 3)) && is_namespace(&namespace(&key)));
        let long = segment.replace("ab", "abab");
        let upper = segment.to_uppercase().replace("SEG", "seg");
        for other in ["a.seg", ".seg", "", &long, &upper, &segment.replace(".seg", ""), "chunk-001.seg"] {
            assert!(!is_segment(other) && !is_set_aside(other), "{other}");
        }
        for other in
            ["tmp-", "tmp-1", "tmp-1-", "tmp--1", "tmp-a-1", "tmp-1-a", "x-1-1", "tmp-1-1-1", "tmp-1-1.txt"]
        {
            assert!(!is_temporary(other), "{other}");
        }
        for other in [aside.replace("-3", ""), aside.replace("-3", "-x"), format!("x{aside}")] {
            assert!(!is_set_aside(&other), "{other}");
        }
        let upper = namespace(&key).to_uppercase();
        for other in ["abab", "models", "../../../../../../../../../../..", &upper] {
            assert!(!is_namespace(other), "{other}");
        }
    }
}
