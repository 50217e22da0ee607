//! Random operations beside a model: the set of pages that must be there.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::faults::Fault;
use super::crashes::choices;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Store the first pages of a text.
    Write { branches: Vec<u8>, chunk: bool },
    /// Read a text back.
    Read { branches: Vec<u8> },
    /// A text has left its chunk.
    Retire { branches: Vec<u8> },
    /// Another process opens the directory.
    Reopen,
    /// The process dies at a call of the next write, then the system crashes.
    Crash { at: u64, branches: Vec<u8>, seed: u64 },
    /// A byte of a file changes.
    Damage { file: prop::sample::Index, at: prop::sample::Index },
    /// Somebody prunes.
    Prune { budget: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few branches and long common beginnings, so that texts fork within files.
    let branches = (0..12usize, 0..3u8, 1..12usize)
        .prop_map(|(common, branch, own)| [vec![0; common], vec![branch; own]].concat());
    let branches = || branches.clone();
    let step = prop_oneof![
        6 => (branches(), any::<bool>()).prop_map(|(branches, chunk)| Step::Write { branches, chunk }),
        4 => branches().prop_map(|branches| Step::Read { branches }),
        1 => branches().prop_map(|branches| Step::Retire { branches }),
        1 => Just(Step::Reopen),
        2 => (0..40u64, branches(), 1u64..).prop_map(|(at, branches, seed)| Step::Crash { at, branches, seed }),
        1 => (any::<prop::sample::Index>(), any::<prop::sample::Index>())
            .prop_map(|(file, at)| Step::Damage { file, at }),
        1 => (0..2_000_000u64).prop_map(|budget| Step::Prune { budget }),
    ];
    prop::collection::vec(step, 1..25)
}

/// Pages that were acknowledged, by pool and text, and were not taken away since.
#[derive(Default)]
struct Model(HashSet<(PoolKind, PageHash)>);

impl Model {
    fn add(&mut self, pool: PoolKind, sample: &Sample) {
        self.0.extend(sample.chain[1..].iter().map(|&hash| (pool, hash)));
    }

    /// Pages of the text that must be found, from the first on.
    fn pages(&self, pool: PoolKind, sample: &Sample) -> usize {
        let known = |hash: &&PageHash| self.0.contains(&(pool, **hash));
        sample.chain[1..].iter().take_while(known).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn random_operations_never_lose_or_change_a_page(steps in steps()) {
        let dir = temp_dir();
        let disk = Arc::new(faulty(&dir));
        let open = || open_on(disk.clone(), &dir).unwrap();
        let mut store = open();
        let mut model = Model::default();
        // A writer believes the names of files; only a reader learns that one is damaged.
        let mut damaged = false;
        for step in steps {
            match step {
                Step::Write { branches, chunk } => {
                    let sample = Sample::new(&branches);
                    let pool = POOLS[chunk as usize];
                    store.write(pool, sample.text(), 0, &sample).unwrap();
                    model.add(pool, &sample);
                }
                Step::Read { branches } => {
                    let sample = Sample::new(&branches);
                    for pool in POOLS {
                        let named = store.available(pool, sample.text(), 0);
                        let found = sample.check(&mut store, pool);
                        prop_assert!(damaged || found >= model.pages(pool, &sample));
                        prop_assert!(found <= named);
                    }
                }
                Step::Retire { branches } => {
                    let sample = Sample::new(&branches);
                    store.retire(PoolKind::Chunked, sample.text(), 0);
                }
                Step::Reopen => store = open(),
                Step::Crash { at, branches, seed } => {
                    let sample = Sample::new(&branches);
                    disk.plan(at, Fault::Death);
                    let outcome = store.write(PoolKind::Global, sample.text(), 0, &sample);
                    disk.heal();
                    disk.crash(choices(seed));
                    if outcome.is_ok() {
                        model.add(PoolKind::Global, &sample);
                    }
                    store = open();
                }
                Step::Damage { file, at } => {
                    let files: Vec<_> = files(&store);
                    if !files.is_empty() {
                        let path = file.get(&files);
                        let mut bytes = std::fs::read(path).unwrap();
                        if !bytes.is_empty() {
                            let at = at.index(bytes.len());
                            bytes[at] ^= 1;
                            std::fs::remove_file(path).unwrap();
                            std::fs::write(path, bytes).unwrap();
                        }
                    }
                    damaged = true;
                }
                Step::Prune { budget } => {
                    let wanted = Prune { budget: Some(budget), ..Prune::default() };
                    upkeep::prune_on(&*disk, store.dir(), &wanted).unwrap();
                    model = Model::default();
                }
            }
        }
    }
}
