//! The brick of products in integers: `R` rows of codes times `P` panels.

use std::marker::PhantomData;

use super::bricks::{bricks, Brick, Product};
use super::packed_rows::group_words;
use super::panels::{FAR, NEAR};
use crate::simd::{IntegerKernel, Integers, Simd, Words, LANES};

/// The codes of an integer weight format.
pub trait IntegerCodes: Copy + Send + Sync + 'static {
    /// Words of activations, of four inputs each, that a line is multiplied by.
    const WORDS: usize;

    /// The bytes of a line that go with its word `index`.
    fn bytes<I: Integers>(integers: I, line: Words<I>, index: usize) -> Words<I>;
    /// `sum + Σ bytes * x`.
    fn dot<I: Integers>(integers: I, sum: Words<I>, bytes: Words<I>, x: Words<I>) -> Words<I>;
}

/// Lines of `int8` weights.
#[derive(Clone, Copy)]
pub struct Bytes;

impl IntegerCodes for Bytes {
    const WORDS: usize = 1;

    #[inline(always)]
    fn bytes<I: Integers>(_integers: I, line: Words<I>, _index: usize) -> Words<I> {
        line
    }
    #[inline(always)]
    fn dot<I: Integers>(integers: I, sum: Words<I>, bytes: Words<I>, x: Words<I>) -> Words<I> {
        integers.dot_bytes(sum, bytes, x)
    }
}

/// Lines of `int4` weights.
#[derive(Clone, Copy)]
pub struct Nibbles;

impl IntegerCodes for Nibbles {
    const WORDS: usize = 2;

    #[inline(always)]
    fn bytes<I: Integers>(integers: I, line: Words<I>, index: usize) -> Words<I> {
        match index {
            0 => integers.low_nibbles(line),
            _ => integers.high_nibbles(line),
        }
    }
    #[inline(always)]
    fn dot<I: Integers>(integers: I, sum: Words<I>, bytes: Words<I>, x: Words<I>) -> Words<I> {
        integers.dot_nibbles(sum, bytes, x)
    }
}

/// `out[panel][row][lane] = x[row] · weights[panel, lane]` for `x` as codes
/// (see [`super::packed_rows`]). Call it inside of a kernel.
#[inline(always)]
pub fn multiply_integers<I: Integers, C: IntegerCodes>(integers: I, mut product: Product<'_>) {
    // As many panels at once as the registers hold sums for: several streams
    // of weights, far from each other, hide the latency of the memory.
    let many = I::Simd::MANY_REGISTERS;
    bricks!(product, |R, P, brick| run::<I, C, R, P>(integers, brick), {
        1 x 4 if true;
        2 | 3 | 4 x 4 if many;
        2 x 2 if true;
        3 | 4 | 5 | 6 | 7 | 8 x 2 if many;
        1 | 2 | 3 | 4 x 1 if true;
        5 | 6 x 1 if I::Simd::TILE_ROWS >= 6;
        7 | 8 | 9 | 10 | 11 | 12 x 1 if I::Simd::TILE_ROWS >= 12;
    });
}

fn run<I: Integers, C: IntegerCodes, const R: usize, const P: usize>(
    integers: I,
    brick: Brick<'_>,
) {
    let panels = brick.panels();
    let Brick { matrix, apart, x, out, .. } = brick;
    let group = matrix.format.group().expect("an integer format");
    let groups = matrix.cols.div_ceil(group);
    assert!(x.len() >= R * groups * group_words(group), "tile inputs");
    let codes = PhantomData::<C>;
    integers.run_integers(IntegerTile::<C, R, P> { panels, groups, group, x, out, apart, codes })
}

/// See the comment of [`super`] for the order of operations.
struct IntegerTile<'a, C: IntegerCodes, const R: usize, const P: usize> {
    panels: [&'a [u8]; P],
    groups: usize,
    group: usize,
    x: &'a [u32],
    out: &'a mut [f32],
    apart: usize,
    codes: PhantomData<C>,
}

/// Bytes ahead of their use that scales are asked into the second cache.
const SCALES: usize = 128;

impl<C: IntegerCodes, const R: usize, const P: usize> IntegerKernel for IntegerTile<'_, C, R, P> {
    #[inline(always)]
    fn run<I: Integers>(self, integers: I) {
        let Self { panels, groups, group, x, out, apart, codes: _ } = self;
        let simd = integers.simd();
        let lines = group / (4 * C::WORDS);
        let code_bytes = groups * lines * 64;
        let scale_bytes = groups * LANES * 2;
        // The next brick begins with the next panel, behind the scales of this one.
        let beyond = |at: usize| if at < code_bytes { at } else { at + scale_bytes };
        for p in 0..P {
            for ahead in (0..SCALES).step_by(64) {
                simd.prefetch_far(panels[p].as_ptr().wrapping_add(code_bytes + ahead));
            }
        }
        let mut total = [[simd.splat(0.0); R]; P];
        let mut x = x.as_ptr();
        let mut at = 0;
        for g in 0..groups {
            let mut sums = [[integers.splat(0); R]; P];
            for r in 0..R {
                // SAFETY: `x` has the start, the words and the scale of every group and row.
                let start = integers.splat(unsafe { *x.add(r) });
                for p in 0..P {
                    sums[p][r] = start;
                }
            }
            x = x.wrapping_add(R);
            for _ in 0..lines {
                // SAFETY: a panel holds `code_bytes` of lines, and `at` is below that.
                let mut line = [unsafe { simd.line(panels[0].as_ptr().add(at)) }; P];
                let (near, far) = (beyond(at + NEAR), beyond(at + FAR / P));
                for p in 0..P {
                    simd.prefetch_far(panels[p].as_ptr().wrapping_add(far));
                    simd.prefetch(panels[p].as_ptr().wrapping_add(near));
                    // SAFETY: as above.
                    line[p] = unsafe { simd.line(panels[p].as_ptr().add(at)) };
                }
                at += 64;
                for word in 0..C::WORDS {
                    let mut bytes = line;
                    for p in 0..P {
                        bytes[p] = C::bytes(integers, line[p], word);
                    }
                    for r in 0..R {
                        // SAFETY: as above.
                        let x = integers.splat(unsafe { *x.add(r) });
                        for p in 0..P {
                            sums[p][r] = C::dot(integers, sums[p][r], bytes[p], x);
                        }
                    }
                    x = x.wrapping_add(R);
                }
            }
            for p in 0..P {
                let scale = panels[p].as_ptr().wrapping_add(code_bytes + g * LANES * 2);
                simd.prefetch_far(scale.wrapping_add(SCALES));
                // SAFETY: the scales, 32 bytes per group, follow the lines.
                let scale = unsafe { simd.load_bf16(scale) };
                for r in 0..R {
                    // SAFETY: as above.
                    let x_scale = simd.splat(f32::from_bits(unsafe { *x.add(r) }));
                    let dot = integers.to_floats(sums[p][r]);
                    total[p][r] = simd.fma(dot, simd.mul(scale, x_scale), total[p][r]);
                }
            }
            x = x.wrapping_add(R);
        }
        for p in 0..P {
            for r in 0..R {
                let out = &mut out[(p * apart * R + r) * LANES..][..LANES];
                // SAFETY: `out` has 16 floats.
                unsafe { simd.store(total[p][r], out.as_mut_ptr()) };
            }
        }
    }
}
