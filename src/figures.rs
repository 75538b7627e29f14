//! Token counts and speeds of an answer, for people.

use std::fmt;

use mach_api::turn::{Counts, Ending};
use mach_engine::Timings;

/// What an answer took.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) counts: Counts,
    pub(crate) timings: Timings,
    pub(crate) ending: Ending,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |n: usize, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        let Counts { prompt, cached, completion, reasoning } = self.counts;
        let (prefill, decode) = (self.timings.prefill.as_secs_f64(), self.timings.decode.as_secs_f64());
        let computed = prompt.saturating_sub(cached);
        write!(f, "prompt   {prompt} tokens in {prefill:.3} s: {:.1} tokens/s", rate(computed, prefill))?;
        match cached {
            0 => writeln!(f)?,
            _ => writeln!(f, ", {cached} of them from the prefix cache")?,
        }
        // The first token comes with the prompt's last pass.
        let decoded = completion.saturating_sub(1);
        writeln!(f, "decode   {decoded} tokens in {decode:.3} s: {:.1} tokens/s", rate(decoded, decode))?;
        let reason = match self.ending {
            Ending::Stop | Ending::StopString(_) | Ending::Calls => "stop",
            Ending::Length => "length",
        };
        write!(f, "finished {reason} after {completion} tokens")?;
        match reasoning {
            0 => writeln!(f),
            _ => writeln!(f, ", {reasoning} of them reasoning"),
        }
    }
}
