//! Sealed pages: keys and values are codes, and products are sums of integers.
//!
//! A number is `centre + step * (code - zero)`, so
//!
//! ```text
//! q · k[t]     = Σ_d q[d] centre[d]  +  Σ_d (q[d] step[d]) (code[t][d] - zero)
//! Σ_t p[t] v[t] = Σ_t p[t] centre[t]  +  Σ_t (p[t] step[t]) (code[t][d] - zero)
//! ```
//!
//! In both, the first sum is one number per query and page. The bracket of the
//! second is rounded to integers with one scale per query and page, 7 bits for
//! 4-bit codes and 15 bits (two bytes) for 8-bit codes, so that it adds next to
//! nothing to the error of the codes, and the sum is exact.

use std::ops::Range;

use super::work::{Sizes, Work};
use crate::simd::{IntegerKernel, Integers, Simd, Words, LANES};

/// The base of a number of two bytes, each in `-127..=127`.
const BASE: f32 = 255.0;
/// `1.5 * 2^23`: added to a small number it leaves the rounded integer in the low bits.
const MAGIC: f32 = 12_582_912.0;
/// Smaller factors count as zeros: their inverse stays finite.
const TINY: f32 = 1e-30;

/// Bytes of the integer that stands for a factor of a code.
pub const fn bytes_per_factor(bits: usize) -> usize {
    if bits == 8 {
        2
    } else {
        1
    }
}

/// The largest of these integers.
pub const fn largest_factor(bits: usize) -> f32 {
    if bits == 8 {
        127.0 * BASE
    } else {
        127.0
    }
}

/// One head of a sealed page.
pub struct SealedPage<'a> {
    /// All bytes of the head, and where the codes are.
    pub head: &'a [u8],
    pub key_codes: Range<usize>,
    pub value_codes: Range<usize>,
    /// Of each channel.
    pub keys: Scales<'a>,
    /// Of each token.
    pub values: Scales<'a>,
}

/// Centres and steps.
#[derive(Clone, Copy)]
pub struct Scales<'a> {
    pub centres: &'a [f32],
    pub steps: &'a [f32],
}

/// Factors of one query as integers.
#[derive(Clone, Copy, Default)]
pub struct Factors {
    /// What an integer of one stands for.
    scale: f32,
    /// What does not depend on the codes.
    bias: f32,
    /// `-zero` times the sum of the integers: by byte, to be weighed with [`BASE`].
    start: [i32; 2],
}

/// Working memory for sealed pages.
#[derive(Default)]
pub struct SealedScratch {
    /// Factors of some heads before they are rounded.
    products: Vec<f32>,
    /// Rounded factors of these heads, four bytes to a word:
    /// `[head][byte of the factor][word]`
    words: Vec<u32>,
}

/// Most heads that are worked on together.
const MOST_HEADS: usize = 5;

impl SealedScratch {
    pub fn prepare(&mut self, sizes: Sizes) {
        let longest = sizes.width.max(sizes.padded_tokens);
        self.products.resize(MOST_HEADS * longest, 0.0);
        self.words.resize(MOST_HEADS * 2 * longest / 4, 0);
    }

    /// Rounds the factors `x * steps` of `H` heads, which follow each other in `x`.
    #[inline(always)]
    fn round<S: Simd, const BITS: usize, const H: usize>(
        &mut self,
        simd: S,
        x: &[f32],
        Scales { steps, centres }: Scales<'_>,
    ) -> [Factors; H] {
        let len = steps.len();
        assert!(len.is_multiple_of(LANES) && centres.len() == len && x.len() >= H * len);
        let products = self.products[..H * len].as_mut_ptr();
        let (zero, magic) = (simd.splat(0.0), simd.splat(MAGIC));
        // Sums of the rounded factors, then products with the centres.
        let (mut tops, mut sums) = ([zero; H], [zero; 2 * MOST_HEADS + 2]);
        for i in (0..len).step_by(LANES) {
            // SAFETY: `i + 16 <= len`, the length of the scales and of every head.
            unsafe {
                let step = simd.load(steps.as_ptr().add(i));
                let centre = simd.load(centres.as_ptr().add(i));
                for h in 0..H {
                    let x = simd.load(x.as_ptr().add(h * len + i));
                    let product = simd.mul(x, step);
                    simd.store(product, products.add(h * len + i));
                    tops[h] = simd.max(simd.max(product, simd.sub(zero, product)), tops[h]);
                    sums[H + h] = simd.fma(x, centre, sums[H + h]);
                }
            }
        }
        let largest = largest_factor(BITS);
        let (mut inverses, mut scales) = ([zero; H], [0.0; H]);
        for h in 0..H {
            let top = simd.largest(tops[h]);
            if top >= TINY {
                (inverses[h], scales[h]) = (simd.splat(largest / top), top / largest);
            }
        }
        let (bytes, count) = (bytes_per_factor(BITS), len / 4);
        let words = &mut self.words[..H * bytes * count];
        for i in (0..len).step_by(LANES) {
            for h in 0..H {
                // SAFETY: as above.
                let product = unsafe { simd.load(products.add(h * len + i)) };
                let shifted = simd.add(simd.mul(product, inverses[h]), magic);
                let factor = simd.sub(shifted, magic);
                sums[h] = simd.add(sums[h], factor);
                let at = h * bytes * count + i / 4;
                if bytes == 1 {
                    put_bytes(simd, shifted, &mut words[at..]);
                } else {
                    let shifted = simd.add(simd.mul(factor, simd.splat(1.0 / BASE)), magic);
                    put_bytes(simd, shifted, &mut words[at..]);
                    let high = simd.sub(shifted, magic);
                    let low = simd.fma(high, simd.splat(-BASE), factor);
                    put_bytes(simd, simd.add(low, magic), &mut words[at + count..]);
                }
            }
        }
        let mut totals = [0.0; 2 * MOST_HEADS + 2];
        for i in (0..2 * H).step_by(4) {
            let four = simd.sum_four([sums[i], sums[i + 1], sums[i + 2], sums[i + 3]]);
            totals[i..i + 4].copy_from_slice(&four);
        }
        let mut factors = [Factors::default(); H];
        for h in 0..H {
            let sum = totals[h] as i32;
            let sums = match bytes {
                1 => [sum, 0],
                _ => [sum / BASE as i32, sum % BASE as i32],
            };
            let zero = 1 << (BITS - 1);
            let start = [-zero * sums[0], -zero * sums[1]];
            factors[h] = Factors { scale: scales[h], bias: totals[H + h], start };
        }
        factors
    }
}

/// The low bytes of 16 lanes, four to a word.
#[inline(always)]
fn put_bytes<S: Simd>(simd: S, bytes: S::F, words: &mut [u32]) {
    words[..LANES / 4].copy_from_slice(&simd.low_bytes(bytes));
}

/// A sealed page for the queries of a task; every row sees it whole.
pub struct AddSealed<'w, 'a, const BITS: usize> {
    pub work: &'w mut Work<'a>,
    pub scratch: &'w mut SealedScratch,
    pub page: SealedPage<'w>,
}

impl<const BITS: usize> IntegerKernel for AddSealed<'_, '_, BITS> {
    #[inline(always)]
    fn run<I: Integers>(mut self, integers: I) {
        let Sizes { rows, padded_tokens, .. } = self.work.sizes;
        for row in 0..rows {
            self.each::<I>(integers, row, Side::Keys);
            self.work.soften(integers.simd(), row, padded_tokens, None);
            self.each::<I>(integers, row, Side::Values);
        }
    }
}

/// Which half of a page.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Keys,
    Values,
}

impl<const BITS: usize> AddSealed<'_, '_, BITS> {
    /// Keys to scores, or probabilities to weighed values, for the heads of a row:
    /// as many at once as there are registers for.
    #[inline(always)]
    fn each<I: Integers>(&mut self, integers: I, row: usize, side: Side) {
        let heads = self.work.sizes.heads;
        let (mut query, end) = (row * heads, (row + 1) * heads);
        while query < end {
            query += match end - query {
                5 if I::Simd::MANY_REGISTERS => self.some::<I, 5>(integers, query, side),
                4.. if I::Simd::MANY_REGISTERS => self.some::<I, 4>(integers, query, side),
                2.. => self.some::<I, 2>(integers, query, side),
                _ => self.some::<I, 1>(integers, query, side),
            };
        }
    }

    /// The same for `H` heads from `query` on; gives `H`.
    #[inline(always)]
    fn some<I: Integers, const H: usize>(
        &mut self,
        integers: I,
        query: usize,
        side: Side,
    ) -> usize {
        let Self { work, scratch, page } = self;
        let simd = integers.simd();
        let Sizes { width, padded_tokens, .. } = work.sizes;
        let (input, depth, scales, section) = match side {
            Side::Keys => (work.queries, width, page.keys, &page.key_codes),
            Side::Values => (&*work.scores, padded_tokens, page.values, &page.value_codes),
        };
        let factors = scratch.round::<_, BITS, H>(simd, &input[query * depth..], scales);
        // The first query asks for the next page.
        let next = if query == 0 { work.next } else { std::ptr::null() };
        let codes = Codes::new(page, section, depth, next);
        let to = match side {
            Side::Keys => Place {
                floats: &mut work.scores[query * padded_tokens..],
                stride: padded_tokens,
                scale: Some(work.scale),
            },
            Side::Values => {
                Place { floats: &mut work.partial.acc[query * width..], stride: width, scale: None }
            }
        };
        codes.dots::<I, BITS, H>(integers, &scratch.words, &factors, to);
        H
    }
}

/// Where sums over codes go: `floats[head * stride + lane]`.
struct Place<'a> {
    floats: &'a mut [f32],
    stride: usize,
    /// `Some`: they are scores, to be scaled; `None`: they are added to what is there.
    scale: Option<f32>,
}

impl Place<'_> {
    /// Takes the sums of a head for the 16 lanes from `lane` on, in units of the
    /// scale of `factors`.
    #[inline(always)]
    fn put<S: Simd>(&mut self, simd: S, head: usize, lane: usize, value: S::F, factors: &Factors) {
        let to = &mut self.floats[head * self.stride + lane..][..LANES];
        let (scale, bias) = (simd.splat(factors.scale), simd.splat(factors.bias));
        // SAFETY: 16 floats.
        unsafe {
            let result = match self.scale {
                Some(all) => simd.mul(simd.fma(value, scale, bias), simd.splat(all)),
                None => simd.fma(value, scale, simd.add(simd.load(to.as_ptr()), bias)),
            };
            simd.store(result, to.as_mut_ptr());
        }
    }
}

/// Codes in blocks of 16 lanes.
#[derive(Clone, Copy)]
struct Codes<'a> {
    bytes: &'a [u8],
    /// Numbers of each lane.
    depth: usize,
    /// As many bytes that are wanted soon; null: none.
    next: *const u8,
}

impl<'a> Codes<'a> {
    /// A section of the page; `next` is the page that comes next, or null.
    #[inline(always)]
    fn new(page: &SealedPage<'a>, section: &Range<usize>, depth: usize, next: *const u8) -> Self {
        let next = if next.is_null() { next } else { next.wrapping_add(section.start) };
        Self { bytes: &page.head[section.clone()], depth, next }
    }
}

impl Codes<'_> {
    /// The sums of `H` heads for every lane.
    #[inline(always)]
    fn dots<I: Integers, const BITS: usize, const H: usize>(
        &self,
        integers: I,
        words: &[u32],
        factors: &[Factors; H],
        mut to: Place<'_>,
    ) {
        let Self { bytes: codes, depth, next } = *self;
        let simd = integers.simd();
        let count = depth / 4 * bytes_per_factor(BITS);
        assert!(words.len() >= H * count, "factors of the heads");
        let block_bytes = LANES * depth * BITS / 8;
        for (block, lines) in codes.chunks_exact(block_bytes).enumerate() {
            // Two sums for each head: high and low bytes of the factors, or the
            // products with low and with high nibbles.
            let mut sums = [[integers.splat(0); 2]; H];
            for h in 0..H {
                for half in 0..2 {
                    sums[h][half] = integers.splat(factors[h].start[half] as u32);
                }
            }
            for (i, line) in lines.chunks_exact(64).enumerate() {
                if !next.is_null() {
                    simd.prefetch_far(next.wrapping_add(block * block_bytes + i * 64));
                }
                // SAFETY: 64 bytes.
                let line = unsafe { simd.line(line.as_ptr()) };
                let halves = match BITS {
                    8 => [line, line],
                    _ => [integers.low_nibbles(line), integers.high_nibbles(line)],
                };
                for h in 0..H {
                    for half in 0..2 {
                        let at = match BITS {
                            8 => h * count + half * (count / 2) + i,
                            _ => h * count + 2 * i + half,
                        };
                        // SAFETY: `count` words for every head, two for every line.
                        let factor = integers.splat(unsafe { *words.get_unchecked(at) });
                        let sum = &mut sums[h][half];
                        *sum = match BITS {
                            8 => integers.dot_bytes(*sum, halves[half], factor),
                            _ => integers.dot_nibbles(*sum, halves[half], factor),
                        };
                    }
                }
            }
            for h in 0..H {
                let value = total::<I, BITS>(integers, sums[h]);
                to.put(simd, h, block * LANES, value, &factors[h]);
            }
        }
    }
}

/// Two sums together. Both are below 2^24 in magnitude, so these floats are exact.
#[inline(always)]
fn total<I: Integers, const BITS: usize>(integers: I, sums: [Words<I>; 2]) -> <I::Simd as Simd>::F {
    let simd = integers.simd();
    let [a, b] = [integers.to_floats(sums[0]), integers.to_floats(sums[1])];
    match BITS {
        8 => simd.fma(a, simd.splat(BASE), b),
        _ => simd.add(a, b),
    }
}
