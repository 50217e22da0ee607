//! What the tests of both definitions share.

use llama4rs_tensor::Backend;

use super::{attend_all, Products};
use crate::simd::LANES;
use crate::test_support::{all_cpus, assert_bits, best_cpu};
use crate::{Cpu, Tensor};

/// A tile's row of one head.
fn row(x: &Tensor, row: usize, head: usize, head_dim: usize) -> &[f32] {
    &x.row(row)[head * head_dim..(head + 1) * head_dim]
}

/// Calls `query(q, keys, values)` for every head of every row and strings the results together.
pub fn each_query<T>(
    [q, k, v]: [&Tensor; 3],
    tile_rows: usize,
    head_dim: usize,
    mut query: impl FnMut(&[f32], Vec<&[f32]>, Vec<&[f32]>) -> Vec<T>,
) -> Vec<T> {
    let mut out = Vec::new();
    for r in 0..q.rows() {
        let first = r / tile_rows * tile_rows;
        for head in 0..q.cols() / head_dim {
            let all = |x| (first..first + tile_rows).map(|t| row(x, t, head, head_dim)).collect();
            out.extend(query(row(q, r, head, head_dim), all(k), all(v)));
        }
    }
    out
}

/// A sum in 16 lanes, then a tree.
pub fn lanes_and_tree(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    values.iter().enumerate().for_each(|(t, value)| lanes[t % LANES] += value);
    for width in [8, 4, 2, 1] {
        (0..width).for_each(|i| lanes[i] += lanes[i + width]);
    }
    lanes[0]
}

/// One query in double precision, straight from the formula.
pub fn exactly(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<f64> {
    let dot = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| q as f64 * k as f64).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(|k| dot(k) * scale as f64).collect();
    let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
    let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = p.iter().sum();
    let weighed = |i: usize| p.iter().zip(values).map(|(p, v)| p * v[i] as f64).sum::<f64>();
    (0..q.len()).map(|i| weighed(i) / sum).collect()
}

/// The kernel.
pub fn run(
    cpu: &Cpu,
    products: Products,
    qkv: [&Tensor; 3],
    (tile_rows, head_dim): (usize, usize),
    scale: f32,
) -> Vec<f32> {
    let [q, ..] = qkv;
    let mut out = Tensor::from_values(&vec![f32::NAN; q.values().len()], q.cols()).unwrap();
    let how = (cpu.dispatch, products);
    let scratch = &cpu.attend_all_scratch;
    attend_all(how, &cpu.threads, scratch, qkv, tile_rows, head_dim, scale, &mut out);
    out.values().to_vec()
}

/// Makes sure that every instruction set gives the bits `expected`, and that a tile does not see the
/// others.
pub fn assert_everywhere(
    products: Products,
    qkv: [&Tensor; 3],
    (tile_rows, head_dim): (usize, usize),
    scale: f32,
    expected: &[f32],
) {
    for cpu in all_cpus() {
        let got = run(cpu, products, qkv, (tile_rows, head_dim), scale);
        assert_bits(&cpu.description(), expected, &got);
    }
    let [q, k, v] = qkv.map(|x| first_tile(x, tile_rows));
    let got = run(best_cpu(), products, [&q, &k, &v], (tile_rows, head_dim), scale);
    assert_bits("one tile", &expected[..got.len()], &got);
}

/// Tiles, heads and their sizes that divide nothing, and some that do.
pub const SIZES: [(usize, usize); 9] =
    [(1, 1), (5, 2), (17, 16), (65, 24), (37, 88), (16, 128), (97, 48), (145, 32), (300, 65)];

/// The first tile alone.
pub fn first_tile(x: &Tensor, tile_rows: usize) -> Tensor {
    Tensor::from_values(&x.values()[..tile_rows * x.cols()], x.cols()).unwrap()
}
