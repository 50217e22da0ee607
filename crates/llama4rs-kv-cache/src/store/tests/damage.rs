//! Files that are not as they were written.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use super::super::format::Meta;
use super::super::name::temporary;
use super::*;

/// A store with one file of three pages.
fn one_file() -> (TempDir, Sample, PathBuf) {
    let dir = temp_dir();
    let sample = Sample::new(&[1; 3]);
    let mut store = open(&dir);
    store.write(PoolKind::Global, sample.text(), 0, &sample).unwrap();
    let path = files(&store).remove(0);
    (dir, sample, path)
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn problems(dir: &TempDir) -> Vec<(String, String)> {
    verify(&dir.path().join("kv"), &|_, _, _| std::ops::ControlFlow::Continue(())).unwrap().problems
}

/// A damaged file gives right pages or none; it is found by `verify`, and the pages
/// are stored again by the next writer.
fn check_damaged(dir: &TempDir, sample: &Sample, path: &Path, matters: bool) {
    assert_eq!(problems(dir).len(), matters as usize, "{:?}", problems(dir));
    let unsupported = problems(dir).iter().any(|(_, problem)| problem.contains("later version"));
    let mut store = open(dir);
    let pages = sample.check(&mut store, PoolKind::Global);
    assert_eq!(pages == 3, !matters);
    assert_eq!(path.exists(), !matters || unsupported, "a damaged file is removed");
    store.write(PoolKind::Global, sample.text(), 0, sample).unwrap();
    assert_eq!(sample.check(&mut open(dir), PoolKind::Global), 3);
    assert_eq!(problems(dir), []);
}

#[test]
fn no_flipped_byte_gives_a_wrong_page() {
    let (_dir, _, path) = one_file();
    let length = std::fs::metadata(&path).unwrap().len() as usize;
    let front = 256 + 3 * (64 * 8 + 16);
    let first = 64 << 10;
    let used = |at: usize| {
        at < front
            || (first..first + 9000).contains(&at)
            || (first + 12288..first + 12288 + 5000).contains(&at)
            || (first + 20480..first + 20480 + 5000).contains(&at)
            || at >= length - 64
    };
    let edges = [front - 1, front, first - 1, first, first + 8999, first + 9000, length - 64];
    for at in (0..length).step_by(401).chain(0..60).chain(edges).chain(length - 64..length) {
        let (dir, sample, path) = one_file();
        change(&path, |bytes| bytes[at] ^= 0x40);
        check_damaged(&dir, &sample, &path, used(at));
    }
}

#[test]
fn a_file_cut_anywhere_is_a_miss() {
    let (_dir, _, path) = one_file();
    let length = std::fs::metadata(&path).unwrap().len() as usize;
    for keep in (0..length).step_by(2003).chain([1, 255, 256, length - 64, length - 1]) {
        let (dir, sample, path) = one_file();
        change(&path, |bytes| bytes.truncate(keep));
        check_damaged(&dir, &sample, &path, true);
    }
    let (dir, sample, path) = one_file();
    change(&path, |bytes| bytes.push(0));
    check_damaged(&dir, &sample, &path, true);
}

/// Cut after its header was read, before its pages are.
#[test]
fn a_file_cut_while_it_is_open_is_a_miss() {
    let (dir, sample, path) = one_file();
    let mut segment = segment::Segment::open(&System, &path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(70_000).unwrap();
    for read in [ReadMode::Copy, ReadMode::Map] {
        if read == ReadMode::Map {
            segment.map().unwrap();
        }
        let error = segment.page(&System, 2, &mut Vec::new()).unwrap_err();
        assert!(error.is_damage(), "{error}");
    }
    check_damaged(&dir, &sample, &path, true);
}

/// A file with valid checksums under a name that is not its own.
#[test]
fn a_renamed_file_is_a_miss() {
    let (dir, sample, path) = one_file();
    let other = Sample::new(&[2; 3]);
    let mut store = open(&dir);
    store.write(PoolKind::Global, other.text(), 0, &other).unwrap();
    let theirs = files(&store).into_iter().find(|file| *file != path).unwrap();
    std::fs::rename(theirs, &path).unwrap();
    check_damaged(&dir, &sample, &path, true);
}

/// Everything fits, but the token keys are not those of the hash: a collision.
#[test]
fn token_keys_are_compared() {
    let (dir, sample, path) = one_file();
    change(&path, |bytes| {
        let length = bytes.len();
        let end: &[u8; 64] = bytes.last_chunk().unwrap();
        let mut meta = Meta::parse(bytes, length as u64, end).unwrap();
        meta.keys[100] ^= 1;
        let (front, footer) = meta.encode(length as u64);
        bytes[..front.len()].copy_from_slice(&front);
        bytes[length - 64..].copy_from_slice(&footer);
    });
    check_damaged(&dir, &sample, &path, true);
}

/// The same text with another model's pages, put under the right name.
#[test]
fn a_fingerprint_is_compared() {
    let (dir, sample, path) = one_file();
    change(&path, |bytes| {
        let length = bytes.len();
        let end: &[u8; 64] = bytes.last_chunk().unwrap();
        let mut meta = Meta::parse(bytes, length as u64, end).unwrap();
        meta.header.fingerprint = [9; 32];
        let (front, footer) = meta.encode(length as u64);
        bytes[..front.len()].copy_from_slice(&front);
        bytes[length - 64..].copy_from_slice(&footer);
    });
    assert_eq!(sample.check(&mut open(&dir), PoolKind::Global), 0);
}

#[test]
fn other_fingerprints_and_page_sizes_never_meet() {
    let (dir, sample, _) = one_file();
    let fingerprint = [4; 32];
    let other = StoreOptions { fingerprint, ..options(dir.path()) };
    let mut store = Store::open(other, SIZES).unwrap();
    let mut chain = Vec::new();
    extend_chain(&mut chain, store.root(), &sample.keys);
    assert_eq!(store.available(PoolKind::Global, Text::new(&chain, &sample.keys), 0), 0);
    let sizes = PageSizes { global: 4999, ..SIZES };
    let mut store = Store::open(options(dir.path()), sizes).unwrap();
    assert_eq!(
        sample.check(&mut store, PoolKind::Global),
        1,
        "the first page fits, the second not"
    );
}

/// What a later version wrote is ignored, and left to it.
#[test]
fn files_of_a_later_version_are_left_alone() {
    let (dir, sample, path) = one_file();
    change(&path, |bytes| bytes[8] = 2);
    assert_eq!(sample.check(&mut open(&dir), PoolKind::Global), 0);
    assert!(path.exists());
    let (_, problem) = &problems(&dir)[0];
    assert!(problem.contains("format version 2, which a later version"), "{problem}");
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    let (dir, sample, path) = one_file();
    let kv = dir.path().join("kv");
    std::fs::write(kv.join("notes.txt"), "mine").unwrap();
    std::fs::create_dir(kv.join("sessions")).unwrap();
    assert_eq!(prune(&kv, &Prune { budget: Some(0), ..Prune::default() }).unwrap().files, 1);
    assert!(!path.exists());
    assert!(kv.join("notes.txt").exists() && kv.join("sessions").exists());
    assert_eq!(sample.check(&mut open(&dir), PoolKind::Global), 0);
}

#[test]
fn files_are_for_the_owner_to_read() {
    let (dir, _, path) = one_file();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o400);
    assert_eq!(mode(&dir.path().join("kv")), 0o700);
}

#[test]
fn leftovers_of_the_dead_are_removed_and_those_of_the_living_not() {
    let (dir, _, _) = one_file();
    let kv = dir.path().join("kv");
    let file = |number, age| {
        let path = kv.join(temporary(1, number));
        let file = std::fs::File::create(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        (path, file)
    };
    let (dead, _) = file(1, 60);
    let (living, handle) = file(2, 60);
    handle.lock().unwrap();
    let (young, _) = file(3, 1);
    open(&dir);
    assert_eq!([&dead, &living, &young].map(|path| path.exists()), [false, true, true]);
}
