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

use super::work::{Sizes, Work};
use crate::simd::{Integers, Simd, Words, LANES};

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
#[derive(Clone, Copy)]
pub struct SealedPage<'a> {
    pub key_codes: &'a [u8],
    pub value_codes: &'a [u8],
    /// `f32[width]`
    pub key_centres: &'a [f32],
    pub key_steps: &'a [f32],
    /// `f32[page_tokens]`
    pub value_centres: &'a [f32],
    pub value_steps: &'a [f32],
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
    /// Factors of one query before they are rounded.
    products: Vec<f32>,
    /// Rounded factors of a row's queries, four bytes to a word:
    /// `[head][byte of the factor][word]`
    words: Vec<u32>,
    factors: Vec<Factors>,
}

impl SealedScratch {
    pub fn prepare(&mut self, sizes: Sizes) {
        let longest = sizes.width.max(sizes.padded_tokens);
        self.products.resize(longest, 0.0);
        self.words.resize(sizes.heads * 2 * longest / 4, 0);
        self.factors.resize(sizes.heads, Factors::default());
    }

    /// Rounds the factors `x * steps` of query `head`.
    #[inline(always)]
    fn round<S: Simd, const BITS: usize>(
        &mut self,
        simd: S,
        head: usize,
        x: &[f32],
        steps: &[f32],
        centres: &[f32],
    ) {
        let len = x.len();
        assert!(len.is_multiple_of(LANES) && steps.len() == len && centres.len() == len);
        let products = &mut self.products[..len];
        let (zero, magic) = (simd.splat(0.0), simd.splat(MAGIC));
        let (mut top, mut bias) = (zero, zero);
        for i in (0..len).step_by(LANES) {
            // SAFETY: `i + 16 <= len`, the length of all of them.
            unsafe {
                let x = simd.load(x.as_ptr().add(i));
                let product = simd.mul(x, simd.load(steps.as_ptr().add(i)));
                simd.store(product, products.as_mut_ptr().add(i));
                top = simd.max(simd.max(product, simd.sub(zero, product)), top);
                bias = simd.fma(x, simd.load(centres.as_ptr().add(i)), bias);
            }
        }
        let largest = largest_factor(BITS);
        let top = simd.largest(top);
        let (inverse, scale) =
            if top >= TINY { (largest / top, top / largest) } else { (0.0, 0.0) };
        let inverse = simd.splat(inverse);
        let bytes = bytes_per_factor(BITS);
        let words = &mut self.words[head * bytes * len / 4..][..bytes * len / 4];
        let (high_words, low_words) = words.split_at_mut(len / 4);
        let mut sum = zero;
        for (i, high_words) in high_words.chunks_exact_mut(LANES / 4).enumerate() {
            // SAFETY: as above.
            let product = unsafe { simd.load(products.as_ptr().add(i * LANES)) };
            let shifted = simd.add(simd.mul(product, inverse), magic);
            let factor = simd.sub(shifted, magic);
            sum = simd.add(sum, factor);
            if bytes == 1 {
                high_words.copy_from_slice(&simd.low_bytes(shifted));
            } else {
                let shifted = simd.add(simd.mul(factor, simd.splat(1.0 / BASE)), magic);
                high_words.copy_from_slice(&simd.low_bytes(shifted));
                let high = simd.sub(shifted, magic);
                let low = simd.fma(high, simd.splat(-BASE), factor);
                let low_words = &mut low_words[i * (LANES / 4)..][..LANES / 4];
                low_words.copy_from_slice(&simd.low_bytes(simd.add(low, magic)));
            }
        }
        let sum = simd.sum(sum) as i32;
        let code_zero = 1 << (BITS - 1);
        let start = match bytes {
            1 => [sum, 0],
            _ => [sum / BASE as i32, sum % BASE as i32],
        };
        let start = start.map(|sum| -code_zero * sum);
        self.factors[head] = Factors { scale, bias: simd.sum(bias), start };
    }
}

impl Work<'_> {
    /// Adds one sealed page, which every row sees whole.
    #[inline(always)]
    pub fn sealed_page<I: Integers, const BITS: usize>(
        &mut self,
        integers: I,
        scratch: &mut SealedScratch,
        page: SealedPage<'_>,
    ) {
        let simd = integers.simd();
        let Sizes { rows, heads, width, padded_tokens, .. } = self.sizes;
        for row in 0..rows {
            for head in 0..heads {
                let query = row * heads + head;
                let q = &self.queries[query * width..][..width];
                scratch.round::<_, BITS>(simd, head, q, page.key_steps, page.key_centres);
            }
            let scores = &mut self.scores[row * heads * padded_tokens..];
            let to = Scores { scores, stride: padded_tokens, scale: self.scale };
            dots::<I, BITS>(integers, scratch, heads, (padded_tokens, width), page.key_codes, to);

            self.soften(simd, row, padded_tokens);

            for head in 0..heads {
                let query = row * heads + head;
                let p = &self.scores[query * padded_tokens..][..padded_tokens];
                scratch.round::<_, BITS>(simd, head, p, page.value_steps, page.value_centres);
            }
            let acc = &mut self.partial.acc[row * heads * width..];
            let to = Values { acc, stride: width };
            dots::<I, BITS>(integers, scratch, heads, (width, padded_tokens), page.value_codes, to);
        }
    }
}

/// Where sums over codes go. (A closure might stay outside of the code that may
/// use the instructions.)
trait Place {
    /// Takes the sums of query `head` for the 16 lanes from `lane` on: `value` in
    /// units of the scale of `factors`.
    fn put<S: Simd>(&mut self, simd: S, head: usize, lane: usize, value: S::F, factors: &Factors);
}

/// Scores of one row, a lane for each token.
struct Scores<'a> {
    scores: &'a mut [f32],
    stride: usize,
    scale: f32,
}

impl Place for Scores<'_> {
    #[inline(always)]
    fn put<S: Simd>(&mut self, simd: S, head: usize, lane: usize, value: S::F, factors: &Factors) {
        let to = &mut self.scores[head * self.stride + lane..][..LANES];
        let score = simd.fma(value, simd.splat(factors.scale), simd.splat(factors.bias));
        // SAFETY: 16 floats.
        unsafe { simd.store(simd.mul(score, simd.splat(self.scale)), to.as_mut_ptr()) };
    }
}

/// Weighed values of one row, a lane for each channel.
struct Values<'a> {
    acc: &'a mut [f32],
    stride: usize,
}

impl Place for Values<'_> {
    #[inline(always)]
    fn put<S: Simd>(&mut self, simd: S, head: usize, lane: usize, value: S::F, factors: &Factors) {
        let to = &mut self.acc[head * self.stride + lane..][..LANES];
        // SAFETY: 16 floats.
        unsafe {
            let before = simd.add(simd.load(to.as_ptr()), simd.splat(factors.bias));
            simd.store(simd.fma(value, simd.splat(factors.scale), before), to.as_mut_ptr());
        }
    }
}

/// The sums of every query and lane over `depth` numbers of each lane.
#[inline(always)]
fn dots<I: Integers, const BITS: usize>(
    integers: I,
    scratch: &SealedScratch,
    heads: usize,
    (lanes, depth): (usize, usize),
    codes: &[u8],
    mut to: impl Place,
) {
    assert!(codes.len() >= lanes * depth * BITS / 8, "codes of a page");
    let mut head = 0;
    while head < heads {
        let tile = Tile { scratch, codes, depth, head };
        let left = heads - head;
        let mut lane = 0;
        let mut taken = 1;
        while lane < lanes {
            let pair = lane + 2 * LANES <= lanes;
            // As many sums at once as there are registers for.
            let done = match (I::Simd::MANY_REGISTERS, left, pair, BITS) {
                (true, 5, true, 4) => tile.run::<I, BITS, 5, 2>(integers, lane, &mut to),
                (true, 5, ..) => tile.run::<I, BITS, 5, 1>(integers, lane, &mut to),
                (true, 4.., true, 4) => tile.run::<I, BITS, 4, 2>(integers, lane, &mut to),
                (true, 4.., ..) => tile.run::<I, BITS, 4, 1>(integers, lane, &mut to),
                (true, 2.., true, _) => tile.run::<I, BITS, 2, 2>(integers, lane, &mut to),
                (true, 2.., ..) => tile.run::<I, BITS, 2, 1>(integers, lane, &mut to),
                (false, 2.., ..) => tile.run::<I, BITS, 2, 1>(integers, lane, &mut to),
                (_, _, true, _) => tile.run::<I, BITS, 1, 2>(integers, lane, &mut to),
                _ => tile.run::<I, BITS, 1, 1>(integers, lane, &mut to),
            };
            lane += done.lanes;
            taken = done.heads;
        }
        head += taken;
    }
}

/// Where a block of sums starts.
struct Tile<'a> {
    scratch: &'a SealedScratch,
    codes: &'a [u8],
    depth: usize,
    /// The first query.
    head: usize,
}

/// How many sums a tile gave.
struct Done {
    heads: usize,
    lanes: usize,
}

impl Tile<'_> {
    /// `H` queries, `B` blocks of 16 lanes from `lane` on.
    #[inline(always)]
    fn run<I: Integers, const BITS: usize, const H: usize, const B: usize>(
        &self,
        integers: I,
        lane: usize,
        to: &mut impl Place,
    ) -> Done {
        let Self { scratch, codes, depth, head } = *self;
        let simd = integers.simd();
        let bytes = bytes_per_factor(BITS);
        let block_bytes = LANES * depth * BITS / 8;
        let first = lane / LANES * block_bytes;
        assert!(codes.len() >= first + B * block_bytes, "codes of a page");
        let words = depth / 4;
        let factor_words = &scratch.words[head * bytes * words..][..H * bytes * words];
        let factors = &scratch.factors[head..][..H];

        let mut sums = [[[integers.splat(0); 2]; B]; H];
        for h in 0..H {
            for b in 0..B {
                for byte in 0..bytes {
                    sums[h][b][byte] = integers.splat(factors[h].start[byte] as u32);
                }
            }
        }
        let lines = codes[first..].as_ptr();
        if BITS == 8 {
            for i in 0..words {
                let mut codes = [integers.splat(0); B];
                for b in 0..B {
                    // SAFETY: block `b` has `words` lines of 64 bytes.
                    codes[b] = unsafe { simd.line(lines.add(b * block_bytes + i * 64)) };
                }
                for h in 0..H {
                    for byte in 0..bytes {
                        // SAFETY: `words` words for every query and byte.
                        let factor =
                            unsafe { *factor_words.get_unchecked((h * bytes + byte) * words + i) };
                        let factor = integers.splat(factor);
                        for b in 0..B {
                            let sum = &mut sums[h][b][byte];
                            *sum = integers.dot_bytes(*sum, codes[b], factor);
                        }
                    }
                }
            }
        } else {
            for i in 0..words / 2 {
                let mut codes = [[integers.splat(0); 2]; B];
                for b in 0..B {
                    // SAFETY: block `b` has half as many lines as words.
                    let line = unsafe { simd.line(lines.add(b * block_bytes + i * 64)) };
                    codes[b] = [integers.low_nibbles(line), integers.high_nibbles(line)];
                }
                for h in 0..H {
                    for half in 0..2 {
                        // SAFETY: `words` words for every query.
                        let factor =
                            unsafe { *factor_words.get_unchecked(h * words + 2 * i + half) };
                        let factor = integers.splat(factor);
                        for b in 0..B {
                            let sum = &mut sums[h][b][0];
                            *sum = integers.dot_nibbles(*sum, codes[b][half], factor);
                        }
                    }
                }
            }
        }
        for h in 0..H {
            for b in 0..B {
                let value = total::<I>(integers, sums[h][b], bytes);
                to.put(simd, head + h, lane + b * LANES, value, &factors[h]);
            }
        }
        Done { heads: H, lanes: B * LANES }
    }
}

/// The bytes' sums together, rounded once.
#[inline(always)]
fn total<I: Integers>(integers: I, sums: [Words<I>; 2], bytes: usize) -> <I::Simd as Simd>::F {
    let simd = integers.simd();
    let high = integers.to_floats(sums[0]);
    match bytes {
        1 => high,
        // Both are below 2^24 in magnitude, so these floats are exact.
        _ => simd.fma(high, simd.splat(BASE), integers.to_floats(sums[1])),
    }
}
