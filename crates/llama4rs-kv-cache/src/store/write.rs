//! New segment files.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::format::{checksum, layout, Header, Meta, MAX_PAGES};
use super::name::{temporary, SegmentName};
use super::path::Stretch;
use super::{upkeep, Error, Result, Store, Text};
use crate::PoolKind;

/// A file that its text has left behind counts as unused for this long.
const RETIRED: Duration = Duration::from_secs(7 * 24 * 3600);

/// The pages of a text, as a writer asks for them.
pub trait Pages {
    /// The bytes of a page of a pool, by its number in the text.
    fn read(&self, pool: PoolKind, page: usize) -> llama4rs_tensor::Result<Cow<'_, [u8]>>;
}

impl Store {
    /// Stores the pages of `text` from `floor` on that are not stored yet; `floor` as
    /// in [`available`](Self::available). Returns the bytes written. When it returns,
    /// the pages survive a crash of the process and of the system.
    ///
    /// On an error everything that was stored before still is.
    pub fn write(
        &mut self,
        pool: PoolKind,
        text: Text<'_>,
        floor: usize,
        pages: &dyn Pages,
    ) -> Result<u64> {
        let mut path = self.path(pool, text, floor);
        let mut start = floor + path.iter().map(|stretch| stretch.pages).sum::<usize>();
        if start >= text.pages() {
            self.touch(pool, text, floor);
            return Ok(0);
        }
        let now = SystemTime::now();
        self.mark_used(&path, now);
        let mut written = 0;
        while start < text.pages() {
            let end = (start / MAX_PAGES + 1) * MAX_PAGES;
            let end = end.min(text.pages());
            let absorbed = take_absorbed(&mut path, floor, start..end);
            let first = absorbed.last().map_or(start, |name| name.start as usize);
            written += self.write_segment(pool, text, first..end, now, pages)?;
            for name in absorbed {
                // What stays for now is removed by the budget, later.
                let _ = self.disk.remove(&self.file(&name));
                self.index.remove(&name);
            }
            start = end;
        }
        self.keep_budget()?;
        Ok(written)
    }

    fn write_segment(
        &mut self,
        pool: PoolKind,
        text: Text<'_>,
        range: Range<usize>,
        now: SystemTime,
        pages: &dyn Pages,
    ) -> Result<u64> {
        let header = Header {
            pool,
            fingerprint: self.options.fingerprint,
            parent: text.chain[range.start],
            head: text.chain[range.start + 1],
            end: text.chain[range.end],
            start: range.start as u64,
            pages: range.len(),
        };
        let name = header.name();
        let sizes = range.clone().map(|page| self.sizes.of(pool, page) as u64);
        let (table, file_bytes) = layout(&header, sizes).expect("pages of a pool have a size");
        let meta = Meta { header, keys: text.page_keys(range).to_vec(), pages: table };
        self.begun += 1;
        let temporary = self.options.dir.join(temporary(std::process::id(), self.begun));
        let outcome = self
            .fill(&temporary, meta, file_bytes, now, pages)
            .and_then(|()| self.publish(&temporary, &name));
        if outcome.is_err() {
            // It has no name yet that anybody believes; the next open tries again.
            let _ = self.disk.remove(&temporary);
        }
        outcome?;
        self.index.insert(name, file_bytes);
        Ok(file_bytes)
    }

    /// Writes a whole file under its temporary name and waits until it is durable.
    fn fill(
        &self,
        path: &Path,
        mut meta: Meta,
        file_bytes: u64,
        now: SystemTime,
        pages: &dyn Pages,
    ) -> Result<()> {
        let disk = &*self.disk;
        let file: File = disk.create(path).map_err(Error::io(path, "make"))?;
        // While it is locked, nobody takes it for left over. Where locks do not work,
        // its age tells.
        let _ = disk.try_lock(&file);
        disk.allocate(&file, file_bytes).map_err(Error::io(path, "reserve room for"))?;
        let write = |bytes: &[u8], offset| {
            disk.write_at(&file, bytes, offset).map_err(Error::io(path, "write"))
        };
        let (pool, first) = (meta.header.pool, meta.header.start as usize);
        for (number, entry) in (first..).zip(&mut meta.pages) {
            let bytes = pages.read(pool, number)?;
            if bytes.len() as u64 != entry.bytes {
                return Err(Error::Tensor(llama4rs_tensor::Error::Length {
                    what: format!("page {number} of the {} layers", pool.as_str()),
                    expected: entry.bytes as usize,
                    found: bytes.len(),
                }));
            }
            entry.checksum = checksum(&bytes);
            write(&bytes, entry.offset)?;
        }
        let (front, footer) = meta.encode(file_bytes);
        write(&front, 0)?;
        write(&footer, file_bytes - footer.len() as u64)?;
        disk.make_read_only(&file).map_err(Error::io(path, "protect"))?;
        disk.set_used(path, now).map_err(Error::io(path, "set the time of"))?;
        disk.sync(&file).map_err(Error::io(path, "make durable"))
    }

    fn publish(&self, temporary: &Path, name: &SegmentName) -> Result<()> {
        let (disk, path) = (&*self.disk, self.file(name));
        disk.rename(temporary, &path).map_err(Error::io(&path, "name"))?;
        disk.sync_dir(&self.options.dir).map_err(Error::io(&self.options.dir, "make durable"))
    }

    /// Marks the files that hold pages of `text` from `floor` on and nothing else as
    /// unused for long: the text has gone on and needs them no more. Somebody who goes on
    /// from their middle may, until the budget takes them.
    pub fn retire(&mut self, pool: PoolKind, text: Text<'_>, floor: usize) {
        let mut path = self.path(pool, text, floor);
        path.retain(Stretch::is_whole);
        self.mark_used(&path, SystemTime::now() - RETIRED);
    }

    /// Lets the files that were not used for longest go, if there are too many bytes.
    fn keep_budget(&mut self) -> Result<()> {
        let Some(budget) = self.options.budget else { return Ok(()) };
        if self.index.total_bytes() > budget {
            upkeep::evict(&*self.disk, &self.options.dir, budget)?;
            let _ = self.index.refresh(&*self.disk, &self.options.dir);
        }
        Ok(())
    }
}

/// Takes from the end of a path the files that a new one with pages `new` should hold
/// as well, the last first: those of the same block that are not larger than what
/// follows. So a text that grows by small steps has few files, and each of its pages
/// is written at most eight times.
fn take_absorbed(path: &mut Vec<Stretch>, floor: usize, new: Range<usize>) -> Vec<SegmentName> {
    let block = (new.start / MAX_PAGES * MAX_PAGES).max(floor);
    let mut first = new.start;
    let mut absorbed = Vec::new();
    while let Some(last) = path.last() {
        let start = last.name.start as usize;
        if !last.is_whole() || start < block || last.pages > new.end - first {
            break;
        }
        first = start;
        absorbed.extend(path.pop().map(|stretch| stretch.name));
    }
    absorbed
}
