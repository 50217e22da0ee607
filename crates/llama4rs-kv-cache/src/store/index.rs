//! What is in the directory, as far as names tell.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::chain::ShortHash;
use super::disk::Disk;
use super::name::SegmentName;
use crate::PoolKind;

/// A directory that changed this recently may change again without a new time.
const CLOCK_DOUBT: Duration = Duration::from_secs(2);

/// Names of segments, found by the text up to the end of their first page.
#[derive(Default)]
pub(super) struct Index {
    by_head: HashMap<(PoolKind, ShortHash), Vec<SegmentName>>,
    bytes: HashMap<SegmentName, u64>,
    /// Files that could not be read: not tried again.
    refused: HashSet<SegmentName>,
    /// The directory's time when it was listed, if that settles what is in it.
    listed: Option<SystemTime>,
}

impl Index {
    /// Looks into the directory again if it may have changed.
    pub fn refresh(&mut self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let changed = disk.metadata(dir)?.modified()?;
        if self.listed == Some(changed) {
            return Ok(());
        }
        let settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > CLOCK_DOUBT);
        let names = disk.list(dir)?;
        let present: HashSet<_> =
            names.iter().filter_map(|name| SegmentName::parse(name)).collect();
        let gone: Vec<_> = self.bytes.keys().filter(|n| !present.contains(n)).copied().collect();
        for name in gone {
            self.remove(&name);
        }
        self.refused.retain(|name| present.contains(name));
        for name in present {
            if self.bytes.contains_key(&name) || self.refused.contains(&name) {
                continue;
            }
            // A file that vanishes between the two calls is as if it had not been there.
            if let Ok(metadata) = disk.metadata(&dir.join(name.to_string())) {
                self.insert(name, metadata.len());
            }
        }
        self.listed = settled.then_some(changed);
        Ok(())
    }

    pub fn insert(&mut self, name: SegmentName, bytes: u64) {
        self.refused.remove(&name);
        if self.bytes.insert(name, bytes).is_none() {
            self.by_head.entry((name.pool, name.head)).or_default().push(name);
        }
    }

    pub fn remove(&mut self, name: &SegmentName) {
        if self.bytes.remove(name).is_none() {
            return;
        }
        if let Some(names) = self.by_head.get_mut(&(name.pool, name.head)) {
            names.retain(|other| other != name);
            if names.is_empty() {
                self.by_head.remove(&(name.pool, name.head));
            }
        }
    }

    /// Leaves a file out for good.
    pub fn refuse(&mut self, name: &SegmentName) {
        self.remove(name);
        self.refused.insert(*name);
    }

    /// Segments that begin at page `start` with a page that ends in the hash `head`;
    /// the longest first.
    pub fn candidates(&self, pool: PoolKind, start: u64, head: ShortHash) -> Vec<SegmentName> {
        let names = self.by_head.get(&(pool, head)).map_or(&[][..], Vec::as_slice);
        let mut names: Vec<_> = names.iter().filter(|name| name.start == start).copied().collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.pages));
        names
    }

    /// Bytes of all segments.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.values().sum()
    }
}
