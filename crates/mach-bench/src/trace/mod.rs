//! Routing traces: which experts each pass used, recorded from a running model and replayed against eviction policies.

mod plot;
mod replay;

use std::io::{BufRead, Write};

use anyhow::{Context, Result, bail};
use mach_models::{Model, Observer, Wants};
use serde::{Deserialize, Serialize};

pub use plot::svg;
pub use replay::{Replay, Row, bank_sizes, replay};

/// Format and version of trace files.
const FORMAT: (&str, u32) = ("mach-routing-trace", 1);

/// First line of a trace file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    format: String,
    version: u32,
    /// `model_type`.
    pub architecture: String,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token uses in a layer.
    pub top_k: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Weights, and so routing, are random: such a trace says nothing about policies.
    pub random_routing: bool,
}

/// What one pass asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    /// Rows of the pass.
    pub rows: usize,
    /// A prompt, as opposed to a decoded token.
    pub prompt: bool,
    /// `(layer, distinct experts)`, in the order of the pass.
    pub layers: Vec<(usize, Vec<usize>)>,
}

/// A trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What was traced.
    pub header: Header,
    /// The passes, in order.
    pub passes: Vec<Pass>,
}

/// Notes the routing of one pass.
#[derive(Debug, Default)]
pub struct Recorder {
    pass: Pass,
}

impl Recorder {
    /// The pass that was observed.
    pub fn finish(self, rows: usize, prompt: bool) -> Pass {
        Pass { rows, prompt, ..self.pass }
    }
}

impl Observer for Recorder {
    fn wants(&self) -> Wants {
        Wants { routed: true, ..Wants::default() }
    }

    fn routed(&mut self, layer: usize, experts: &[u32], _: &[f32]) {
        let mut distinct: Vec<usize> = experts.iter().map(|&e| e as usize).collect();
        distinct.sort_unstable();
        distinct.dedup();
        self.pass.layers.push((layer, distinct));
    }
}

impl Header {
    /// For a model.
    pub fn of(model: &dyn Model, random_routing: bool) -> Self {
        let config = model.config();
        Header {
            format: FORMAT.0.to_owned(),
            version: FORMAT.1,
            architecture: config.model_type.clone(),
            experts: config.moe.num_experts,
            top_k: config.moe.top_k,
            layers: config.layers.len(),
            random_routing,
        }
    }
}

impl Trace {
    /// Writes one JSON document a line: the header, then the passes.
    pub fn write(&self, out: &mut dyn Write) -> Result<()> {
        serde_json::to_writer(&mut *out, &self.header)?;
        out.write_all(b"\n")?;
        for pass in &self.passes {
            serde_json::to_writer(&mut *out, pass)?;
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    /// Reads what [`write`](Self::write) wrote and checks that it is about experts that exist.
    pub fn read(input: &mut dyn BufRead) -> Result<Self> {
        let mut lines = input.lines();
        let first = lines.next().context("the file is empty")??;
        let header: Header = serde_json::from_str(&first).context("the first line is no trace header")?;
        if (header.format.as_str(), header.version) != FORMAT {
            bail!("format {} version {} is not known to this build", header.format, header.version);
        }
        let mut passes = Vec::new();
        for (i, line) in lines.enumerate() {
            let pass: Pass = serde_json::from_str(&line?).with_context(|| format!("line {}", i + 2))?;
            let known = |(layer, experts): &(usize, Vec<usize>)| {
                *layer < header.layers && experts.iter().all(|&e| e < header.experts)
            };
            if !pass.layers.iter().all(known) {
                bail!("line {}: an expert or layer that the header does not have", i + 2);
            }
            passes.push(pass);
        }
        Ok(Trace { header, passes })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn header(layers: usize, experts: usize) -> Header {
        Header {
            format: FORMAT.0.to_owned(),
            version: FORMAT.1,
            architecture: "test".to_owned(),
            experts,
            top_k: 2,
            layers,
            random_routing: true,
        }
    }

    #[test]
    fn written_and_read_back() {
        let mut recorder = Recorder::default();
        recorder.routed(0, &[3, 1, 3, 2], &[0.0; 4]);
        recorder.routed(1, &[0, 0], &[0.0; 2]);
        let pass = recorder.finish(2, true);
        assert_eq!(pass.layers, [(0, vec![1, 2, 3]), (1, vec![0])]);
        let trace =
            Trace { header: header(2, 4), passes: vec![pass.clone(), Pass { prompt: false, ..pass }] };
        let mut bytes = Vec::new();
        trace.write(&mut bytes).unwrap();
        assert_eq!(Trace::read(&mut &bytes[..]).unwrap(), trace);
        assert!(Trace::read(&mut &bytes[..bytes.len() - 5]).is_err());
        assert!(Trace::read(&mut &b""[..]).is_err());
        let text = String::from_utf8(bytes).unwrap();
        let error = Trace::read(&mut text.replace("[0,[1,2,3]]", "[0,[1,2,9]]").as_bytes()).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error:#}");
        assert!(
            Trace::read(&mut text.replace("-trace\",\"version\":1", "-trace\",\"version\":2").as_bytes())
                .is_err()
        );
    }
}
