//! A directory under a temporary name that takes its place when it is complete.
//!
//! Beside the destination `D` there are, while a run lasts,
//!
//! ```text
//! .D.packing         locked by the run; a second run on the same destination is refused
//! .D.partial-<pid>   the directory in the making
//! ```
//!
//! Whoever holds the lock owns everything named `.D.partial-*`: what a dead run
//! left there is removed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use rustix::fs::{renameat_with, RenameFlags, CWD};

use crate::manifest;
use crate::{Error, Result};

/// See the module. Dropped before [`Staging::commit`], it leaves nothing behind.
pub(crate) struct Staging {
    destination: PathBuf,
    directory: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Staging {
    /// Locks the destination, clears away what dead runs left, makes the directory.
    pub fn create(destination: &Path, force: bool) -> Result<Self> {
        // A link or a name such as `x/..` stands for what it leads to.
        let destination = &destination.canonicalize().unwrap_or_else(|_| destination.to_owned());
        let refuse = |problem: &str| Error::Destination {
            path: destination.to_owned(),
            problem: problem.to_owned(),
        };
        let name = destination.file_name().ok_or_else(|| {
            refuse("not a name for a new directory; give one such as packed-int4")
        })?;
        let parent = parent(destination);
        std::fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        check_destination(destination, force)?;
        let lock_path = parent.join(hidden(name, ".packing"));
        let lock = File::create(&lock_path).map_err(|error| Error::io(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refuse("another run is packing to this destination; wait for it"))
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(&lock_path, error)),
        }
        let stem = hidden(name, ".partial-");
        let mut directory = stem.clone();
        directory.push(std::process::id().to_string());
        let staging = Self {
            destination: destination.to_owned(),
            directory: parent.join(directory),
            lock_path,
            _lock: lock,
        };
        remove_stale(parent, &stem)?;
        std::fs::create_dir(&staging.directory)
            .map_err(|error| Error::io(&staging.directory, error))?;
        Ok(staging)
    }

    /// Where to write.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Puts the directory in place of the destination.
    pub fn commit(self, force: bool) -> Result<()> {
        sync_directory(&self.directory)?;
        check_destination(&self.destination, force)?;
        let io = |error| Error::io(&self.destination, error);
        if is_occupied(&self.destination)? {
            replace(&self.directory, &self.destination).map_err(io)?;
        } else {
            std::fs::rename(&self.directory, &self.destination).map_err(io)?;
        }
        sync_directory(parent(&self.destination))
        // What is under the temporary name now, if anything, is the old directory: dropped.
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the next run tries again.
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// The destination must be free, empty, or, with `force`, packed.
fn check_destination(destination: &Path, force: bool) -> Result<()> {
    if !is_occupied(destination)? || (force && manifest::is_packed(destination)) {
        return Ok(());
    }
    let problem = if !manifest::is_packed(destination) {
        "exists and is not a packed checkpoint; it is left alone, choose another destination"
    } else {
        "exists already; choose another destination or replace it with force"
    };
    Err(Error::Destination { path: destination.to_owned(), problem: problem.into() })
}

/// Whether anything but an empty directory is there.
fn is_occupied(path: &Path) -> Result<bool> {
    if path.symlink_metadata().is_err() {
        return Ok(false);
    }
    if !path.is_dir() {
        return Ok(true);
    }
    let mut entries = std::fs::read_dir(path).map_err(|error| Error::io(path, error))?;
    Ok(entries.next().is_some())
}

/// Exchanges the two directories in one step where the file system can, else in two.
fn replace(new: &Path, old: &Path) -> std::io::Result<()> {
    if renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    let mut aside = new.as_os_str().to_owned();
    aside.push("-old");
    std::fs::rename(old, &aside)?;
    if let Err(error) = std::fs::rename(new, old) {
        std::fs::rename(&aside, old)?;
        return Err(error);
    }
    std::fs::rename(&aside, new)
}

fn remove_stale(parent: &Path, stem: &OsStr) -> Result<()> {
    let entries = std::fs::read_dir(parent).map_err(|error| Error::io(parent, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(parent, error))?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(stem.as_encoded_bytes()) {
            let path = entry.path();
            std::fs::remove_dir_all(&path).map_err(|error| Error::io(&path, error))?;
        }
    }
    Ok(())
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| Error::io(path, error))
}

/// A hidden name beside `name`.
fn hidden(name: &OsStr, ending: &str) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(ending);
    hidden
}
