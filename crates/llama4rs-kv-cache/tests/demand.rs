//! Sequences that were let in by their demand never run out of pages.

use llama4rs_cpu::Cpu;
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any order of arrivals, steps of any size and early ends: a sequence that the demand
    /// lets in gets all its pages, and the pages in use stay below the budget.
    #[test]
    fn the_budget_holds(
        chunk in prop::sample::select(vec![50usize, 128, 256, 4096]),
        dtype in prop::sample::select(vec![KvDtype::F32, KvDtype::Int8, KvDtype::Int4]),
        wishes in prop::collection::vec(wish(), 1..12),
        room in 1.0f64..3.0,
        prefix_budget in prop::sample::select(vec![0usize, 60_000, 1 << 30]),
        choices in prop::collection::vec((any::<prop::sample::Index>(), 1..=STEP, 0..30), 300),
    ) {
        let backend = Cpu::new(Some(1)).unwrap();
        let layout = layout(chunk, dtype);
        let largest = wishes.iter().map(|wish| layout.peak_bytes(wish.tokens, STEP)).max();
        let budget = (largest.unwrap() as f64 * room) as usize;
        let mut cache = KvCache::new(&backend, layout.clone(), prefix_budget).unwrap();
        cache.set_budget(budget);

        let mut waiting = wishes.clone();
        let mut running: Vec<Running> = Vec::new();
        for (index, count, leave) in choices {
            while let Some(wish) = waiting.last() {
                let keys = wish.keys();
                let mut kv = cache.sequence();
                cache.attach(&backend, &mut kv, &keys[..keys.len() - 1]);
                let mut demand = Demand::new(&layout, STEP);
                running.iter().for_each(|other| demand.add(&other.kv, other.keys.len()));
                let before = demand.bytes();
                demand.add(&kv, keys.len());
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
                cache.commit(kv, count);
                cache.remember(kv, keys);
            }
            if kv.len() == keys.len() || leave == 0 {
                cache.release(running.swap_remove(at).kv);
            }
            cache.discard_free(&backend, 4);
            prop_assert!(cache.bytes_in_use() <= budget);
        }
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
