//! `gate = silu(gate) * up` with `silu(x) = x / (1 + exp(-x))`.
//!
//! The order: `exp` of [`super::exp`], one addition, one division, one product.

use super::exp::exp;
use crate::parallel::{Shared, Threads};
use crate::simd::{Dispatch, Kernel, Simd, LANES};

/// Values that one thread does by itself.
const GRAIN: usize = 16 << 10;

/// `silu(gate) * up` of every lane.
#[inline(always)]
pub fn swiglu_lanes<S: Simd>(simd: S, gate: S::F, up: S::F) -> S::F {
    let exp = exp(simd, simd.sub(simd.splat(0.0), gate));
    simd.mul(simd.div(gate, simd.add(simd.splat(1.0), exp)), up)
}

/// `gate = silu(gate) * up`.
pub fn swiglu(dispatch: Dispatch, threads: &Threads, gate: &mut [f32], up: &[f32]) {
    let len = gate.len();
    let gate = Shared::new(gate);
    threads.for_ranges(len, GRAIN, |range| {
        // SAFETY: ranges do not overlap.
        let gate = unsafe { gate.part(range.clone()) };
        dispatch.run(Swiglu { gate, up: &up[range] });
    });
}

struct Swiglu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for Swiglu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut gates = self.gate.chunks_exact_mut(LANES);
        let mut ups = self.up.chunks_exact(LANES);
        for (gate, up) in (&mut gates).zip(&mut ups) {
            // SAFETY: both have 16 floats.
            unsafe {
                let (g, u) = (simd.load(gate.as_ptr()), simd.load(up.as_ptr()));
                simd.store(swiglu_lanes(simd, g, u), gate.as_mut_ptr());
            }
        }
        let (gate, up) = (gates.into_remainder(), ups.remainder());
        let (mut g, mut u) = ([0.0; LANES], [0.0; LANES]);
        g[..gate.len()].copy_from_slice(gate);
        u[..up.len()].copy_from_slice(up);
        // SAFETY: both have 16 floats.
        unsafe {
            let result = swiglu_lanes(simd, simd.load(g.as_ptr()), simd.load(u.as_ptr()));
            simd.store(result, g.as_mut_ptr());
        }
        gate.copy_from_slice(&g[..gate.len()]);
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::Backend;

    use crate::kernels::exp::reference::exp;
    use crate::test_support::{all_cpus, assert_bits, assert_close, Random};
    use crate::Tensor;

    #[test]
    fn every_set_and_thread_count_gives_the_formula() {
        let random = &mut Random(9);
        for (rows, cols) in [(1, 1), (3, 7), (1, 16), (5, 33), (9, 8192)] {
            let gate: Vec<f32> = random.values(rows * cols).iter().map(|x| x * 20.0).collect();
            let gate = Tensor::from_values(&gate, cols).unwrap();
            let up = random.tensor(rows, cols);
            let pairs = || gate.values().iter().zip(up.values());
            let expected: Vec<f32> = pairs().map(|(g, u)| g / (1.0 + exp(-g)) * u).collect();
            let exact: Vec<f64> =
                pairs().map(|(&g, &u)| g as f64 / (1.0 + (-g as f64).exp()) * u as f64).collect();
            assert_close("formula", &exact, &expected, 1e-6);
            for cpu in all_cpus() {
                let mut got = gate.clone();
                cpu.swiglu(&mut got, &up).unwrap();
                assert_bits(&cpu.description(), &expected, got.values());
            }
        }
    }

    #[test]
    fn extreme_gates_stay_finite() {
        let values = [-1e30f32, -200.0, -89.0, 0.0, 89.0, 200.0, 1e30];
        for cpu in all_cpus() {
            let mut gate = Tensor::from_values(&values, 7).unwrap();
            let up = Tensor::from_values(&[1.0; 7], 7).unwrap();
            cpu.swiglu(&mut gate, &up).unwrap();
            let got = gate.values();
            assert!(got[..2].iter().all(|&x| x == 0.0), "{got:?}");
            assert!(got[2] <= 0.0 && got[2] > -1e-35, "{got:?}");
            assert_eq!(got[3..], values[3..]);
        }
    }
}
