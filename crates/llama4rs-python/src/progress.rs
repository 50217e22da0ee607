//! Long operations: they compute on a thread of their own, while the caller's
//! thread shows progress and listens for Ctrl-C.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use llama4rs_checkpoint::Progress;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::guard::contained;

/// The latest state of an operation, and whether it should stop.
#[derive(Default)]
struct Board {
    latest: Mutex<Option<(String, u64, u64)>>,
    stop: AtomicBool,
    finished: Mutex<bool>,
    changed: Condvar,
}

impl Board {
    fn finish(&self) {
        *self.finished.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        self.changed.notify_all();
    }

    /// Waits a little; whether the work has ended.
    fn wait(&self) -> bool {
        let finished = self.finished.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let pause = Duration::from_millis(50);
        match self.changed.wait_timeout_while(finished, pause, |finished| !*finished) {
            Ok((finished, _)) => *finished,
            Err(_) => true,
        }
    }
}

impl Progress for Board {
    fn advance(&self, what: &str, done: u64, total: u64) -> ControlFlow<()> {
        if let Ok(mut latest) = self.latest.lock() {
            *latest = Some((what.to_owned(), done, total));
        }
        match self.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Runs `work` while calling `callback(what, done, total)` about ten times a
/// second. What the callback or a signal handler raises stops the work (which
/// cleans up behind itself) and is raised here.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    callback: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&dyn Progress) -> T + Send,
) -> PyResult<T> {
    let board = Board::default();
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("llama4rs-work".to_owned());
        let worker = builder.spawn_scoped(scope, || {
            let outcome = contained(|| work(&board));
            board.finish();
            outcome
        })?;
        let mut raised = None;
        let mut shown = None;
        loop {
            let finished = py.detach(|| board.wait());
            let latest = board.latest.lock().map(|latest| latest.clone()).unwrap_or(None);
            if raised.is_none() {
                let mut outcome = py.check_signals();
                if let (Ok(()), Some(callback), Some(state)) = (&outcome, callback, &latest) {
                    if shown.as_ref() != Some(state) {
                        outcome = callback.call1(state.clone()).map(|_| ());
                    }
                }
                if let Err(error) = outcome {
                    board.stop.store(true, Ordering::Relaxed);
                    raised = Some(error);
                }
                shown = latest;
            }
            if finished {
                break;
            }
        }
        let outcome = py.detach(|| worker.join());
        match (raised, outcome) {
            (Some(error), outcome) => {
                // An engine that was ready after all waits for its compiler's threads.
                py.detach(|| drop(outcome));
                Err(error)
            }
            (None, Ok(outcome)) => outcome.map_err(PyRuntimeError::new_err),
            (None, Err(_)) => Err(PyRuntimeError::new_err("a worker thread failed")),
        }
    })
}
