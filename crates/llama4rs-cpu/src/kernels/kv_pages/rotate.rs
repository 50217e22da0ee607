//! The Hadamard rotation of an int4 pool's values.

/// `x = H x / sqrt(B)` for each `B` numbers, `B` the largest power of two that
/// divides their count. Applied twice it changes nothing but rounding.
pub fn rotate(x: &mut [f32]) {
    if x.is_empty() {
        return;
    }
    let block = 1 << x.len().trailing_zeros();
    let norm = 1.0 / (block as f32).sqrt();
    for x in x.chunks_exact_mut(block) {
        let mut half = 1;
        while half < block {
            for pair in x.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        x.iter_mut().for_each(|x| *x *= norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, Random};

    #[test]
    fn is_the_hadamard_matrix_of_each_block() {
        for (width, block) in [(1, 1), (6, 2), (12, 4), (80, 16), (128, 128)] {
            let x = Random(width as u64).values(width);
            let sign = |i: usize, j: usize| 1.0 - 2.0 * ((i & j).count_ones() % 2) as f64;
            let expected: Vec<f64> = (0..width)
                .map(|i| {
                    let x = &x[i / block * block..][..block];
                    let sum: f64 =
                        x.iter().enumerate().map(|(j, &x)| sign(i % block, j) * x as f64).sum();
                    sum / (block as f64).sqrt()
                })
                .collect();
            let mut got = x.clone();
            rotate(&mut got);
            assert_close("once", &expected, &got, 1e-6);
            rotate(&mut got);
            assert_close("twice", &x.iter().map(|&x| x as f64).collect::<Vec<_>>(), &got, 1e-6);
        }
        rotate(&mut []);
    }
}
