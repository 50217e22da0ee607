//! A lock that is taken in turns, and what a fork does to it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::{Error, Result};

/// Waits of some milliseconds each, before a lock is looked at more closely.
const PATIENCE: usize = 40;

/// Data that one thread at a time works on, for as long as it takes: nobody blocks.
///
/// A process that is forked inherits a locked lock, but not the thread that would unlock it.
pub(crate) struct Turn<T> {
    data: Mutex<T>,
    /// The process of who took the last turn.
    process: AtomicU32,
}

impl<T> Turn<T> {
    pub fn new(data: T) -> Self {
        Self { data: Mutex::new(data), process: AtomicU32::new(std::process::id()) }
    }

    /// The data; `None` while it is another thread's turn.
    pub fn take(&self) -> Result<Option<MutexGuard<'_, T>>> {
        match self.data.try_lock() {
            Ok(guard) => {
                self.process.store(std::process::id(), Ordering::SeqCst);
                Ok(Some(guard))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Poisoned(_)) => Err(Error::Compute(
                "an earlier step failed in a way that is a bug of llama4rs; open the model again"
                    .to_owned(),
            )),
        }
    }

    /// An error for who has waited `waits` times for a turn that will never come.
    pub fn check(&self, waits: usize) -> Result<()> {
        if waits < PATIENCE || self.process.load(Ordering::SeqCst) == std::process::id() {
            return Ok(());
        }
        Err(Error::Compute(
            "this process was forked while another thread computed with the model: open the model \
             in this process, or fork before"
                .to_owned(),
        ))
    }

    /// The data, of which nobody else knows.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_ends_is_waited_for_and_one_of_another_process_is_not() {
        let turn = Turn::new(7);
        let held = turn.take().unwrap();
        assert!(held.is_some() && turn.take().unwrap().is_none());
        turn.check(10 * PATIENCE).unwrap();
        turn.process.store(0, Ordering::SeqCst);
        turn.check(PATIENCE - 1).unwrap();
        assert!(turn.check(PATIENCE).unwrap_err().to_string().contains("forked"));
    }

    #[test]
    fn a_turn_that_panicked_was_the_last() {
        let turn = Turn::new(7);
        let turned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = turn.take();
            panic!("on purpose");
        }));
        assert!(turned.is_err());
        assert!(turn.take().unwrap_err().to_string().contains("open the model again"));
    }
}
