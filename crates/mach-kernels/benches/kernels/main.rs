//! Speed of single kernels beside the ceilings of this machine, to see what a change costs. Cases take turns, round by
//! round, so that a machine that slows down meanwhile slows all of them.
//!
//!     cargo bench -p mach-kernels -- [WORDS...] [--threads N] [--rounds N]
//!
//! Runs the cases whose names have all of the words, for instance `int8 avx512 row`.

mod attention;
mod case;
mod delta;
mod elementwise;
mod product;

use std::error::Error;

use case::Suite;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let (mut threads, mut rounds, mut words, mut timed) = (1, 5, Vec::new(), false);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<usize, Box<dyn Error>> {
            Ok(arguments.next().ok_or_else(|| format!("{argument} needs a number"))?.parse()?)
        };
        match argument.as_str() {
            "--threads" => threads = number()?.max(1),
            "--rounds" => rounds = number()?.max(1),
            // What cargo says to each benchmark; without it this is a run of the tests.
            "--bench" => timed = true,
            word => words.push(word.to_owned()),
        }
    }
    if !timed {
        println!("timings only under `cargo bench`");
        return Ok(());
    }
    let mut suite = Suite::new(threads, words);
    product::add(&mut suite)?;
    attention::add(&mut suite);
    delta::add(&mut suite);
    elementwise::add(&mut suite);
    suite.run(rounds)
}
