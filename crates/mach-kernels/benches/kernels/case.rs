//! What is timed, and how.

use std::error::Error;
use std::time::Instant;

use mach_kernels::ceiling::{int8_dot, read_bandwidth};
use mach_kernels::{Cores, Isa};

/// What bounds a case, and how much of it one run takes.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Bytes read from memory.
    Bytes(usize),
    /// Products of bytes.
    Dots(usize),
    /// Rows, bound by nothing that is measured here.
    Rows(usize),
}

struct Case {
    name: String,
    /// The case that it is compared with.
    beside: Option<String>,
    work: Work,
    cores: Cores,
    run: Box<dyn FnMut(&mut Cores)>,
    /// Runs in one timing.
    repeat: u32,
    /// Seconds of one run, one entry a round.
    seconds: Vec<f64>,
}

impl Case {
    fn time(&mut self) -> f64 {
        let start = Instant::now();
        for _ in 0..self.repeat {
            (self.run)(&mut self.cores);
        }
        start.elapsed().as_secs_f64() / f64::from(self.repeat)
    }

    fn best(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// The cases that were asked for.
pub(crate) struct Suite {
    threads: usize,
    words: Vec<String>,
    cases: Vec<Case>,
}

/// A timing is not shorter than this.
const LEAST: f64 = 0.01;

impl Suite {
    pub(crate) fn new(threads: usize, words: Vec<String>) -> Suite {
        Suite { threads, words, cases: Vec::new() }
    }

    /// Whether a case of this name was asked for: making its data can be spared if not.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.words.iter().all(|word| name.split_whitespace().any(|part| part == word))
    }

    /// Adds a case, if it was asked for.
    pub(crate) fn add(
        &mut self,
        name: String,
        beside: Option<String>,
        isa: Isa,
        work: Work,
        run: impl FnMut(&mut Cores) + 'static,
    ) {
        if self.wants(&name) {
            let cores = Cores::new(self.threads, isa);
            let case = Case { name, beside, work, cores, run: Box::new(run), repeat: 1, seconds: Vec::new() };
            self.cases.push(case);
        }
    }

    /// Times all cases in turns and prints a table.
    pub(crate) fn run(mut self, rounds: usize) -> Result<(), Box<dyn Error>> {
        println!("{} threads, best of {rounds} rounds; in brackets the slowest round", self.threads);
        let (mut bandwidth, mut dots) = (0.0f64, 0.0f64);
        for case in &mut self.cases {
            case.time();
            case.repeat = (LEAST / case.time()).clamp(1.0, 1e6).ceil() as u32;
        }
        let needed = |f: fn(&Work) -> bool| self.cases.iter().any(|c| f(&c.work));
        let (reads, products) =
            (needed(|w| matches!(w, Work::Bytes(_))), needed(|w| matches!(w, Work::Dots(_))));
        for _ in 0..rounds {
            if reads {
                let found = read_bandwidth(&[self.threads], 256 << 20, 2)?;
                bandwidth = found.iter().fold(bandwidth, |most, f| most.max(f.bytes_per_second));
            }
            if products {
                dots = dots.max(int8_dot(self.threads, 1).macs_per_second);
            }
            for case in &mut self.cases {
                let seconds = case.time();
                case.seconds.push(seconds);
            }
        }
        for case in &self.cases {
            let best = case.best();
            let worst = case.seconds.iter().copied().fold(0.0, f64::max);
            let share = |speed: f64, ceiling: f64| 100.0 * speed / ceiling;
            let speed = match case.work {
                Work::Bytes(n) => {
                    let speed = n as f64 / best;
                    format!(
                        "{:7.2} GB/s, {:3.0} % of {:.1}",
                        speed / 1e9,
                        share(speed, bandwidth),
                        bandwidth / 1e9
                    )
                }
                Work::Dots(n) => {
                    let speed = n as f64 / best;
                    format!("{:7.1} GMAC/s, {:3.0} % of {:.0}", speed / 1e9, share(speed, dots), dots / 1e9)
                }
                Work::Rows(n) => format!("{:7.2} us a row", best * 1e6 / n as f64),
            };
            let other = case.beside.as_ref().and_then(|name| self.cases.iter().find(|c| c.name == *name));
            let beside = other.map_or(String::new(), |other| {
                format!(", {:.2} of the time of `{}`", best / other.best(), other.name)
            });
            println!("{:34} {:9.1} us [{:9.1}]  {speed}{beside}", case.name, best * 1e6, worst * 1e6);
        }
        Ok(())
    }
}
