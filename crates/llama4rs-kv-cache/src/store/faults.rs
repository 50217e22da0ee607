//! A file system that fails on purpose, on top of a real directory.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use super::disk::{Disk, System};

/// What happens at a call to the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The call does nothing and returns an error of this kind.
    Error(ErrorKind),
    /// A write writes one half and returns an error; any other call does nothing.
    ShortWrite,
    /// The process dies: this call and all later ones do nothing.
    Death,
}

/// Something done to a directory that no `sync_dir` has made durable.
enum Change {
    Made(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<PathBuf> },
    Removed { path: PathBuf, kept: PathBuf },
}

#[derive(Default)]
struct State {
    calls: u64,
    fault: Option<(u64, Fault)>,
    dead: bool,
    changes: Vec<Change>,
    /// Files by device number and inode whose bytes no `sync` has made durable.
    unsynced: HashMap<(u64, u64), File>,
    graves: u64,
}

/// Counts calls, fails at one of them, and knows what a crash of the system would lose.
pub(super) struct Faulty {
    state: Mutex<State>,
    /// Removed files rest here until the directory is durable.
    graveyard: PathBuf,
}

impl Faulty {
    /// `graveyard` is a directory on the same file system.
    pub fn new(graveyard: &Path) -> Self {
        Self { state: Mutex::default(), graveyard: graveyard.to_owned() }
    }

    /// Lets call number `at` (from now, the next is 0) fail.
    pub fn plan(&self, at: u64, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.fault = Some((state.calls + at, fault));
    }

    /// No more faults; the process lives again.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        (state.fault, state.dead) = (None, false);
    }

    /// Whether the planned fault has come.
    pub fn has_failed(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.dead || state.fault.is_some_and(|(at, _)| state.calls > at)
    }

    /// The system crashes: what was not made durable is lost, in part or in whole,
    /// as `choice` decides (it returns a number below its argument).
    pub fn crash(&self, mut choice: impl FnMut(u64) -> u64) {
        let mut state = self.state.lock().unwrap();
        let keep = choice(state.changes.len() as u64 + 1) as usize;
        for change in state.changes.split_off(keep).into_iter().rev() {
            // A name that a later step has taken away is gone already.
            let _ = match change {
                Change::Made(path) => std::fs::remove_file(path),
                Change::Removed { path, kept } => std::fs::rename(kept, path),
                Change::Renamed { from, to, replaced } => std::fs::rename(&to, from)
                    .and_then(|()| replaced.map_or(Ok(()), |old| std::fs::rename(old, to))),
            };
        }
        state.changes.clear();
        for (_, file) in state.unsynced.drain() {
            let length = file.metadata().unwrap().len();
            let start = choice(length + 1);
            match choice(3) {
                0 => file.set_len(start).unwrap(),
                1 => {
                    let end = start + choice(length - start + 1);
                    file.write_all_at(&vec![0; (end - start) as usize], start).unwrap();
                }
                _ => {}
            }
        }
    }

    fn call(&self) -> io::Result<Option<Fault>> {
        let mut state = self.state.lock().unwrap();
        let number = state.calls;
        state.calls += 1;
        if state.dead {
            return Err(Error::other("the process is dead"));
        }
        match state.fault {
            Some((at, Fault::Death)) if at == number => {
                state.dead = true;
                Err(Error::other("the process died"))
            }
            Some((at, Fault::Error(kind))) if at == number => Err(kind.into()),
            Some((at, fault)) if at == number => Ok(Some(fault)),
            _ => Ok(None),
        }
    }

    /// A call that a planned fault may stop.
    fn pass(&self) -> io::Result<()> {
        match self.call()? {
            None => Ok(()),
            Some(_) => Err(Error::other("a call failed")),
        }
    }

    fn note(&self, change: Change) {
        self.state.lock().unwrap().changes.push(change);
    }

    fn note_bytes(&self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        let key = (metadata.dev(), metadata.ino());
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        let mut state = self.state.lock().unwrap();
        if let std::collections::hash_map::Entry::Vacant(entry) = state.unsynced.entry(key) {
            entry.insert(OpenOptions::new().write(true).open(path)?);
        }
        Ok(())
    }

    /// Moves a file to the graveyard.
    fn bury(&self, path: &Path) -> io::Result<PathBuf> {
        let mut state = self.state.lock().unwrap();
        state.graves += 1;
        let grave = self.graveyard.join(format!("{:p}-{}", self, state.graves));
        std::fs::rename(path, &grave)?;
        Ok(grave)
    }
}

impl Disk for Faulty {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        System.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.pass()?;
        System.list(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.pass()?;
        let file = System.create(path)?;
        self.note(Change::Made(path.to_owned()));
        Ok(file)
    }

    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.pass()?;
        self.note_bytes(file)?;
        System.allocate(file, bytes)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let fault = self.call()?;
        self.note_bytes(file)?;
        match fault {
            None => System.write_at(file, bytes, offset),
            Some(_) => {
                System.write_at(file, &bytes[..bytes.len() / 2], offset)?;
                Err(ErrorKind::WriteZero.into())
            }
        }
    }

    fn make_read_only(&self, file: &File) -> io::Result<()> {
        self.pass()?;
        System.make_read_only(file)
    }

    fn set_used(&self, path: &Path, used: SystemTime) -> io::Result<()> {
        self.pass()?;
        System.set_used(path, used)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.pass()?;
        let metadata = file.metadata()?;
        self.state.lock().unwrap().unsynced.remove(&(metadata.dev(), metadata.ino()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        let replaced = if to.exists() { Some(self.bury(to)?) } else { None };
        System.rename(from, to)?;
        self.note(Change::Renamed { from: from.to_owned(), to: to.to_owned(), replaced });
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.pass()?;
        self.state.lock().unwrap().changes.clear();
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        let kept = self.bury(path)?;
        self.note(Change::Removed { path: path.to_owned(), kept });
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.pass()?;
        System.open(path)
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.pass()?;
        System.metadata(path)
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.pass()?;
        System.read_at(file, buffer, offset)
    }

    fn open_lock(&self, path: &Path) -> io::Result<File> {
        self.pass()?;
        System.open_lock(path)
    }

    fn try_lock(&self, file: &File) -> io::Result<bool> {
        self.pass()?;
        System.try_lock(file)
    }
}
