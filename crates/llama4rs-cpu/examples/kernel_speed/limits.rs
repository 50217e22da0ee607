//! What the machine can do: reads from memory, arithmetic out of registers.

use std::hint::black_box;
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use llama4rs_cpu::InstructionSet;

/// The limits of some threads with some instructions.
#[derive(Clone, Copy)]
pub struct Limits {
    /// GB/s read from memory in pages of the usual size, like that of weights.
    pub reads: f64,
    /// GB/s read from memory in large pages.
    pub large_reads: f64,
    /// GFLOP/s of single-precision multiply-adds.
    pub floats: f64,
    /// GOP/s of integer dot products, bytes by bytes.
    pub integers: f64,
}

impl Limits {
    /// Measures them.
    pub fn measure(threads: usize, set: InstructionSet) -> Self {
        let large = llama4rs_cpu::read_bandwidth(threads << 27, threads, 20).expect("memory");
        Self {
            reads: read_bandwidth(threads),
            large_reads: large.into_iter().fold(0.0, f64::max) / 1e9,
            floats: floats(threads, set),
            integers: integers(threads, set),
        }
    }
}

/// GB/s that the threads read together from memory of their own.
fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = 16 << 20;
    let time = in_threads(threads, || {
        let words = vec![1u64; WORDS];
        move || {
            let sums = words.chunks_exact(32).fold([0u64; 32], |mut sums, chunk| {
                sums.iter_mut().zip(chunk).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
                sums
            });
            black_box(sums);
        }
    });
    (threads * WORDS * 8) as f64 / time / 1e9
}

/// Seconds of the best of some rounds that all threads do at the same time, from
/// the first start to the last end.
fn in_threads<W: FnMut()>(threads: usize, make: impl Fn() -> W + Sync) -> f64 {
    const ROUNDS: usize = 20;
    let barrier = Barrier::new(threads);
    let rounds = Mutex::new(vec![Vec::new(); ROUNDS]);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut work = make();
                work();
                for round in 0..ROUNDS {
                    barrier.wait();
                    let start = Instant::now();
                    work();
                    let end = Instant::now();
                    rounds.lock().expect("no panic")[round].push((start, end));
                }
            });
        }
    });
    let rounds = rounds.into_inner().expect("no panic");
    let seconds = |round: &Vec<(Instant, Instant)>| {
        let start = round.iter().map(|(start, _)| *start).min().expect("a thread");
        let end = round.iter().map(|(_, end)| *end).max().expect("a thread");
        (end - start).as_secs_f64()
    };
    rounds.iter().map(seconds).fold(f64::INFINITY, f64::min)
}

/// Steps of a loop with ten independent chains.
const STEPS: usize = 1_000_000;
const CHAINS: usize = 10;

fn floats(threads: usize, set: InstructionSet) -> f64 {
    let time = in_threads(threads, || {
        move || match set.without_vnni() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set is available.
            InstructionSet::Avx512 => unsafe { float_512(STEPS) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set is available.
            InstructionSet::Avx2 => unsafe { float_256(STEPS) },
            _ => (),
        }
    });
    let lanes = if set.without_vnni() == InstructionSet::Avx512 { 16 } else { 8 };
    (threads * STEPS * CHAINS * lanes * 2) as f64 / time / 1e9
}

fn integers(threads: usize, set: InstructionSet) -> f64 {
    let time = in_threads(threads, || {
        move || match set {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set is available.
            InstructionSet::Avx512Vnni => unsafe { dot_512(STEPS) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set is available.
            InstructionSet::Avx512 => unsafe { widening_dot_512(STEPS) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set is available.
            InstructionSet::Avx2Vnni => unsafe { dot_256(STEPS) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set is available.
            InstructionSet::Avx2 => unsafe { widening_dot_256(STEPS) },
            _ => (),
        }
    });
    let bytes = if set.without_vnni() == InstructionSet::Avx512 { 64 } else { 32 };
    (threads * STEPS * CHAINS * bytes * 2) as f64 / time / 1e9
}

macro_rules! register_loop {
    ($name:ident, $features:literal, $a:expr, $b:expr, |$sum:ident, $x:ident, $y:ident| $step:expr) => {
        /// Ten independent chains that never leave the registers.
        ///
        /// # Safety
        /// The processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name(steps: usize) {
            #[allow(unused_imports)]
            use std::arch::x86_64::*;
            let ($x, $y) = (black_box($a), black_box($b));
            let mut sums = black_box([$x; CHAINS]);
            for _ in 0..steps {
                for sum in &mut sums {
                    let $sum = *sum;
                    *sum = $step;
                }
            }
            black_box(sums);
        }
    };
}

register_loop!(float_512, "avx512f", _mm512_set1_ps(0.5), _mm512_set1_ps(0.25), |sum, x, y| {
    _mm512_fmadd_ps(x, y, sum)
});
register_loop!(float_256, "avx2,fma", _mm256_set1_ps(0.5), _mm256_set1_ps(0.25), |sum, x, y| {
    _mm256_fmadd_ps(x, y, sum)
});
register_loop!(
    dot_512,
    "avx512f,avx512vnni",
    _mm512_set1_epi8(3),
    _mm512_set1_epi8(-5),
    |sum, x, y| _mm512_dpbusd_epi32(sum, x, y)
);
register_loop!(dot_256, "avx2,avxvnni", _mm256_set1_epi8(3), _mm256_set1_epi8(-5), |sum, x, y| {
    _mm256_dpbusd_avx_epi32(sum, x, y)
});
// The factor is the sum, or the product would be hoisted out of the loop.
register_loop!(
    widening_dot_512,
    "avx512f,avx512bw",
    _mm512_set1_epi8(3),
    _mm512_set1_epi8(1),
    |sum, x, y| {
        let pairs = _mm512_maddubs_epi16(sum, y);
        _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, y))
    }
);
register_loop!(widening_dot_256, "avx2", _mm256_set1_epi8(3), _mm256_set1_epi8(1), |sum, x, y| {
    let pairs = _mm256_maddubs_epi16(sum, y);
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, y))
});
