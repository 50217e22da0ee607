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
