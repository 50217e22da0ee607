//! Every call to the file system that the store makes, one method each, so that
//! tests can let any of them fail.

use std::fs::{File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

/// The file system.
pub(super) trait Disk: Send + Sync {
    /// Makes a directory that only its owner can look into, and those above it.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory; those that are not Unicode are none of ours.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Makes a new file.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Gives a new file its length, and the room for it.
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Takes away the right to write.
    fn make_read_only(&self, file: &File) -> io::Result<()>;
    /// Sets the time of last use.
    fn set_used(&self, path: &Path, used: SystemTime) -> io::Result<()>;
    /// Waits until a file's bytes are on the medium.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Gives a file its final name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Waits until a directory's names are on the medium.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a name; whoever has the file open or mapped keeps it.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Opens a file to read.
    fn open(&self, path: &Path) -> io::Result<File>;
    /// Length and times of a path.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;
    /// Fills `buffer` from `offset`; a file that ends before that is an error.
    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Opens a file to lock it, making it if need be.
    fn open_lock(&self, path: &Path) -> io::Result<File>;
    /// Locks a file for as long as it is open; `false`: someone else has.
    fn try_lock(&self, file: &File) -> io::Result<bool>;
}

/// The real one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct System;

impl Disk for System {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)?;
        reserve(file, bytes)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn make_read_only(&self, file: &File) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(0o400))
    }

    fn set_used(&self, path: &Path, used: SystemTime) -> io::Result<()> {
        use rustix::fs::{utimensat, AtFlags, Timespec, Timestamps, CWD};
        let since = used.duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        let time = Timespec {
            tv_sec: since.as_secs().try_into().map_err(io::Error::other)?,
            tv_nsec: since.subsec_nanos().into(),
        };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(utimensat(CWD, path, &times, AtFlags::empty())?)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(path)
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        std::fs::symlink_metadata(path)
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    fn open_lock(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn try_lock(&self, file: &File) -> io::Result<bool> {
        match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Makes sure that writing cannot meet a full disk half way, where the file system can.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{fallocate, FallocateFlags};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}
