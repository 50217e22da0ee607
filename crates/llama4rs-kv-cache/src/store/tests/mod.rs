//! The store against a plain definition of what it must hold.

mod crashes;
mod damage;
mod model;
mod sharing;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::disk::{Disk, System};
use super::faults::Faulty;
use super::*;
use crate::{TokenKey, PAGE_TOKENS};

pub(super) const SIZES: PageSizes = PageSizes { first_global: 9000, global: 5000, chunked: 70_000 };
pub(super) const POOLS: [PoolKind; 2] = [PoolKind::Global, PoolKind::Chunked];
pub(super) const FINGERPRINT: Fingerprint = [3; 32];

/// A text and its chain.
#[derive(Clone)]
pub(super) struct Sample {
    keys: Vec<TokenKey>,
    chain: Vec<PageHash>,
}

impl Sample {
    /// `branches[i]` decides the tokens of page `i`; texts with the same beginning of
    /// branches begin alike.
    pub fn new(branches: &[u8]) -> Self {
        let key = |(page, &branch): (usize, &u8)| {
            (0..PAGE_TOKENS).map(move |i| (page * 1000 + i) as u64 | u64::from(branch) << 50)
        };
        let keys: Vec<_> = branches.iter().enumerate().flat_map(key).collect();
        let mut chain = Vec::new();
        extend_chain(&mut chain, PageHash::root(&FINGERPRINT), &keys);
        Self { keys, chain }
    }

    pub fn text(&self) -> Text<'_> {
        Text::new(&self.chain, &self.keys)
    }

    /// What a page must hold: a function of the text up to its end.
    pub fn page(&self, pool: PoolKind, page: usize) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new_keyed(self.chain[page + 1].as_bytes());
        hasher.update(pool.as_str().as_bytes());
        let mut bytes = vec![0; SIZES.of(pool, page)];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Checks that what is stored of this text is right, and returns how many pages.
    pub fn check(&self, store: &mut Store, pool: PoolKind) -> usize {
        let wanted = 0..self.text().pages();
        let pages = read_pages(store, pool, self.text(), 0, wanted);
        for (number, bytes) in pages.iter().enumerate() {
            assert!(**bytes == *self.page(pool, number), "a wrong page {number} of {pool:?}");
        }
        pages.len()
    }
}

impl Pages for Sample {
    fn read(&self, pool: PoolKind, page: usize) -> llama4rs_tensor::Result<Cow<'_, [u8]>> {
        Ok(self.page(pool, page).into())
    }
}

pub(super) fn options(dir: &Path) -> StoreOptions {
    let dir = dir.join("kv");
    let threads = NonZeroUsize::new(2).unwrap();
    StoreOptions { dir, fingerprint: FINGERPRINT, budget: None, read: ReadMode::Map, threads }
}

/// Pages, read without an interruption.
pub(super) fn read_pages(
    store: &mut Store,
    pool: PoolKind,
    text: Text<'_>,
    floor: usize,
    wanted: std::ops::Range<usize>,
) -> Vec<llama4rs_tensor::Bytes> {
    store.read(pool, text, floor, wanted, &mut || false).unwrap()
}

/// In memory where there is such a place: the tests make thousands of stores.
pub(super) fn temp_dir() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

/// A store without faults, which does not wait for the medium.
pub(super) fn open(dir: &TempDir) -> Store {
    open_on(Arc::new(faulty(dir)), dir).unwrap()
}

/// A file system for stores in `dir`.
pub(super) fn faulty(dir: &TempDir) -> Faulty {
    let graveyard = dir.path().join("graveyard");
    std::fs::create_dir_all(&graveyard).unwrap();
    Faulty::new(&graveyard)
}

pub(super) fn open_on(disk: Arc<dyn Disk>, dir: &TempDir) -> Result<Store> {
    Store::open_on(disk, options(dir.path()), SIZES)
}

/// The files of a store.
pub(super) fn files(store: &Store) -> Vec<std::path::PathBuf> {
    let names = System.list(store.dir()).unwrap();
    names.iter().map(|name| store.dir().join(name)).collect()
}

#[test]
fn what_is_written_is_read_in_either_mode() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[1; 130]);
    // On the real file system.
    let open = |dir: &TempDir| Store::open(options(dir.path()), SIZES).unwrap();
    for pool in POOLS {
        assert_eq!(sample.check(&mut open(&dir), pool), 0);
        let written = open(&dir).write(pool, sample.text(), 0, &sample).unwrap();
        assert!(written as usize > 130 * SIZES.of(pool, 1));
        assert_eq!(open(&dir).write(pool, sample.text(), 0, &sample).unwrap(), 0, "once only");
    }
    for read in [ReadMode::Map, ReadMode::Copy] {
        let options = StoreOptions { read, ..options(dir.path()) };
        let mut store = Store::open(options, SIZES).unwrap();
        for pool in POOLS {
            assert_eq!(sample.check(&mut store, pool), 130);
            let part = read_pages(&mut store, pool, sample.text(), 0, 126..129);
            assert_eq!(part.len(), 3);
            for (bytes, number) in part.iter().zip(126..) {
                assert_eq!(**bytes, *sample.page(pool, number));
                assert_eq!(bytes.is_mapped(), read == ReadMode::Map);
            }
        }
    }
}

#[test]
fn texts_share_their_beginning() {
    let dir = temp_dir();
    let mut store = open(&dir);
    let long = Sample::new(&[1; 20]);
    store.write(PoolKind::Global, long.text(), 0, &long).unwrap();
    let mut branches = [1; 30];
    branches[12..].fill(2);
    let fork = Sample::new(&branches);
    assert_eq!(store.available(PoolKind::Global, fork.text(), 0), 12);
    assert_eq!(fork.check(&mut store, PoolKind::Global), 12);
    let written = store.write(PoolKind::Global, fork.text(), 0, &fork).unwrap();
    assert!(written < 19 * SIZES.global as u64 + (200 << 10), "the common pages stay shared");
    for mut store in [store, open(&dir)] {
        assert_eq!(fork.check(&mut store, PoolKind::Global), 30);
        assert_eq!(long.check(&mut store, PoolKind::Global), 20);
        assert_eq!(Sample::new(&[1; 7]).check(&mut store, PoolKind::Global), 7);
        assert_eq!(Sample::new(&[2; 7]).check(&mut store, PoolKind::Global), 0);
        assert_eq!(long.check(&mut store, PoolKind::Chunked), 0, "pools are apart");
    }
}

#[test]
fn a_text_that_grows_by_single_pages_has_few_files() {
    let dir = temp_dir();
    let mut store = open(&dir);
    let whole = Sample::new(&[1; 300]);
    let mut pages_written = 0;
    for pages in 1..=300 {
        let part = Sample::new(&vec![1; pages]);
        let written = store.write(PoolKind::Global, part.text(), 0, &whole).unwrap();
        pages_written += (written as usize).div_ceil(SIZES.global.next_multiple_of(4096));
        assert_eq!(store.available(PoolKind::Global, whole.text(), 0), pages);
        assert!(files(&store).len() <= pages / 128 + 7, "{} files", files(&store).len());
    }
    // Each page at most eight times, and the space before the pages once per file.
    assert!(pages_written < 300 * 8 + 300 * 17, "{pages_written}");
    assert_eq!(whole.check(&mut open(&dir), PoolKind::Global), 300);
}

#[test]
fn chunked_pages_begin_at_a_chunk_and_go_first_after_it() {
    let dir = temp_dir();
    let mut store = open(&dir);
    let other = Sample::new(&[2; 10]);
    store.write(PoolKind::Chunked, other.text(), 6, &other).unwrap();
    let sample = Sample::new(&[1; 10]);
    store.write(PoolKind::Chunked, sample.text(), 6, &sample).unwrap();
    assert_eq!(store.available(PoolKind::Chunked, sample.text(), 6), 4);
    assert_eq!(store.available(PoolKind::Chunked, sample.text(), 0), 0);
    let pages = read_pages(&mut store, PoolKind::Chunked, sample.text(), 6, 7..10);
    assert_eq!(*pages[0], *sample.page(PoolKind::Chunked, 7));
    let mut fork = [1; 10];
    fork[8..].fill(2);
    let fork = Sample::new(&fork);
    store.retire(PoolKind::Chunked, other.text(), 6);
    store.retire(PoolKind::Chunked, fork.text(), 6);
    let budget = Some(std::fs::metadata(&files(&store)[0]).unwrap().len());
    prune(store.dir(), &Prune { budget, ..Prune::default() }).unwrap();
    let left = |sample: &Sample| open(&dir).available(PoolKind::Chunked, sample.text(), 6);
    assert_eq!((left(&sample), left(&other)), (4, 0), "a fork does not retire what it shares");
}

#[test]
fn every_byte_that_is_needed_is_read_once() {
    let dir = temp_dir();
    let sample = Sample::new(&[1; 300]);
    for pool in POOLS {
        open(&dir).write(pool, sample.text(), 0, &sample).unwrap();
    }
    let bytes = |pool, pages: std::ops::Range<usize>| -> u64 {
        pages.map(|page| SIZES.of(pool, page) as u64).sum()
    };
    for threads in [1, 2, 5] {
        for (pool, wanted, files) in [
            (PoolKind::Global, 0..300, 3),
            (PoolKind::Global, 0..1, 1),
            (PoolKind::Global, 127..129, 2),
            (PoolKind::Chunked, 250..290, 2),
            (PoolKind::Chunked, 9..9, 0),
        ] {
            let threads = NonZeroUsize::new(threads).unwrap();
            let options = StoreOptions { threads, ..options(dir.path()) };
            let mut store = Store::open(options, SIZES).unwrap();
            let read = read_pages(&mut store, pool, sample.text(), 0, wanted.clone());
            for (page, bytes) in wanted.clone().zip(&read) {
                assert_eq!(**bytes, *sample.page(pool, page), "page {page} with {threads} threads");
            }
            let counted = store.bytes_read();
            assert_eq!(counted.pages, bytes(pool, wanted));
            assert!(counted.meta <= files * (format::MAX_META_BYTES + 64) as u64);
        }
    }
}

#[test]
fn an_interruption_of_reading_is_no_damage() {
    let dir = temp_dir();
    let options = StoreOptions { threads: NonZeroUsize::MIN, ..options(dir.path()) };
    let mut store = Store::open(options, SIZES).unwrap();
    let sample = Sample::new(&[1; 200]);
    store.write(PoolKind::Chunked, sample.text(), 0, &sample).unwrap();
    for after in [0, 1, 2, 30] {
        let mut asked = 0;
        let mut interrupted = || {
            asked += 1;
            asked > after
        };
        let read = store.read(PoolKind::Chunked, sample.text(), 0, 0..200, &mut interrupted);
        assert_eq!(read.err(), Some(Interrupted));
        assert_eq!(asked, after + 1, "nobody is asked again");
    }
    assert_eq!(sample.check(&mut store, PoolKind::Chunked), 200);
}

/// Several files are damaged: what one thread would find is found, and all but the first of
/// them may stay.
#[test]
fn pages_end_before_the_first_damage() {
    for (bad, expected) in [(vec![0], 0), (vec![1], 128), (vec![2, 1], 128), (vec![2], 256)] {
        let dir = temp_dir();
        let sample = Sample::new(&[1; 300]);
        let mut store = open(&dir);
        store.write(PoolKind::Global, sample.text(), 0, &sample).unwrap();
        let mut paths = files(&store);
        paths.sort_by_key(|path| {
            name::SegmentName::parse(path.file_name().unwrap().to_str().unwrap()).unwrap().start
        });
        for &bad in &bad {
            let mut bytes = std::fs::read(&paths[bad]).unwrap();
            bytes[(64 << 10) + 3] ^= 1;
            std::fs::remove_file(&paths[bad]).unwrap();
            std::fs::write(&paths[bad], bytes).unwrap();
        }
        assert_eq!(sample.check(&mut store, PoolKind::Global), expected);
        let first = *bad.iter().min().unwrap();
        assert!(!paths[first].exists(), "a damaged file is removed");
        assert_eq!(files(&store).len(), 2);
    }
}
