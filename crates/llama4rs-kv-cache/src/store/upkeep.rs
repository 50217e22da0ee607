//! A directory in order: budget, leftovers, listing, verifying, pruning.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::chain::Fingerprint;
use super::disk::{Disk, System};
use super::error::{Error, Result};
use super::name::{is_temporary, SegmentName};
use super::segment::Segment;
use crate::{PoolKind, PAGE_TOKENS};

/// Locked by whoever evicts or prunes.
const LOCK: &str = ".lock";
/// A file in the making that is younger than this may not be locked yet.
const YOUNG: Duration = Duration::from_secs(10);
/// Without locks, a file in the making that is older than this is taken for left over.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// A segment file as the directory shows it.
#[derive(Clone, Copy, Debug)]
struct Listed {
    name: SegmentName,
    bytes: u64,
    used: SystemTime,
}

fn listed(disk: &dyn Disk, dir: &Path) -> Result<Vec<Listed>> {
    let names = disk.list(dir).map_err(Error::io(dir, "list the directory"))?;
    let look = |name: &String| {
        // One that vanishes meanwhile was not there.
        let metadata = disk.metadata(&dir.join(name)).ok()?;
        Some(Listed {
            name: SegmentName::parse(name)?,
            bytes: metadata.len(),
            used: metadata.modified().ok()?,
        })
    };
    Ok(names.iter().filter_map(look).collect())
}

/// Removes files, those that were not used for longest first, until `budget` bytes
/// are left. Does nothing while another process does it.
pub(super) fn evict(disk: &dyn Disk, dir: &Path, budget: u64) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    let lock = dir.join(LOCK);
    let lock = disk.open_lock(&lock).map_err(Error::io(&lock, "open"))?;
    // Where files cannot be locked, two processes may remove more than they must.
    if matches!(disk.try_lock(&lock), Ok(false)) {
        return Ok(pruned);
    }
    let mut files = listed(disk, dir)?;
    // A parent has been used whenever its children have; at the same time it is earlier in the text.
    files.sort_by_key(|file| (file.used, std::cmp::Reverse(file.name.start)));
    let mut total: u64 = files.iter().map(|file| file.bytes).sum();
    for file in files {
        if total <= budget {
            break;
        }
        remove(disk, dir, &file, &mut pruned)?;
        total -= file.bytes;
    }
    Ok(pruned)
}

fn remove(disk: &dyn Disk, dir: &Path, file: &Listed, pruned: &mut Pruned) -> Result<()> {
    let path = dir.join(file.name.to_string());
    match disk.remove(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(&path, "remove")(error)),
    }
    pruned.files += 1;
    pruned.bytes += file.bytes;
    Ok(())
}

/// Removes files in the making whose writers are dead. Nothing depends on it.
pub(super) fn remove_leftovers(disk: &dyn Disk, dir: &Path) -> usize {
    let names = disk.list(dir).unwrap_or_default();
    let stale = |name: &&String| is_temporary(name) && is_stale(disk, &dir.join(name));
    names.iter().filter(stale).filter(|name| disk.remove(&dir.join(name)).is_ok()).count()
}

fn is_stale(disk: &dyn Disk, path: &Path) -> bool {
    let age = disk.metadata(path).and_then(|metadata| metadata.modified());
    let Some(age) = age.ok().and_then(|time| time.elapsed().ok()) else { return false };
    if age < YOUNG {
        return false;
    }
    // The system drops a dead writer's lock.
    match disk.open(path).and_then(|file| disk.try_lock(&file)) {
        Ok(free) => free,
        Err(_) => age > OLD,
    }
}

/// A segment file, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its name in the directory.
    pub file: String,
    /// Which layers.
    pub pool: PoolKind,
    /// Tokens of the text before it.
    pub start: u64,
    /// Tokens in it.
    pub tokens: u64,
    /// Length of the file.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
    /// Whose pages these are; `None` when the file cannot be read.
    pub fingerprint: Option<Fingerprint>,
    /// Why the file cannot be used.
    pub problem: Option<String>,
}

fn info(disk: &dyn Disk, dir: &Path, file: &Listed) -> SegmentInfo {
    let opened = Segment::open(disk, &dir.join(file.name.to_string()));
    SegmentInfo {
        file: file.name.to_string(),
        pool: file.name.pool,
        start: file.name.start.saturating_mul(PAGE_TOKENS as u64),
        tokens: u64::from(file.name.pages) * PAGE_TOKENS as u64,
        bytes: file.bytes,
        used: file.used,
        fingerprint: opened.as_ref().ok().map(|segment| segment.meta.header.fingerprint),
        problem: opened.err().map(|error| error.to_string()),
    }
}

/// The segment files of a directory, what was used last first. Reads no pages.
pub fn list(dir: &Path) -> Result<Vec<SegmentInfo>> {
    list_on(&System, dir)
}

pub(super) fn list_on(disk: &dyn Disk, dir: &Path) -> Result<Vec<SegmentInfo>> {
    let mut files = listed(disk, dir)?;
    files.sort_by_key(|file| (std::cmp::Reverse(file.used), file.name.start));
    Ok(files.iter().map(|file| info(disk, dir, file)).collect())
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Segment files.
    pub files: usize,
    /// Pages whose checksums agree.
    pub pages: usize,
    /// Bytes of the files.
    pub bytes: u64,
    /// Files that cannot be used, and why.
    pub problems: Vec<(String, String)>,
}

/// Reads every page of every file and compares all checksums and hashes.
///
/// `progress(file, done, total)` is told the bytes that are behind; it may stop.
pub fn verify(
    dir: &Path,
    progress: &dyn Fn(&str, u64, u64) -> ControlFlow<()>,
) -> Result<VerifyReport> {
    verify_on(&System, dir, progress)
}

pub(super) fn verify_on(
    disk: &dyn Disk,
    dir: &Path,
    progress: &dyn Fn(&str, u64, u64) -> ControlFlow<()>,
) -> Result<VerifyReport> {
    let files = listed(disk, dir)?;
    let total = files.iter().map(|file| file.bytes).sum();
    let mut report = VerifyReport::default();
    for file in files {
        let name = file.name.to_string();
        if progress(&name, report.bytes, total).is_break() {
            return Err(Error::Interrupted);
        }
        let mut tell = |read| progress(&name, report.bytes + read, total);
        match verify_file(disk, &dir.join(&name), &mut tell) {
            Ok(pages) => report.pages += pages,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            // One that was removed meanwhile is nobody's problem.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                continue;
            }
            Err(error) => report.problems.push((name, error.to_string())),
        }
        report.files += 1;
        report.bytes += file.bytes;
    }
    Ok(report)
}

fn verify_file(
    disk: &dyn Disk,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<usize> {
    let segment = Segment::open(disk, path)?;
    segment.check_hashes()?;
    let mut scratch = Vec::new();
    for (index, page) in segment.meta.pages.iter().enumerate() {
        segment.check(disk, index, &mut scratch)?;
        if progress(page.offset + page.bytes).is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(segment.meta.pages.len())
}

/// What to remove. Nothing, unless a field says so.
#[derive(Clone, Debug, Default)]
pub struct Prune {
    /// Keep this many bytes of what was used last.
    pub budget: Option<u64>,
    /// Remove what was not used for this long.
    pub older_than: Option<Duration>,
    /// Remove the pages of these fingerprints.
    pub fingerprints: Vec<Fingerprint>,
    /// Remove files that cannot be used. Pages are not read for that; see [`verify`].
    pub damaged: bool,
    /// Remove the files of these names.
    pub files: Vec<String>,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes segment files of a directory, and what dead writers left there. Processes
/// that use a file keep it until they let it go.
pub fn prune(dir: &Path, wanted: &Prune) -> Result<Pruned> {
    prune_on(&System, dir, wanted)
}

pub(super) fn prune_on(disk: &dyn Disk, dir: &Path, wanted: &Prune) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    let mut files = listed(disk, dir)?;
    // Later pages first, so that what a stop half way leaves can still be found.
    files.sort_by_key(|file| std::cmp::Reverse(file.name.start));
    for file in files {
        let info = info(disk, dir, &file);
        let age = file.used.elapsed().unwrap_or_default();
        if wanted.older_than.is_some_and(|limit| age > limit)
            || info.fingerprint.is_some_and(|found| wanted.fingerprints.contains(&found))
            || (wanted.damaged && info.problem.is_some())
            || wanted.files.contains(&info.file)
        {
            remove(disk, dir, &file, &mut pruned)?;
        }
    }
    remove_leftovers(disk, dir);
    if let Some(budget) = wanted.budget {
        let evicted = evict(disk, dir, budget)?;
        pruned.files += evicted.files;
        pruned.bytes += evicted.bytes;
    }
    Ok(pruned)
}
