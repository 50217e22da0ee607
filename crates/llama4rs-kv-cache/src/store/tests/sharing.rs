//! Several users of a directory, and its budget.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::*;

const BUDGET: u64 = 600 << 10;

fn open_small(dir: &TempDir) -> Store {
    Store::open(StoreOptions { budget: Some(BUDGET), ..options(dir.path()) }, SIZES).unwrap()
}

/// Makes everything look as if it had been used a while ago.
fn age(store: &Store, seconds: u64) {
    for file in files(store) {
        let used = std::fs::metadata(&file).unwrap().modified().unwrap();
        System.set_used(&file, used - Duration::from_secs(seconds)).unwrap();
    }
}

fn total_bytes(store: &Store) -> u64 {
    files(store).iter().map(|file| std::fs::metadata(file).unwrap().len()).sum()
}

#[test]
fn the_budget_keeps_what_was_used_last() {
    let dir = temp_dir();
    let mut store = open_small(&dir);
    let samples: Vec<_> = (0..12).map(|branch| Sample::new(&[branch; 3])).collect();
    for sample in &samples {
        store.write(PoolKind::Global, sample.text(), 0, sample).unwrap();
        store.touch(PoolKind::Global, samples[0].text(), 0);
        assert!(total_bytes(&store) <= BUDGET);
        age(&store, 100);
        store.touched.clear();
    }
    let mut store = open(&dir);
    let kept: Vec<_> =
        samples.iter().map(|sample| sample.check(&mut store, PoolKind::Global)).collect();
    assert_eq!(kept, [3, 0, 0, 0, 0, 0, 0, 3, 3, 3, 3, 3][..12].to_vec());
}

#[test]
fn children_go_before_their_parents() {
    let dir = temp_dir();
    let mut store = open_small(&dir);
    let long = Sample::new(&[1; 1000]);
    for pages in [128, 256, 300, 400, 512, 700] {
        let part = Sample::new(&vec![1; pages]);
        store.write(PoolKind::Global, part.text(), 0, &long).unwrap();
        assert!(total_bytes(&store) <= BUDGET);
        let files = files(&store).len() - 1;
        let path = store.path(PoolKind::Global, long.text(), 0).len();
        assert_eq!(path, files, "no file without those before it");
    }
}

#[test]
fn a_reader_keeps_what_is_evicted() {
    let dir = temp_dir();
    let sample = Sample::new(&[1; 3]);
    let mut store = open(&dir);
    store.write(PoolKind::Global, sample.text(), 0, &sample).unwrap();
    let pages = read_pages(&mut store, PoolKind::Global, sample.text(), 0, 0..3);
    prune(store.dir(), &Prune { budget: Some(0), ..Prune::default() }).unwrap();
    assert_eq!(list(store.dir()).unwrap(), []);
    for (number, bytes) in pages.iter().enumerate() {
        assert_eq!(**bytes, *sample.page(PoolKind::Global, number));
    }
    assert_eq!(
        sample.check(&mut store, PoolKind::Global),
        0,
        "and everybody else sees that it is gone"
    );
}

#[test]
fn one_evicts_at_a_time() {
    let dir = temp_dir();
    let sample = Sample::new(&[1; 3]);
    let mut store = open(&dir);
    store.write(PoolKind::Global, sample.text(), 0, &sample).unwrap();
    let lock = System.open_lock(&store.dir().join(".lock")).unwrap();
    assert!(System.try_lock(&lock).unwrap());
    let all = Prune { budget: Some(0), ..Prune::default() };
    assert_eq!(prune(store.dir(), &all).unwrap(), Pruned::default());
    drop(lock);
    assert_eq!(prune(store.dir(), &all).unwrap().files, 1);
}

#[test]
fn pruning_removes_what_it_is_told() {
    let dir = temp_dir();
    let mut store = open(&dir);
    let samples: Vec<_> = (0..5).map(|branch| Sample::new(&[branch; 2])).collect();
    for sample in &samples {
        store.write(PoolKind::Global, sample.text(), 0, sample).unwrap();
    }
    let listed = list(store.dir()).unwrap();
    assert_eq!(listed.len(), 5);
    for info in &listed {
        assert_eq!((info.start, info.tokens, info.pool), (0, 128, PoolKind::Global));
        assert_eq!((info.fingerprint, info.problem.clone()), (Some(FINGERPRINT), None));
    }
    let left = |wanted: Prune| {
        let before = list(store.dir()).unwrap().len();
        let pruned = prune(store.dir(), &wanted).unwrap();
        let after = list(store.dir()).unwrap().len();
        assert_eq!(before - after, pruned.files);
        after
    };
    assert_eq!(left(Prune::default()), 5);
    assert_eq!(left(Prune { damaged: true, ..Prune::default() }), 5);
    assert_eq!(left(Prune { files: vec![listed[0].file.clone()], ..Prune::default() }), 4);
    assert_eq!(left(Prune { budget: Some(3 * listed[0].bytes), ..Prune::default() }), 3);
    let hour = Some(Duration::from_secs(3600));
    assert_eq!(left(Prune { older_than: hour, ..Prune::default() }), 3);
    let first = &list(store.dir()).unwrap()[0].file;
    System
        .set_used(&store.dir().join(first), SystemTime::now() - Duration::from_secs(7200))
        .unwrap();
    assert_eq!(left(Prune { older_than: hour, ..Prune::default() }), 2);
    assert_eq!(left(Prune { fingerprints: vec![[8; 32]], ..Prune::default() }), 2);
    assert_eq!(left(Prune { fingerprints: vec![FINGERPRINT], ..Prune::default() }), 0);
}

/// Writers of the same and of other texts, readers, and one who evicts, all at once.
#[test]
fn many_use_a_directory_at_once() {
    let dir = temp_dir();
    let samples: Vec<_> = (0..3).map(|branch| Sample::new(&[branch; 20])).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|number| {
                let (dir, samples) = (&dir, &samples);
                scope.spawn(move || {
                    let mut store = if number == 0 { open_small(dir) } else { open(dir) };
                    for pages in 1..=20 {
                        let whole = &samples[number / 2 + pages % 2];
                        let text = Text::new(&whole.chain[..=pages], &whole.keys);
                        store.write(PoolKind::Global, text, 0, whole).unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let mut store = open(&dir);
                for sample in &samples {
                    sample.check(&mut store, PoolKind::Global);
                }
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let all = Prune { budget: Some(BUDGET / 2), ..Prune::default() };
                prune(&dir.path().join("kv"), &all).unwrap_or_default();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let outcomes: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    });
    let mut store = open(&dir);
    for sample in &samples {
        store.write(PoolKind::Global, sample.text(), 0, sample).unwrap();
        assert_eq!(sample.check(&mut store, PoolKind::Global), 20);
    }
}
