//! Every operation of every instruction set of this machine, against the scalar twin, bit by bit.

use super::Simd;
use crate::{Isa, Kernel, dispatch};

/// A small generator; its words are the test's inputs.
struct Words(u64);

impl Words {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    /// Floats of all sizes that arithmetic meets: from 2^-40 to 2^40, both signs, now and then a zero.
    fn float(&mut self) -> f32 {
        let bits = self.next();
        let exponent = 127 - 40 + self.next() % 80;
        if self.next().is_multiple_of(16) {
            0.0
        } else {
            f32::from_bits((bits & 0x807F_FFFF) | (exponent << 23))
        }
    }

    fn floats(&mut self) -> [f32; 16] {
        std::array::from_fn(|_| self.float())
    }
}

/// Runs each operation on the same inputs and writes down the bits of each result.
struct Everything<'a> {
    seed: u64,
    out: &'a mut Vec<u32>,
}

impl Kernel for Everything<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut words = Words(self.seed);
        let out = self.out;
        let floats = |out: &mut Vec<u32>, x: S::F| {
            // An unaligned target: results land anywhere in the kernels.
            let mut to = [0f32; 17];
            // SAFETY: 16 values from index 1 on.
            unsafe { s.store(to.as_mut_ptr().add(1), x) };
            out.extend(to[1..].iter().map(|v| if v.is_nan() { 0x7FC0_0000 } else { v.to_bits() }));
        };
        let (x, y, z) = (words.floats(), words.floats(), words.floats());
        // SAFETY: arrays of 16.
        let (a, b, c) = unsafe { (s.load(x.as_ptr()), s.load(y.as_ptr()), s.load(z.as_ptr())) };
        let mut mixed = x;
        (mixed[3], mixed[7], mixed[11]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        // SAFETY: an array of 16.
        let d = unsafe { s.load(mixed.as_ptr()) };
        for v in [s.splat(x[0]), s.add(a, b), s.sub(a, b), s.mul(a, b), s.div(a, b), s.fma(a, b, c), s.abs(a)]
        {
            floats(out, v);
        }
        for v in [s.min(a, b), s.max(a, b), s.min(d, b), s.max(b, d), s.zero_below(d, y[0], b), s.abs(d)] {
            floats(out, v);
        }
        out.push(s.reduce_add(a).to_bits());
        out.push(s.reduce_max(s.abs(a)).to_bits());
        let many: [[f32; 16]; 16] = std::array::from_fn(|_| words.floats());
        // SAFETY: arrays of 16.
        floats(out, s.reduce_add_16(std::array::from_fn(|i| unsafe { s.load(many[i].as_ptr()) })));

        // bfloat16, with values that are ties, infinite, NaN and about to overflow.
        let halves: [u16; 17] = std::array::from_fn(|_| words.next() as u16 & 0xBFFF);
        // SAFETY: 16 values from index 1 on.
        floats(out, unsafe { s.load_bf16(halves.as_ptr().add(1)) });
        let mut ties = mixed;
        (ties[0], ties[1], ties[2]) = (f32::from_bits(0x3F80_8000), f32::from_bits(0x3F81_8000), f32::MAX);
        let mut stored = [0u16; 17];
        for source in [&x, &ties] {
            // SAFETY: arrays of 16, and 16 values from index 1 on.
            unsafe { s.store_bf16(stored.as_mut_ptr().add(1), s.load(source.as_ptr())) };
            let nan = |h: u16| h & 0x7F80 == 0x7F80 && h & 0x7F != 0;
            out.extend(stored[1..].iter().map(|&h| if nan(h) { 0x7FC0 } else { u32::from(h) }));
        }

        // Integers: rounding with ties, conversion of large values, powers, narrow stores.
        let near: [f32; 16] =
            std::array::from_fn(|i| (words.next() % 4001) as f32 / 2.0 - 1000.0 + i as f32 / 16.0);
        // SAFETY: an array of 16.
        let near = unsafe { s.load(near.as_ptr()) };
        let sums = s.add_int(s.to_int(near), s.splat_int(words.next() as i32));
        floats(out, s.to_float(s.to_int(near)));
        floats(out, s.to_float(sums));
        let powers: [f32; 16] = std::array::from_fn(|_| (words.next() % 254) as f32 - 126.0);
        // SAFETY: an array of 16.
        floats(out, s.exp2_int(s.to_int(unsafe { s.load(powers.as_ptr()) })));
        let small: [f32; 16] = std::array::from_fn(|_| (words.next() % 256) as f32 - 128.0);
        let mut bytes = [0i8; 17];
        // SAFETY: an array of 16, and 16 bytes from index 1 on.
        unsafe { s.store_i8(bytes.as_mut_ptr().add(1), s.to_int(s.load(small.as_ptr()))) };
        out.extend(bytes[1..].iter().map(|&b| b as u32));

        // Bytes: nibbles, tables, dot products; the extremes come first.
        // Sums stay below 2^24, so a float holds them exactly.
        let integers = |out: &mut Vec<u32>, x: S::I| floats(out, s.to_float(x));
        let mut codes: [u8; 65] = std::array::from_fn(|_| words.next() as u8);
        codes[1..9].copy_from_slice(&[255, 255, 255, 255, 128, 128, 127, 0]);
        // SAFETY: 64 bytes from index 1 on.
        let w = unsafe { s.load_bytes(codes.as_ptr().add(1)) };
        let table: [u8; 16] = std::array::from_fn(|i| ((i * 7 + 3) % 32) as u8);
        let reals: [f32; 16] = words.floats();
        let zero = s.splat_int(0);
        for a in [0x8080_8080u32 as i32, 0x7F7F_7F7F, words.next() as i32, words.next() as i32] {
            let start = s.splat_int((words.next() % 1000) as i32);
            integers(out, s.dot(start, w, a));
            integers(out, s.dot(zero, w, a));
            integers(out, s.dot_small(start, s.low_nibbles(w), a));
            integers(out, s.dot_small(start, s.high_nibbles(w), a));
            integers(out, s.dot_small(zero, s.lookup_bytes(&table, s.high_nibbles(w)), a));
            integers(out, s.dot_small(start, s.take_bits(w, 2, 6, 0), a));
            // Every way in which planes of tiles are taken apart and put together.
            for (width, to) in [(1, 0), (1, 2), (1, 4), (2, 0), (2, 4), (4, 0)] {
                for from in (0..8).step_by(width) {
                    let part = s.take_bits(w, from, width, to);
                    integers(out, s.dot_small(zero, part, a));
                    integers(out, s.dot_small(zero, s.or_bytes(part, s.low_nibbles(w)), a));
                }
            }
            integers(out, s.dot(zero, s.take_bits(w, 0, 8, 0), a));
        }
        // SAFETY: 8 and 16 bytes from index 1 on.
        let (nibbles, wide) =
            unsafe { (s.load_nibbles(codes.as_ptr().add(1)), s.load_u8(codes.as_ptr().add(1))) };
        integers(out, nibbles);
        integers(out, wide);
        for at in 1..20 {
            let from = codes.as_ptr().wrapping_add(at);
            // SAFETY: up to 12 bytes, and there are 65.
            let all = unsafe {
                [
                    s.load_codes::<2>(from),
                    s.load_codes::<3>(from),
                    s.load_codes::<5>(from),
                    s.load_codes::<6>(from),
                ]
            };
            for x in all {
                integers(out, x);
            }
        }
        floats(out, s.lookup(&reals, nibbles));
        s.prefetch(std::ptr::null());
    }
}

#[test]
fn every_instruction_set_returns_the_scalar_bits() {
    for seed in 1..400u64 {
        let seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut expected = Vec::new();
        dispatch(Isa::SCALAR, Everything { seed, out: &mut expected });
        for isa in Isa::available() {
            let mut found = Vec::new();
            dispatch(isa, Everything { seed, out: &mut found });
            assert_eq!(found.len(), expected.len());
            let differs = found.iter().zip(&expected).position(|(f, e)| f != e);
            assert_eq!(differs, None, "{isa}, seed {seed:#x}: the first word that differs");
        }
    }
}
