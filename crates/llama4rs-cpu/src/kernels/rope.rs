//! Rotates the pairs `(a, b)` of every head by the angle of its row:
//! `a' = a cos - b sin`, `b' = b cos + a sin`.
//!
//! The order: `a' = fma(-b, sin, a * cos)`, `b' = fma(a, sin, b * cos)`.

use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd};

/// Values that one thread does by itself.
const GRAIN: usize = 32 << 10;

/// Rotates `x` `[rows, cols]` by `rotations` `[rows, head_dim]`, which hold `cos, sin` per pair.
pub fn rope(
    dispatch: Dispatch,
    threads: &Threads,
    x: &mut [f32],
    cols: usize,
    rotations: &[f32],
    head_dim: usize,
) {
    let rows = x.len() / cols;
    let x = Shared::new(x);
    threads.for_ranges(rows, GRAIN / cols + 1, |rows| {
        // SAFETY: ranges do not overlap.
        let x = unsafe { x.part(rows.start * cols..rows.end * cols) };
        let rotations = &rotations[rows.start * head_dim..rows.end * head_dim];
        dispatch.run(Rope { x, cols, rotations, head_dim });
    });
}

struct Rope<'a> {
    x: &'a mut [f32],
    cols: usize,
    rotations: &'a [f32],
    head_dim: usize,
}

impl Kernel for Rope<'_> {
    type Output = ();

    /// Plain Rust: the compiler makes vectors of it, and every operation is rounded as written.
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Self { x, cols, rotations, head_dim } = self;
        for (row, rotation) in x.chunks_exact_mut(cols).zip(rotations.chunks_exact(head_dim)) {
            for head in row.chunks_exact_mut(head_dim) {
                for (pair, angle) in head.chunks_exact_mut(2).zip(rotation.chunks_exact(2)) {
                    let (a, b) = (pair[0], pair[1]);
                    let (cos, sin) = (angle[0], angle[1]);
                    pair[0] = (-b).mul_add(sin, a * cos);
                    pair[1] = a.mul_add(sin, b * cos);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::Backend;
    use proptest::prelude::*;

    use crate::test_support::{all_cpus, assert_bits, assert_close, Random};
    use crate::Tensor;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_set_and_thread_count_gives_the_formula(
            rows in 1usize..60,
            heads in 1usize..9,
            pairs in prop::sample::select(vec![1, 3, 8, 15, 32, 64]),
            seed in any::<u64>(),
        ) {
            let random = &mut Random(seed);
            let head_dim = pairs * 2;
            let x = random.tensor(rows, heads * head_dim);
            let angles = random.values(rows * pairs);
            let rotations: Vec<f32> =
                angles.iter().flat_map(|a| [(a * 3.0).cos(), (a * 3.0).sin()]).collect();
            let rotations = Tensor::from_values(&rotations, head_dim).unwrap();
            let (mut expected, mut exact) = (Vec::new(), Vec::new());
            for row in 0..rows {
                for (i, pair) in x.row(row).chunks(2).enumerate() {
                    let angle = &rotations.row(row)[i % pairs * 2..][..2];
                    let (a, b, cos, sin) = (pair[0], pair[1], angle[0], angle[1]);
                    expected.extend([(-b).mul_add(sin, a * cos), a.mul_add(sin, b * cos)]);
                    let [a, b, cos, sin] = [a, b, cos, sin].map(f64::from);
                    exact.extend([a * cos - b * sin, a * sin + b * cos]);
                }
            }
            assert_close("formula", &exact, &expected, 1e-6);
            for cpu in all_cpus() {
                let mut got = x.clone();
                cpu.rope(&mut got, &rotations, head_dim).unwrap();
                assert_bits(&cpu.description(), &expected, got.values());
            }
        }
    }
}
