//! Reading many bytes on all cores, while the caller's thread tells how far it is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Sender};

use rayon::prelude::*;

use crate::progress::report;
use crate::published::thread_pool;
use crate::{Error, Progress, Result};

/// Bytes that are read and hashed at a time.
const PIECE: u64 = 4 << 20;

/// A run of bytes of a file.
pub(crate) struct Run<'a> {
    pub path: &'a Path,
    /// For messages.
    pub what: &'a str,
    pub offset: u64,
    pub bytes: u64,
}

/// The checksum of each run; `progress` hears of all their bytes. Workers hash; this
/// thread listens to them and tells the caller.
pub(crate) fn checksums(runs: &[Run<'_>], progress: &dyn Progress) -> Result<Vec<blake3::Hash>> {
    let total = runs.iter().map(|run| run.bytes).sum();
    let stop = AtomicBool::new(false);
    let (sender, receiver) = channel();
    let mut outcome = Ok(Vec::new());
    let mut interrupted = Ok(());
    let (stop_flag, outcome_slot) = (&stop, &mut outcome);
    thread_pool(None)?.in_place_scope(|scope| {
        scope.spawn(move |_| {
            *outcome_slot = runs
                .par_iter()
                .map_with(sender, |sender, run| run.checksum(sender, stop_flag))
                .collect();
        });
        let mut done = 0;
        for (what, bytes) in receiver {
            done += bytes;
            if interrupted.is_ok() {
                interrupted = report(progress, what, done, total);
                stop.store(interrupted.is_err(), Ordering::Relaxed);
            }
        }
    });
    interrupted.and(outcome)
}

impl<'a> Run<'a> {
    /// Of as much as was read before `stop`.
    fn checksum(
        &self,
        sender: &mut Sender<(&'a str, u64)>,
        stop: &AtomicBool,
    ) -> Result<blake3::Hash> {
        let io = |error| Error::io(self.path, error);
        let file = File::open(self.path).map_err(io)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; PIECE.min(self.bytes) as usize];
        let mut at = 0;
        while at < self.bytes && !stop.load(Ordering::Relaxed) {
            let piece = &mut buffer[..PIECE.min(self.bytes - at) as usize];
            file.read_exact_at(piece, self.offset + at).map_err(io)?;
            hasher.update(piece);
            at += piece.len() as u64;
            // Nobody listens any more when the caller's thread has gone; so be it.
            let _ = sender.send((self.what, piece.len() as u64));
        }
        Ok(hasher.finalize())
    }
}
