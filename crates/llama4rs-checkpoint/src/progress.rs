//! How a long operation tells its caller where it is, and learns that it should stop.

use std::ops::ControlFlow;

use crate::{Error, Result};

/// Listens to a long operation.
///
/// Calls come on the thread that started the operation, one for every few dozen
/// megabytes of work.
pub trait Progress: Sync {
    /// `done` of `total` bytes of the operation are behind us; `what` names the
    /// tensor or file at hand. [`ControlFlow::Break`] stops the operation, which
    /// then cleans up and returns [`Error::Interrupted`].
    fn advance(&self, what: &str, done: u64, total: u64) -> ControlFlow<()>;
}

/// Listens to nothing and never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn advance(&self, _: &str, _: u64, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Reports to `progress` and turns a stop into an error.
pub(crate) fn report(progress: &dyn Progress, what: &str, done: u64, total: u64) -> Result<()> {
    match progress.advance(what, done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted { doing: what.to_owned() }),
    }
}
