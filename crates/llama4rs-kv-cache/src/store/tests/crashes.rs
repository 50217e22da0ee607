//! Every call of every operation fails once, in every way.

use std::cell::Cell;
use std::io::ErrorKind;

use super::super::faults::{Fault, Faulty};
use super::super::upkeep;
use super::*;

const FAULTS: [Fault; 5] = [
    Fault::Error(ErrorKind::StorageFull),
    Fault::Error(ErrorKind::PermissionDenied),
    Fault::Error(ErrorKind::NotFound),
    Fault::ShortWrite,
    Fault::Death,
];

/// A small generator of choices.
pub(super) fn choices(seed: u64) -> impl FnMut(u64) -> u64 {
    let state = Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    move |below| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x % below.max(1)
    }
}

struct World {
    dir: TempDir,
    disk: Arc<Faulty>,
    /// Stored before anything fails.
    first: Sample,
    /// The same text, longer: storing it absorbs files of `first`.
    second: Sample,
}

impl World {
    fn new() -> Self {
        let dir = temp_dir();
        let disk = Arc::new(faulty(&dir));
        let this = Self { dir, disk, first: Sample::new(&[1; 3]), second: Sample::new(&[1; 9]) };
        let mut store = this.open().unwrap();
        for pages in [1, 2, 3] {
            for pool in POOLS {
                let part = Sample::new(&vec![1; pages]);
                store.write(pool, part.text(), 0, &this.first).unwrap();
            }
        }
        this
    }

    fn open(&self) -> Result<Store> {
        open_on(self.disk.clone(), &self.dir)
    }

    /// What must hold whatever happened.
    fn check(&self, acknowledged: usize) {
        for mut store in [self.open().unwrap(), open(&self.dir)] {
            for pool in POOLS {
                assert!(self.second.check(&mut store, pool) >= acknowledged, "stored pages lost");
            }
        }
    }
}

/// An operation; returns how many pages of `second` it promises to have stored.
type Operation = fn(&World) -> Result<usize>;

fn write(world: &World) -> Result<usize> {
    let mut store = world.open()?;
    for pool in POOLS {
        store.write(pool, world.second.text(), 0, &world.second)?;
    }
    Ok(9)
}

fn read(world: &World) -> Result<usize> {
    let mut store = world.open()?;
    for pool in POOLS {
        world.second.check(&mut store, pool);
        store.touch(pool, world.second.text(), 0);
    }
    Ok(3)
}

fn keep_small_budget(world: &World) -> Result<usize> {
    let budget = Some(300 << 10);
    let options = StoreOptions { budget, ..options(world.dir.path()) };
    let mut store = Store::open_on(world.disk.clone(), options, SIZES)?;
    store.write(PoolKind::Global, world.second.text(), 0, &world.second)?;
    Ok(0)
}

fn prune_all(world: &World) -> Result<usize> {
    let wanted =
        Prune { older_than: Some(Default::default()), budget: Some(0), ..Prune::default() };
    let dir = world.dir.path().join("kv");
    upkeep::list_on(&*world.disk, &dir)?;
    upkeep::verify_on(&*world.disk, &dir, &|_, _, _| std::ops::ControlFlow::Continue(()))?;
    upkeep::prune_on(&*world.disk, &dir, &wanted)?;
    Ok(0)
}

/// Lets call after call of `operation` fail. `keeps` pages must survive whatever comes.
fn fail_everywhere(operation: Operation, keeps: usize) {
    let mut cases = 0;
    for fault in FAULTS {
        for at in 0.. {
            let seeds = if fault == Fault::Death { 4 } else { 1 };
            let mut came = false;
            for seed in 0..seeds {
                let world = World::new();
                world.disk.plan(at, fault);
                let outcome = operation(&world);
                came = world.disk.has_failed();
                world.disk.heal();
                if fault == Fault::Death {
                    world.disk.crash(choices(at * 7 + seed + 1));
                }
                world.check(outcome.map_or(keeps, |pages| pages.max(keeps)));
                // And it goes on as if nothing had been.
                if keeps > 0 {
                    write(&world).unwrap();
                    world.check(9);
                }
                cases += 1;
            }
            if !came {
                break;
            }
        }
    }
    assert!(cases > 50, "{cases} cases only: do the faults come?");
}

#[test]
fn writing_survives_a_fault_at_every_call() {
    fail_everywhere(write, 3);
}

#[test]
fn reading_survives_a_fault_at_every_call() {
    fail_everywhere(read, 3);
}

#[test]
fn eviction_survives_a_fault_at_every_call() {
    fail_everywhere(keep_small_budget, 0);
}

#[test]
fn pruning_survives_a_fault_at_every_call() {
    fail_everywhere(prune_all, 0);
}

/// A completed write survives a crash at any later moment.
#[test]
fn what_was_acknowledged_is_durable() {
    for seed in 1..40 {
        let world = World::new();
        write(&world).unwrap();
        world.disk.crash(choices(seed));
        world.check(9);
    }
}

/// The crash of the fault layer does lose what was not made durable.
#[test]
fn a_crash_loses_what_was_not_made_durable() {
    let lost = (1..30).filter(|&seed| {
        let world = World::new();
        let dir = world.dir.path().join("kv");
        let path = dir.join("unsafe");
        let file = world.disk.create(&path).unwrap();
        world.disk.allocate(&file, 1000).unwrap();
        world.disk.write_at(&file, &[7; 1000], 0).unwrap();
        world.disk.crash(choices(seed));
        std::fs::read(&path).map_or(true, |bytes| bytes != [7; 1000])
    });
    assert!(lost.count() > 10);
}
