//! From a text to the files that hold its pages.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use super::name::SegmentName;
use super::read::common_pages;
use super::{Error, Store, Text};
use crate::PoolKind;

/// A path is marked as used at most this often while it is only read.
const TOUCH_PAUSE: Duration = Duration::from_secs(30);

/// When paths were last marked as used, by their last file.
pub(super) type Touched = HashMap<SegmentName, Instant>;

/// A file on a text's path, and how many of its first pages are the text's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub name: SegmentName,
    pub pages: usize,
}

impl Stretch {
    /// Its first page in the text.
    pub fn start(&self) -> usize {
        self.name.start as usize
    }

    /// The page behind it.
    pub fn end(&self) -> usize {
        self.start() + self.pages
    }

    /// Whether all of the file's pages are the text's.
    pub fn is_whole(&self) -> bool {
        self.pages == self.name.pages as usize
    }
}

impl Store {
    /// How many pages of `text` are stored without a gap, from page `floor` on (0, or
    /// for the chunked layers the first page of a chunk). By their names; whether the
    /// files are sound turns out when they are [read](Self::read).
    pub fn available(&mut self, pool: PoolKind, text: Text<'_>, floor: usize) -> usize {
        self.path(pool, text, floor).iter().map(|stretch| stretch.pages).sum()
    }

    /// The files that hold `text` from page `floor` on, without a gap.
    pub(super) fn path(&mut self, pool: PoolKind, text: Text<'_>, floor: usize) -> Vec<Stretch> {
        // A directory that cannot be listed any more has what it had.
        let _ = self.index.refresh(&*self.disk, &self.options.dir);
        let mut path = Vec::new();
        let mut page = floor;
        while page < text.pages() {
            let Some(stretch) = self.longest(pool, text, page) else { break };
            page += stretch.pages;
            path.push(stretch);
        }
        path
    }

    /// The file with most of the text's pages from `page` on.
    fn longest(&mut self, pool: PoolKind, text: Text<'_>, page: usize) -> Option<Stretch> {
        let rest = text.pages() - page;
        let mut best: Option<Stretch> = None;
        let head = text.chain[page + 1].short();
        for name in self.index.candidates(pool, page as u64, head) {
            let count = name.pages as usize;
            if best.is_some_and(|best| best.pages >= count.min(rest)) {
                break;
            }
            // The hash says that all pages are the text's; else its token keys must tell.
            let whole = count <= rest && text.chain[page + count].short() == name.end;
            let pages = if whole { count } else { self.common_pages(&name, text) };
            if pages > best.map_or(0, |best| best.pages) {
                best = Some(Stretch { name, pages });
            }
        }
        best
    }

    /// The first pages of a file that are the text's.
    fn common_pages(&mut self, name: &SegmentName, text: Text<'_>) -> usize {
        match self.open_segment(name) {
            Ok(segment) => common_pages(&segment, text),
            Err(error) => {
                self.blame(name, &error);
                0
            }
        }
    }

    pub(super) fn file(&self, name: &SegmentName) -> std::path::PathBuf {
        self.options.dir.join(name.to_string())
    }

    /// Draws the consequence of a file that cannot be used: a damaged one is removed,
    /// so that its pages are stored anew; any other is left alone and not tried again.
    pub(super) fn blame(&mut self, name: &SegmentName, error: &Error) {
        self.index.refuse(name);
        if error.is_damage() {
            let _ = self.disk.remove(&self.file(name));
        }
    }

    /// Marks the files of `text` from `floor` on as used now, at most twice a minute;
    /// `floor` as in [`available`](Self::available).
    pub fn touch(&mut self, pool: PoolKind, text: Text<'_>, floor: usize) {
        let path = self.path(pool, text, floor);
        let Some(last) = path.last() else { return };
        if self.touched.get(&last.name).is_none_or(|then| then.elapsed() > TOUCH_PAUSE) {
            self.touched.insert(last.name, Instant::now());
            self.mark_used(&path, SystemTime::now());
        }
    }

    /// Parents come first and never get an older time than their children, so that
    /// children are evicted before them.
    pub(super) fn mark_used(&self, path: &[Stretch], now: SystemTime) {
        for stretch in path {
            // A time that cannot be set makes the file look older than it is.
            let _ = self.disk.set_used(&self.file(&stretch.name), now);
        }
    }
}
