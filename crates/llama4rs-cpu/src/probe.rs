//! What the machine can do at most: the limits that speeds are set beside.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Barrier;
use std::time::Instant;

use llama4rs_tensor::{Error, Result};

use crate::simd::{Dispatch, IntegerKernel, Integers, Kernel, Simd, LANES};
use crate::InstructionSet;

/// Places in memory that one thread reads in turn.
const STREAMS: usize = 4;
/// Floats that are read at one place before the next: 256 bytes.
const RUN: usize = 4 * LANES;
/// Chains of multiply-adds that do not wait for each other.
const CHAINS: usize = 10;
/// Multiply-adds of each chain and round.
const STEPS: usize = 4_000_000;

/// Bytes per second that `threads` threads read together, once per round, from
/// `memory`, of which each reads its own part.
///
/// What it is made of decides: large pages are read up to half as fast again.
pub fn read_bandwidth(memory: &[u8], threads: usize, rounds: usize) -> Result<Vec<f64>> {
    check_threads(threads)?;
    // SAFETY: any bits are a float.
    let (_, floats, _) = unsafe { memory.align_to::<f32>() };
    let part = floats.len() / threads / (RUN * STREAMS) * RUN * STREAMS;
    if part == 0 {
        return Err(Error::shape("read_bandwidth", "some bytes for every thread", memory.len()));
    }
    let dispatch = Dispatch::checked(InstructionSet::detect())?;
    let seconds = in_threads(threads, rounds, |thread| {
        let floats = &floats[thread * part..(thread + 1) * part];
        move || {
            black_box(dispatch.run(ReadAll { floats }));
        }
    });
    let size = part * threads * size_of::<f32>();
    Ok(seconds.into_iter().map(|seconds| size as f64 / seconds).collect())
}

/// Single-precision operations per second that `threads` threads reach together
/// with multiply-adds (two operations each) that never leave the registers.
pub fn multiply_add_peak(set: InstructionSet, threads: usize, rounds: usize) -> Result<Vec<f64>> {
    check_threads(threads)?;
    let dispatch = Dispatch::checked(set)?;
    let seconds = in_threads(threads, rounds, |_| {
        move || {
            black_box(dispatch.run(MultiplyAdd { steps: black_box(STEPS) }));
        }
    });
    let operations = (threads * STEPS * CHAINS * LANES * 2) as f64;
    Ok(seconds.into_iter().map(|seconds| operations / seconds).collect())
}

/// Integer operations per second that `threads` threads reach together with dot
/// products of bytes (two operations for each product) out of registers.
pub fn integer_dot_peak(set: InstructionSet, threads: usize, rounds: usize) -> Result<Vec<f64>> {
    check_threads(threads)?;
    let dispatch = Dispatch::checked(set)?;
    let seconds = in_threads(threads, rounds, |_| {
        move || dispatch.run_integers(IntegerDot { steps: black_box(STEPS) })
    });
    let operations = (threads * STEPS * CHAINS * LANES * 4 * 2) as f64;
    Ok(seconds.into_iter().map(|seconds| operations / seconds).collect())
}

/// Operations per second that `threads` threads reach together with products of pairs of
/// bf16 numbers (four operations for a pair and lane), the factors out of the nearest cache.
pub fn pair_dot_peak(set: InstructionSet, threads: usize, rounds: usize) -> Result<Vec<f64>> {
    check_threads(threads)?;
    let dispatch = Dispatch::checked(set)?;
    let seconds = in_threads(threads, rounds, |_| {
        move || {
            black_box(dispatch.run(PairDot { steps: black_box(STEPS) }));
        }
    });
    let operations = (threads * STEPS * CHAINS * LANES * 2 * 2) as f64;
    Ok(seconds.into_iter().map(|seconds| operations / seconds).collect())
}

fn check_threads(threads: usize) -> Result<()> {
    match threads {
        0 => Err(Error::shape("threads", "at least one thread", 0)),
        _ => Ok(()),
    }
}

/// Seconds of each round, which all threads begin together: from the first start
/// to the last end.
fn in_threads<W: FnMut()>(
    threads: usize,
    rounds: usize,
    make: impl Fn(usize) -> W + Sync,
) -> Vec<f64> {
    let barrier = Barrier::new(threads);
    let one = |thread: usize| {
        let mut work = make(thread);
        work();
        let round = |_| {
            barrier.wait();
            let start = Instant::now();
            work();
            start..Instant::now()
        };
        (0..rounds).map(round).collect::<Vec<_>>()
    };
    let one = &one;
    let times: Vec<Vec<Range<Instant>>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|t| scope.spawn(move || one(t))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let seconds = |round: usize| {
        let start = times.iter().map(|times| times[round].start).min();
        let end = times.iter().map(|times| times[round].end).max();
        end.zip(start).map_or(0.0, |(end, start)| (end - start).as_secs_f64())
    };
    (0..rounds).map(seconds).collect()
}

/// Reads every float; the largest of some lanes, so that nothing is left out.
struct ReadAll<'a> {
    floats: &'a [f32],
}

impl Kernel for ReadAll<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let stream = self.floats.len() / STREAMS / RUN * RUN;
        let mut largest = [simd.splat(0.0); RUN / LANES];
        for at in (0..stream).step_by(RUN) {
            for s in 0..STREAMS {
                for (i, largest) in largest.iter_mut().enumerate() {
                    let at = s * stream + at + i * LANES;
                    // SAFETY: a run within a stream, and the streams are inside of the slice.
                    let line = unsafe { simd.load(self.floats.as_ptr().add(at)) };
                    *largest = simd.max(*largest, line);
                }
            }
        }
        simd.sum_four(largest).into_iter().fold(0.0, f32::max)
    }
}

/// The sum of all chains, so that none is left out.
#[inline(always)]
fn total<S: Simd>(simd: S, sums: [S::F; CHAINS]) -> f32 {
    let mut total = simd.splat(0.0);
    for sum in sums {
        total = simd.add(total, sum);
    }
    simd.sum(total)
}

/// Independent chains of multiply-adds.
struct MultiplyAdd {
    steps: usize,
}

impl Kernel for MultiplyAdd {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (a, b) = (simd.splat(black_box(0.5)), simd.splat(black_box(0.25)));
        let mut sums = [a; CHAINS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                *sum = simd.fma(a, b, *sum);
            }
        }
        total(simd, sums)
    }
}

/// Independent chains of products of pairs.
struct PairDot {
    steps: usize,
}

impl Kernel for PairDot {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let factors = black_box(simd.factors(simd.splat(0.5)));
        let pairs = black_box([factors; 2]);
        // SAFETY: two times eight words are a line.
        let line = simd.normal_pairs(unsafe { simd.line(pairs.as_ptr().cast()) });
        let mut sums = [simd.splat(0.0); CHAINS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                // SAFETY: eight words are more than a pair of factors.
                *sum = unsafe { simd.dot_pairs(*sum, line, factors.as_ptr(), 1) };
            }
        }
        total(simd, sums)
    }
}

/// Independent chains of integer dot products.
struct IntegerDot {
    steps: usize,
}

impl IntegerKernel for IntegerDot {
    #[inline(always)]
    fn run<I: Integers>(self, integers: I) {
        let weights = integers.splat(black_box(0x0302_0100));
        let x = integers.splat(black_box(0x0101_0101));
        let mut sums = [weights; CHAINS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                *sum = integers.dot_nibbles(*sum, weights, x);
            }
        }
        let simd = integers.simd();
        let mut floats = [simd.splat(0.0); CHAINS];
        for (float, sum) in floats.iter_mut().zip(sums) {
            *float = integers.to_floats(sum);
        }
        black_box(total(simd, floats));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_measure_something() {
        for threads in [1, 3] {
            for rates in [
                read_bandwidth(&vec![1; 10 << 20], threads, 2).unwrap(),
                multiply_add_peak(InstructionSet::detect(), threads, 2).unwrap(),
                integer_dot_peak(InstructionSet::detect(), threads, 2).unwrap(),
                pair_dot_peak(InstructionSet::detect(), threads, 2).unwrap(),
            ] {
                assert_eq!(rates.len(), 2);
                assert!(rates.iter().all(|&rate| rate.is_finite() && rate > 1e6), "{rates:?}");
            }
        }
    }

    #[test]
    fn impossible_probes_are_errors() {
        let set = InstructionSet::detect();
        assert!(read_bandwidth(&[1; 1 << 16], 0, 1).is_err());
        assert!(read_bandwidth(&[1; 100], 1, 1).is_err());
        assert!(multiply_add_peak(set, 0, 1).is_err());
        assert!(integer_dot_peak(set, 0, 1).is_err());
        assert!(pair_dot_peak(set, 0, 1).is_err());
    }

    #[test]
    fn every_float_is_read() {
        let mut floats = vec![0.0; 5 * RUN * STREAMS];
        for at in [0, RUN, 2 * RUN * STREAMS + 17, 5 * RUN * STREAMS - 1] {
            floats[at] = 3.0;
            for set in InstructionSet::available() {
                let dispatch = Dispatch::new(set).unwrap();
                assert_eq!(dispatch.run(ReadAll { floats: &floats }), 3.0, "{set}: {at}");
            }
            floats[at] = 0.0;
        }
    }
}
