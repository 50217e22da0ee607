//! Attention as it is defined, one query at a time, and once more in double precision.

use llama4rs_tensor::{KvDtype, KvSpan, PageForm, PageId};

use super::SEGMENT_TOKENS;
use crate::kernels::exp::reference::exp;
use crate::kernels::kv_pages::{rotate, KvPages, Sealed};
use crate::simd::pairs::{factor, SUM_SCALE};
use crate::simd::LANES;
use crate::{Arithmetic, Tensor};

/// Keys or values of one head: `[token][head_dim]` of one page.
fn plane(pool: &KvPages, page: PageId, layer: usize, head: usize, value: bool) -> Vec<f32> {
    let bytes = pool.head(page, layer, head);
    if page.form() == PageForm::Sealed {
        return Sealed::new(pool.geometry(), pool.sealed_head().unwrap(), bytes, value).floats();
    }
    let plane = bytes.chunks(bytes.len() / 2).nth(value as usize).unwrap();
    match pool.geometry().dtype {
        KvDtype::F32 => {
            plane.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        _ => plane
            .chunks_exact(2)
            .map(|b| f32::from_bits((u16::from_le_bytes([b[0], b[1]]) as u32) << 16))
            .collect(),
    }
}

/// A sum in 16 lanes, then a tree.
fn tree(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes.to_vec();
    while lanes.len() > 1 {
        let (low, high) = lanes.split_at(lanes.len() / 2);
        lanes = low.iter().zip(high).map(|(a, b)| a + b).collect();
    }
    lanes[0]
}

/// 16 lanes, then a tree.
fn dot<'a>(pairs: impl Iterator<Item = (&'a f32, &'a f32)>) -> f32 {
    let mut lanes = [0.0f32; LANES];
    pairs.enumerate().for_each(|(i, (a, b))| lanes[i % LANES] = a.mul_add(*b, lanes[i % LANES]));
    tree(lanes)
}

/// A sum over pairs, of which the second product comes first.
fn pair_dot(factors: &[f32], number: impl Fn(usize) -> f32) -> f32 {
    let number = |i: usize| if number(i).is_subnormal() { 0.0 } else { number(i) };
    (0..factors.len()).step_by(2).fold(0.0, |sum: f32, i| {
        let sum = match factors.get(i + 1) {
            Some(&second) => number(i + 1).mul_add(second, sum),
            None => sum,
        };
        number(i).mul_add(factors[i], sum)
    })
}

/// `x * steps` as integers, what one of them stands for, and `x · centres`.
fn round(x: &[f32], page: &Sealed) -> (Vec<i64>, f32, f32) {
    let products: Vec<f32> = x.iter().zip(&page.steps).map(|(x, step)| x * step).collect();
    let top = products.iter().fold(0.0f32, |top, x| top.max(x.abs()));
    let (inverse, scale) = match top >= 1e-30 {
        true => (page.largest / top, top / page.largest),
        false => (0.0, 0.0),
    };
    let integers = products.iter().map(|x| (x * inverse).round_ties_even() as i64).collect();
    (integers, scale, dot(x.iter().zip(&page.centres)))
}

struct Sums {
    largest: f32,
    sum: f32,
    acc: Vec<f32>,
}

impl Sums {
    fn new(width: usize) -> Self {
        Self { largest: f32::NEG_INFINITY, sum: 0.0, acc: vec![0.0; width] }
    }

    /// Adds one page of which the query has these scores; `add` adds its values,
    /// weighed by the probabilities, to the accumulators.
    fn page(&mut self, scores: &[f32], add: impl FnOnce(&[f32], &mut [f32])) {
        let largest = scores.iter().fold(self.largest, |m, &s| m.max(s));
        let factor = exp(self.largest - largest);
        let p: Vec<f32> = scores.iter().map(|s| exp(s - largest)).collect();
        let mut lanes = [0.0; LANES];
        p.iter().enumerate().for_each(|(t, p)| lanes[t % LANES] += p);
        self.largest = largest;
        self.sum = self.sum.mul_add(factor, tree(lanes));
        self.acc.iter_mut().for_each(|acc| *acc *= factor);
        add(&p, &mut self.acc);
    }

    /// A page of floats, of which the query sees all.
    fn exact_page(&mut self, query: &[f32], keys: &[f32], values: &[f32], scale: f32) {
        let width = query.len();
        let scores: Vec<f32> =
            keys.chunks_exact(width).map(|key| dot(query.iter().zip(key)) * scale).collect();
        self.page(&scores, |p, acc| {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (t, p) in p.iter().enumerate() {
                    *acc = p.mul_add(values[t * width + i], *acc);
                }
            }
        });
    }

    /// A page of bf16 numbers in pairs.
    fn pair_page(&mut self, query: &[f32], keys: &[f32], values: &[f32], scale: f32) {
        let width = query.len();
        let rounded = |x: &[f32]| -> Vec<f32> { x.iter().map(|&x| factor(x).to_f32()).collect() };
        let q = rounded(query);
        let scores: Vec<f32> = keys
            .chunks_exact(width)
            .map(|key| pair_dot(&q, |i| key[i]) * SUM_SCALE * scale)
            .collect();
        let largest = scores.iter().fold(self.largest, |m, &s| m.max(s));
        let change = exp(self.largest - largest);
        let p: Vec<f32> = scores.iter().map(|s| exp(s - largest)).collect();
        let p = rounded(&p);
        let mut lanes = [0.0; LANES];
        p.iter().enumerate().for_each(|(t, p)| lanes[t % LANES] += p);
        self.largest = largest;
        self.sum = self.sum.mul_add(change, tree(lanes) * SUM_SCALE);
        for (i, acc) in self.acc.iter_mut().enumerate() {
            let part = pair_dot(&p, |t| values[t * width + i]);
            *acc = part.mul_add(SUM_SCALE, *acc * change);
        }
    }

    /// A page of codes.
    fn sealed_page(&mut self, query: &[f32], keys: &Sealed, values: &Sealed, scale: f32) {
        let width = query.len();
        let tokens = values.centres.len();
        let (r, a, bias) = round(query, keys);
        let score = |t: usize| {
            let sum: i64 = (0..width).map(|d| r[d] * keys.codes[t * width + d]).sum();
            (sum as f32).mul_add(a, bias) * scale
        };
        let scores: Vec<f32> = (0..tokens).map(score).collect();
        self.page(&scores, |p, acc| {
            let (r, b, bias) = round(p, values);
            for (i, acc) in acc.iter_mut().enumerate() {
                let sum: i64 = (0..tokens).map(|t| r[t] * values.codes[t * width + i]).sum();
                *acc = (sum as f32).mul_add(b, *acc + bias);
            }
        });
    }

    fn merge(&mut self, segment: &Sums) {
        let largest = self.largest.max(segment.largest);
        let (old, new) = (exp(self.largest - largest), exp(segment.largest - largest));
        self.largest = largest;
        self.sum = segment.sum.mul_add(new, self.sum * old);
        for (acc, segment) in self.acc.iter_mut().zip(&segment.acc) {
            *acc = segment.mul_add(new, *acc * old);
        }
    }
}

/// Calls `query(out, q, layer pages, visible)` for every head of every row of the spans.
fn for_each_query(
    pool: &KvPages,
    queries: &Tensor,
    spans: &[KvSpan],
    mut query: impl FnMut(usize, &[f32], usize, &[PageId], usize),
) {
    let width = pool.geometry().head_dim;
    let heads = queries.cols() / width;
    for span in spans {
        for (i, row) in span.rows.clone().enumerate() {
            for head in 0..heads {
                let kv_head = head / (heads / pool.geometry().num_kv_heads);
                let q = &queries.row(row)[head * width..(head + 1) * width];
                let at = row * queries.cols() + head * width;
                query(at, q, kv_head, &span.pages, span.visible + i);
            }
        }
    }
}

/// In the order of operations of [`super`].
pub fn attend(
    pool: &KvPages,
    layer: usize,
    queries: &Tensor,
    spans: &[KvSpan],
    scale: f32,
    arithmetic: Arithmetic,
) -> Vec<f32> {
    let (width, page_tokens) = (pool.geometry().head_dim, pool.geometry().page_tokens);
    let in_pairs = arithmetic == Arithmetic::Fast
        && pool.geometry().dtype != KvDtype::F32
        && width % 32 == 0
        && page_tokens % 16 == 0;
    let mut out = vec![0.0; queries.values().len()];
    for_each_query(pool, queries, spans, |at, q, kv_head, pages, visible| {
        let mut total = Sums::new(width);
        for (s, segment_pages) in pages.chunks((SEGMENT_TOKENS / page_tokens).max(1)).enumerate() {
            let mut segment = Sums::new(width);
            for (i, &page) in segment_pages.iter().enumerate() {
                let before = (s * (SEGMENT_TOKENS / page_tokens).max(1) + i) * page_tokens;
                let seen = visible.saturating_sub(before).min(page_tokens) * width;
                if page.form() == PageForm::Sealed {
                    let section = |value| {
                        let head = pool.head(page, layer, kv_head);
                        Sealed::new(pool.geometry(), pool.sealed_head().unwrap(), head, value)
                    };
                    segment.sealed_page(q, &section(false), &section(true), scale);
                } else if seen > 0 {
                    let keys = plane(pool, page, layer, kv_head, false);
                    let values = plane(pool, page, layer, kv_head, true);
                    let (keys, values) = (&keys[..seen], &values[..seen]);
                    match in_pairs {
                        true => segment.pair_page(q, keys, values, scale),
                        false => segment.exact_page(q, keys, values, scale),
                    }
                }
            }
            if segment.sum > 0.0 {
                total.merge(&segment);
            }
        }
        for (out, acc) in out[at..].iter_mut().zip(&total.acc) {
            *out = acc / total.sum;
        }
        if pool.geometry().dtype.rotates_values() {
            rotate(&mut out[at..at + width]);
        }
    });
    out
}

/// [`rotate`], from the matrix.
fn rotate_exactly(x: &mut [f64]) {
    let block = 1 << x.len().trailing_zeros();
    for x in x.chunks_exact_mut(block) {
        let sum = |i: usize| -> f64 {
            let sign = |j: usize| 1.0 - 2.0 * ((i & j).count_ones() % 2) as f64;
            x.iter().enumerate().map(|(j, x)| sign(j) * x).sum()
        };
        let rotated: Vec<f64> = (0..block).map(|i| sum(i) / (block as f64).sqrt()).collect();
        x.copy_from_slice(&rotated);
    }
}

/// In double precision, straight from the formula.
pub fn attend_exactly(
    pool: &KvPages,
    layer: usize,
    queries: &Tensor,
    spans: &[KvSpan],
    scale: f32,
) -> Vec<f64> {
    let width = pool.geometry().head_dim;
    let mut out = vec![0.0; queries.values().len()];
    for_each_query(pool, queries, spans, |at, q, kv_head, pages, visible| {
        let all = |value| -> Vec<f32> {
            pages.iter().flat_map(|&page| plane(pool, page, layer, kv_head, value)).collect()
        };
        let (keys, values) = (all(false), all(true));
        let scores: Vec<f64> = keys
            .chunks_exact(width)
            .take(visible)
            .map(|k| {
                k.iter().zip(q).map(|(&k, &q)| k as f64 * q as f64).sum::<f64>() * scale as f64
            })
            .collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        for (score, value) in scores.iter().zip(values.chunks_exact(width)) {
            for (out, &value) in out[at..].iter_mut().zip(value) {
                *out += (score - largest).exp() / sum * value as f64;
            }
        }
        if pool.geometry().dtype.rotates_values() {
            rotate_exactly(&mut out[at..at + width]);
        }
    });
    out
}
