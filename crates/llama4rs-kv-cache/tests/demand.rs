//! Sequences that were let in by their demand never run out of pages.

use std::num::NonZeroUsize;
use std::path::Path;

use llama4rs_cpu::Cpu;
use llama4rs_kv_cache::store::{ReadMode, Store, StoreOptions};
use llama4rs_kv_cache::{Demand, KvCache, KvLayout, KvStep, PoolKind, SequenceKv, TokenKey};
use llama4rs_tensor::KvDtype;
use proptest::prelude::*;

/// Tokens of a step.
const STEP: usize = 150;

/// A text and how far one sequence goes in it.
#[derive(Clone, Debug)]
struct Wish {
    /// Which branch the text takes at token 100, and at token 300.
    stem: (u64, u64),
    tokens: usize,
}

impl Wish {
    fn keys(&self) -> Vec<TokenKey> {
        let branch = |i| match i {
            0..100 => 0,
            100..300 => 1 + self.stem.0,
            _ => 10 + 4 * self.stem.0 + self.stem.1,
        };
        (0..self.tokens as u64).map(|i| 1000 * branch(i) + i).collect()
    }
}

struct Running {
    kv: SequenceKv,
    keys: Vec<TokenKey>,
}

fn wish() -> impl Strategy<Value = Wish> {
    ((0u64..2, 0u64..3), 1usize..700).prop_map(|(stem, tokens)| Wish { stem, tokens })
}

fn layout(chunk: usize, dtype: KvDtype) -> KvLayout {
    use PoolKind::{Chunked, Global};
    let layers = vec![Chunked, Chunked, Global];
    KvLayout {
        layers,
        chunk_size: Some(chunk),
        num_kv_heads: 1,
        head_dim: 16,
        dtype,
        mapped: false,
    }
}

/// A random run: who wants what, and what happens.
#[derive(Clone, Debug)]
struct Run {
    chunk: usize,
    dtype: KvDtype,
    wishes: Vec<Wish>,
    /// The budget, as a multiple of what the largest wish needs.
    room: f64,
    prefix_budget: usize,
    /// Which sequence takes a step, of how many tokens, and whether it ends or is undone.
    choices: Vec<(prop::sample::Index, usize, u32)>,
}

fn run() -> impl Strategy<Value = Run> {
    let dtypes = [KvDtype::F32, KvDtype::Int8, KvDtype::Int4];
    (
        prop::sample::select(vec![50usize, 128, 256, 4096]),
        prop::sample::select(dtypes.to_vec()),
        prop::collection::vec(wish(), 1..12),
        1.0f64..3.0,
        prop::sample::select(vec![0usize, 60_000, 1 << 30]),
        prop::collection::vec((any::<prop::sample::Index>(), 1..=STEP, 0..30u32), 300),
    )
        .prop_map(|(chunk, dtype, wishes, room, prefix_budget, choices)| Run {
            chunk,
            dtype,
            wishes,
            room,
            prefix_budget,
            choices,
        })
}

/// A sequence that the demand lets in gets all its pages, and the pages in use stay below
/// the budget.
fn check(run: Run, files: Option<(&Path, ReadMode)>) -> Result<(), TestCaseError> {
    let backend = Cpu::new(Some(1)).unwrap();
    let mut cache =
        KvCache::new(&backend, layout(run.chunk, run.dtype), run.prefix_budget).unwrap();
    if let Some((dir, read)) = files {
        let (dir, fingerprint, budget) = (dir.to_owned(), [1; 32], None);
        let threads = NonZeroUsize::MIN;
        let options = StoreOptions { dir, fingerprint, budget, read, threads };
        let sizes = cache.layout().page_sizes();
        cache.set_store(&backend, Store::open(options, sizes).unwrap());
    }
    let layout = cache.layout().clone();
    let largest = run.wishes.iter().map(|wish| layout.peak_bytes(wish.tokens, STEP)).max();
    let budget = (largest.unwrap() as f64 * run.room) as usize;
    cache.set_budget(budget);

    let mut waiting = run.wishes.clone();
    let mut running: Vec<Running> = Vec::new();
    for (index, count, leave) in run.choices {
        while let Some(wish) = waiting.last() {
            let keys = wish.keys();
            let mut kv = cache.sequence();
            let known = cache.known(&mut kv, &keys[..keys.len() - 1]);
            let found = cache.attach(&backend, &mut kv, &keys[..keys.len() - 1], &mut || false);
            prop_assert!(found.unwrap() <= known);
            prop_assert!(cache.bytes_in_use() <= budget);
            let mut demand = Demand::new(layout.clone(), STEP);
            running.iter().for_each(|other| demand.add(&cache, &other.kv, other.keys.len()));
            let before = demand.bytes();
            demand.add(&cache, &kv, keys.len());
            if demand.bytes() > budget {
                prop_assert!(!running.is_empty(), "a lone sequence fits");
                prop_assert!(before <= budget, "the demand never grows");
                cache.release(kv);
                break;
            }
            running.push(Running { kv, keys });
            waiting.pop();
        }
        if running.is_empty() {
            break;
        }
        let at = index.index(running.len());
        let Running { kv, keys } = &mut running[at];
        let count = count.min(keys.len() - kv.len());
        cache.extend(&backend, kv, count, 0, &mut KvStep::default()).unwrap();
        prop_assert!(cache.bytes_in_use() <= budget);
        if leave % 5 == 1 {
            cache.rollback(kv);
        } else {
            cache.advance(&backend, kv, keys, count);
        }
        if kv.len() == keys.len() || leave == 0 {
            let Running { mut kv, keys } = running.swap_remove(at);
            cache.persist(&backend, &mut kv, &keys, true);
            cache.release(kv);
        }
        cache.discard_free(&backend, 4);
        prop_assert!(cache.bytes_in_use() <= budget);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any order of arrivals, steps of any size and early ends.
    #[test]
    fn the_budget_holds(run in run()) {
        check(run, None)?;
    }

    /// The peak is reached, not only never passed, so that nobody is refused for nothing.
    #[test]
    fn the_peak_is_what_a_sequence_takes(
        chunk in prop::sample::select(vec![50usize, 128, 4096]),
        dtype in prop::sample::select(vec![KvDtype::F32, KvDtype::Int8]),
        tokens in 1usize..700,
        step in 1usize..200,
    ) {
        let backend = Cpu::new(Some(1)).unwrap();
        let layout = layout(chunk, dtype);
        let peak = layout.peak_bytes(tokens, step);
        let mut most = 0;
        for first in 1..=step.min(tokens) {
            let mut cache = KvCache::new(&backend, layout.clone(), 0).unwrap();
            let mut kv = cache.sequence();
            let mut count = first;
            while kv.len() < tokens {
                count = count.min(tokens - kv.len());
                cache.extend(&backend, &mut kv, count, 0, &mut KvStep::default()).unwrap();
                most = most.max(cache.bytes_in_use());
                cache.commit(&mut kv, count);
                count = step;
            }
        }
        prop_assert!(most <= peak, "{} > {}", most, peak);
        // The two pools need not be at their peaks at the same time.
        prop_assert!(most as f64 >= 0.6 * peak as f64, "{} < {}", most, peak);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// The same with pages that become files while others use them.
    #[test]
    fn the_budget_holds_with_files(
        run in run(),
        read in prop::sample::select(vec![ReadMode::Map, ReadMode::Copy]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        check(run, Some((dir.path(), read)))?;
    }
}
