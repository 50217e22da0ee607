//! Sealing a page: one head's keys and values from bf16 to codes.
//!
//! The numbers of one channel (keys) or of one token (values) share a centre and
//! a step, both f16:
//!
//! ```text
//! x       not a number: 0, otherwise clamped to ±65504
//! centre  f16(lo + zero * (hi - lo) / top)           lo, hi: least and greatest; top: 255 or 15
//! step    the least f16 with centre - zero * step <= lo and hi <= centre + (top - zero) * step
//! code    zero + round((x - centre) / step)          halves to even; zero where the step is 0
//! ```

use half::{bf16, f16};
use llama4rs_tensor::{KvGeometry, SealedHead};

/// Codes of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// The code of the centre.
    pub zero: u8,
    /// The largest code.
    pub top: u8,
}

impl Codes {
    /// Codes of `bits` bits, 4 or 8.
    pub fn of(bits: usize) -> Self {
        Self { zero: 1 << (bits - 1), top: ((1u16 << bits) - 1) as u8 }
    }
}

/// The numbers that share a centre and a step.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    centre: f16,
    step: f16,
}

impl Scale {
    /// For numbers from `low` to `high`, both finite as f16.
    fn covering(codes: Codes, low: f32, high: f32) -> Self {
        let (below, above) = (codes.zero as f32, (codes.top - codes.zero) as f32);
        let centre = f16::from_f32(low + (high - low) / codes.top as f32 * below);
        let reach = ((centre.to_f32() - low) / below).max((high - centre.to_f32()) / above);
        let mut step = f16::from_f32(reach.max(0.0));
        if step.to_f32() < reach {
            step = f16::from_bits(step.to_bits() + 1);
        }
        Self { centre, step }
    }

    /// Codes of `numbers`, one by one given to `put` with their index.
    fn encode(
        self,
        codes: Codes,
        numbers: impl Iterator<Item = f32>,
        mut put: impl FnMut(usize, u8),
    ) {
        let (centre, step) = (self.centre.to_f32(), self.step.to_f32());
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        let (zero, top) = (codes.zero as f32, codes.top as f32);
        for (i, x) in numbers.enumerate() {
            let code = ((x - centre) * inverse).round_ties_even() + zero;
            put(i, code.clamp(0.0, top) as u8);
        }
    }
}

/// A number that has a place among f16.
fn tame(x: f32) -> f32 {
    match x.is_nan() {
        true => 0.0,
        false => x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()),
    }
}

/// Least and greatest.
fn range(numbers: impl Iterator<Item = f32>) -> (f32, f32) {
    numbers.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
}

/// Quantises one head of an exact page, `[keys, values][token][head_dim]` in bf16,
/// into the sections of `layout`.
pub fn seal_head(geometry: &KvGeometry, layout: &SealedHead, exact: &[u8], sealed: &mut [u8]) {
    let KvGeometry { head_dim, page_tokens, dtype, .. } = *geometry;
    let Some(bits) = dtype.code_bits() else { return };
    let codes = Codes::of(bits);
    let (keys, values) = exact.split_at(geometry.plane_bytes());
    sealed.fill(0);

    let keys = floats(keys);
    for channel in 0..head_dim {
        let numbers = keys.iter().skip(channel).step_by(head_dim).copied();
        let (low, high) = range(numbers.clone());
        let scale = Scale::covering(codes, low, high);
        put_f16(&mut sealed[layout.key_centres.clone()], channel, scale.centre);
        put_f16(&mut sealed[layout.key_steps.clone()], channel, scale.step);
        let bytes = &mut sealed[layout.key_codes.clone()];
        scale.encode(codes, numbers, |token, code| {
            put_code(bytes, bits, (token, page_tokens), (channel, layout.width), code);
        });
    }

    for (token, values) in floats(values).chunks_exact(head_dim).enumerate() {
        let (low, high) = range(values.iter().copied());
        let scale = Scale::covering(codes, low, high);
        put_f16(&mut sealed[layout.value_centres.clone()], token, scale.centre);
        put_f16(&mut sealed[layout.value_steps.clone()], token, scale.step);
        let bytes = &mut sealed[layout.value_codes.clone()];
        scale.encode(codes, values.iter().copied(), |channel, code| {
            put_code(bytes, bits, (channel, layout.width), (token, page_tokens), code);
        });
    }
}

fn floats(plane: &[u8]) -> Vec<f32> {
    let halves = plane.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]));
    halves.map(|half| tame(half.to_f32())).collect()
}

fn put_f16(section: &mut [u8], index: usize, value: f16) {
    section[2 * index..][..2].copy_from_slice(&value.to_le_bytes());
}

/// Where a code is: its byte, and its shift there. `lane` and `word` are
/// `(index, count)`: 16 lanes make a line, a lane's word has 4 bytes.
fn code_place(bits: usize, lane: (usize, usize), word: (usize, usize)) -> (usize, usize) {
    let per_word = 32 / bits;
    let line = lane.0 / 16 * (word.1 / per_word) + word.0 / per_word;
    (line * 64 + lane.0 % 16 * 4 + word.0 % 4, word.0 % per_word / 4 * 4)
}

fn put_code(section: &mut [u8], bits: usize, lane: (usize, usize), word: (usize, usize), code: u8) {
    let (byte, shift) = code_place(bits, lane, word);
    section[byte] |= code << shift;
}

#[cfg(test)]
pub use self::reading::Sealed;

/// Reading codes one by one, for the tests.
#[cfg(test)]
mod reading {
    use super::*;

    /// Keys (or values) of one head of a sealed page.
    pub struct Sealed {
        /// `[token][head_dim]`, less the code of the centre.
        pub codes: Vec<i64>,
        /// By channel (keys) or by token (values).
        pub centres: Vec<f32>,
        pub steps: Vec<f32>,
        /// The largest integer that a factor of these codes is rounded to.
        pub largest: f32,
        head_dim: usize,
        value: bool,
    }

    impl Sealed {
        pub fn new(geometry: &KvGeometry, layout: &SealedHead, head: &[u8], value: bool) -> Self {
            let KvGeometry { head_dim, page_tokens, dtype, .. } = *geometry;
            let bits = dtype.code_bits().expect("a sealed page has codes");
            let (centres, steps, codes, shared) = match value {
                false => (&layout.key_centres, &layout.key_steps, &layout.key_codes, head_dim),
                true => {
                    (&layout.value_centres, &layout.value_steps, &layout.value_codes, page_tokens)
                }
            };
            let halves = |section: &std::ops::Range<usize>| -> Vec<f32> {
                let halves = head[section.clone()].chunks(2);
                halves.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).take(shared).collect()
            };
            let bytes = &head[codes.clone()];
            let code = |i: usize| {
                let (token, channel) = ((i / head_dim, page_tokens), (i % head_dim, layout.width));
                let (byte, shift) = match value {
                    false => code_place(bits, token, channel),
                    true => code_place(bits, channel, token),
                };
                let codes = Codes::of(bits);
                (bytes[byte] >> shift & codes.top) as i64 - codes.zero as i64
            };
            Self {
                codes: (0..page_tokens * head_dim).map(code).collect(),
                centres: halves(centres),
                steps: halves(steps),
                largest: if bits == 8 { 127.0 * 255.0 } else { 127.0 },
                head_dim,
                value,
            }
        }

        /// The numbers, `[token][head_dim]`.
        pub fn floats(&self) -> Vec<f32> {
            let number = |(i, &code): (usize, &i64)| {
                let shared = if self.value { i / self.head_dim } else { i % self.head_dim };
                self.steps[shared].mul_add(code as f32, self.centres[shared])
            };
            self.codes.iter().enumerate().map(number).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::KvDtype;
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::Random;

    fn geometry(head_dim: usize, page_tokens: usize, dtype: KvDtype) -> KvGeometry {
        KvGeometry { num_layers: 1, num_kv_heads: 1, head_dim, page_tokens, dtype }
    }

    /// Bytes of an exact head with the given keys and values.
    fn exact(keys: &[f32], values: &[f32]) -> Vec<u8> {
        let numbers = keys.iter().chain(values);
        numbers.flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
    }

    /// Keys and values after sealing.
    fn sealed(geometry: &KvGeometry, keys: &[f32], values: &[f32]) -> [Vec<f32>; 2] {
        let layout = geometry.sealed_head().unwrap();
        let mut bytes = vec![0xAA; layout.bytes()];
        seal_head(geometry, &layout, &exact(keys, values), &mut bytes);
        [false, true].map(|value| Sealed::new(geometry, &layout, &bytes, value).floats())
    }

    fn any_dtype() -> impl Strategy<Value = KvDtype> {
        prop::sample::select(vec![KvDtype::Int8, KvDtype::Int4])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn every_number_is_within_half_a_step(
            head_dim in prop::sample::select(vec![1, 8, 12, 16, 32, 80, 128, 256]),
            page_tokens in prop::sample::select(vec![32, 64]),
            dtype in any_dtype(),
            size in prop::sample::select(vec![1e-4f32, 1.0, 300.0]),
            offset in prop::sample::select(vec![0.0f32, 1.0, -40.0]),
            seed in any::<u64>(),
        ) {
            let random = &mut Random(seed);
            let geometry = geometry(head_dim, page_tokens, dtype);
            let mut numbers = || -> Vec<f32> {
                let numbers = random.values(page_tokens * head_dim);
                numbers.iter().map(|x| bf16::from_f32((x + offset) * size).to_f32()).collect()
            };
            let (keys, values) = (numbers(), numbers());
            let got = sealed(&geometry, &keys, &values);
            let top = Codes::of(dtype.code_bits().unwrap()).top as f32;
            for (numbers, got, by_channel) in [(&keys, &got[0], true), (&values, &got[1], false)] {
                for (i, (x, got)) in numbers.iter().zip(got).enumerate() {
                    let shares = |j: usize| match by_channel {
                        true => j % head_dim == i % head_dim,
                        false => j / head_dim == i / head_dim,
                    };
                    let others = (0..numbers.len()).filter(|&j| shares(j)).map(|j| numbers[j]);
                    let (low, high) = range(others);
                    // Half a step, and what f16 does to the centre and the step.
                    let f16_error = (low.abs().max(high.abs()) + size) / 1024.0 + 1e-6;
                    let bound = 0.5 * (high - low) / top + f16_error;
                    prop_assert!((x - got).abs() <= bound, "{x} became {got}, bound {bound}");
                }
            }
        }
    }

    #[test]
    fn the_ends_of_a_range_are_not_cut_off() {
        for (low, high) in [(-1.0, 1.0), (19.9, 20.1), (-3e4, 6.5e4), (5.0, 5.0), (0.0, 1e-9)] {
            for codes in [Codes::of(4), Codes::of(8)] {
                let scale = Scale::covering(codes, low, high);
                let (centre, step) = (scale.centre.to_f32(), scale.step.to_f32());
                assert!(centre - codes.zero as f32 * step <= low, "{scale:?} {low}");
                assert!(
                    centre + (codes.top - codes.zero) as f32 * step >= high,
                    "{scale:?} {high}"
                );
                assert!(step <= 1.1 * (high - low) / codes.top as f32 + high.abs() / 1000.0 + 1e-7);
            }
        }
    }

    #[test]
    fn what_is_not_finite_harms_only_its_company() {
        let geometry = geometry(16, 32, KvDtype::Int8);
        let mut keys = Random(1).values(32 * 16);
        let clean = sealed(&geometry, &keys, &keys);
        (keys[3], keys[4], keys[5]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        let [got_keys, got_values] = sealed(&geometry, &keys, &keys);
        assert!(got_keys.iter().chain(&got_values).all(|x| x.is_finite()));
        assert!((got_keys[4] - 65504.0).abs() < 300.0, "{}", got_keys[4]);
        for i in 0..keys.len() {
            if !(3..6).contains(&(i % 16)) {
                assert_eq!(got_keys[i], clean[0][i], "keys share the channel");
            }
            if i >= 16 {
                assert_eq!(got_values[i], clean[1][i], "values share the token");
            }
        }
    }

    #[test]
    fn constants_are_exact_as_f16() {
        let geometry = geometry(8, 32, KvDtype::Int4);
        let keys = vec![1.5; 32 * 8];
        let values = vec![0.0; 32 * 8];
        assert_eq!(sealed(&geometry, &keys, &values), [keys, values]);
    }

    #[test]
    fn the_layout_is_as_drawn() {
        // Key of token 17, channel 6: second block of 16 tokens, lane 1.
        assert_eq!(code_place(8, (17, 64), (6, 32)), ((8 + 1) * 64 + 4 + 2, 0));
        assert_eq!(code_place(4, (17, 64), (6, 32)), (4 * 64 + 4 + 2, 4));
        // Value of token 9, channel 33: third block of 16 channels, lane 1.
        assert_eq!(code_place(8, (33, 48), (9, 64)), ((2 * 16 + 2) * 64 + 4 + 1, 0));
        assert_eq!(code_place(4, (33, 48), (9, 64)), ((2 * 8 + 1) * 64 + 4 + 1, 0));
        assert_eq!(code_place(4, (33, 48), (13, 64)), ((2 * 8 + 1) * 64 + 4 + 1, 4));
    }
}
