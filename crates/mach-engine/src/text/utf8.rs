//! Bytes to characters, incrementally.

/// Collects bytes until they make whole characters. Bytes that can never be UTF-8 become U+FFFD, one for each maximal
/// broken sequence, as Python's `errors="replace"` does.
#[derive(Debug, Default)]
pub(crate) struct Utf8Decoder {
    pending: Vec<u8>,
}

impl Utf8Decoder {
    /// Appends the text of `bytes` to `out`, as far as it is certain.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut done = 0;
        loop {
            let rest = self.pending.get(done..).unwrap_or_default();
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    done = self.pending.len();
                    break;
                }
                Err(e) => {
                    let valid = rest.get(..e.valid_up_to()).unwrap_or_default();
                    out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    done += valid.len();
                    match e.error_len() {
                        Some(n) => {
                            out.push('\u{fffd}');
                            done += n;
                        }
                        None => break,
                    }
                }
            }
        }
        self.pending.drain(..done);
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub(crate) fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push('\u{fffd}');
            self.pending.clear();
        }
    }
}
