//! Independent jobs on several threads, with the outcome that one thread would have.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

/// Results of jobs in order, up to the first that failed.
pub(super) struct Outcome<T, E> {
    pub done: Vec<T>,
    /// The first job that failed, and why.
    pub failed: Option<(usize, E)>,
}

/// Runs `job(number, scratch)` for numbers below `count` on so many threads, the caller's
/// among them; each thread has a scratch of its own. `interrupted` is asked on the caller's
/// thread between jobs; it breaks off everything.
pub(super) fn run_in_order<T: Send, E: Send, S: Default>(
    threads: usize,
    count: usize,
    interrupted: &mut dyn FnMut() -> bool,
    job: impl Fn(usize, &mut S) -> Result<T, E> + Sync,
) -> ControlFlow<(), Outcome<T, E>> {
    let next = AtomicUsize::new(0);
    // Jobs from here on are of no interest. Numbers are handed out in order, so that every
    // job before the first that fails is run.
    let end = AtomicUsize::new(count);
    let work = |stop: &mut dyn FnMut() -> bool| {
        let mut results = Vec::new();
        let mut scratch = S::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= end.load(Ordering::Relaxed) || stop() {
                return results;
            }
            let result = job(number, &mut scratch);
            if result.is_err() {
                end.fetch_min(number, Ordering::Relaxed);
            }
            results.push((number, result));
        }
    };
    let mut broken = false;
    let mut results = std::thread::scope(|scope| {
        let helper = |_| Builder::new().spawn_scoped(scope, || work(&mut || false)).ok();
        // Where no thread is to be had, there are fewer.
        let helpers: Vec<_> = (1..threads.min(count)).map_while(helper).collect();
        let mut results = work(&mut || {
            broken = broken || interrupted();
            if broken {
                end.store(0, Ordering::Relaxed);
            }
            broken
        });
        for helper in helpers {
            match helper.join() {
                Ok(more) => results.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    if broken {
        return ControlFlow::Break(());
    }
    results.sort_unstable_by_key(|(number, _)| *number);
    let mut outcome = Outcome { done: Vec::with_capacity(results.len()), failed: None };
    for (number, result) in results {
        match result {
            Ok(value) => outcome.done.push(value),
            Err(error) => {
                outcome.failed = Some((number, error));
                break;
            }
        }
    }
    ControlFlow::Continue(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the number of threads, results end before the first job that fails.
        #[test]
        fn as_one_thread_would(
            threads in 1usize..6,
            count in 0usize..200,
            bad in prop::collection::btree_set(0usize..200, 0..4),
        ) {
            let job = |number: usize, last: &mut usize| {
                assert!(number >= *last, "a thread's jobs come in order");
                *last = number;
                if bad.contains(&number) { Err(number) } else { Ok(number) }
            };
            let ControlFlow::Continue(outcome) =
                run_in_order(threads, count, &mut || false, job) else { panic!("broken off") };
            let first = bad.first().copied().filter(|&bad| bad < count);
            prop_assert_eq!(outcome.failed, first.map(|bad| (bad, bad)));
            prop_assert!(outcome.done.into_iter().eq(0..first.unwrap_or(count)));
        }
    }

    #[test]
    fn an_interruption_stops_all_threads() {
        let run = AtomicUsize::new(0);
        let mut asked = 0;
        let mut interrupted = || {
            asked += 1;
            asked > 3
        };
        let outcome = run_in_order(3, 1_000_000, &mut interrupted, |number, _: &mut ()| {
            run.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_micros(100));
            Ok::<_, ()>(number)
        });
        assert!(outcome.is_break());
        assert!(run.into_inner() < 100_000);
    }
}
