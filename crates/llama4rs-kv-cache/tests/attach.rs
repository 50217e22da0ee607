//! What a sequence finds of its text, and what is read for it.

use std::num::NonZeroUsize;
use std::path::Path;

use llama4rs_cpu::Cpu;
use llama4rs_kv_cache::store::{Interrupted, ReadMode, Store, StoreOptions};
use llama4rs_kv_cache::{KvCache, KvLayout, KvStep, PoolKind, TokenKey, PAGE_TOKENS};
use llama4rs_tensor::{KvDtype, PageForm};

/// Tokens of a chunk: four pages.
const CHUNK: usize = 4 * PAGE_TOKENS;

fn layout(dtype: KvDtype) -> KvLayout {
    use PoolKind::{Chunked, Global};
    KvLayout {
        layers: vec![Chunked, Chunked, Global],
        chunk_size: Some(CHUNK),
        num_kv_heads: 1,
        head_dim: 16,
        dtype,
        mapped: false,
    }
}

/// A cache of a later process: it knows only what is in `dir`.
fn cache(backend: &Cpu, dtype: KvDtype, dir: &Path, read: ReadMode) -> KvCache<Cpu> {
    let mut cache = KvCache::new(backend, layout(dtype), 1 << 30).unwrap();
    let (dir, threads) = (dir.to_owned(), NonZeroUsize::new(3).unwrap());
    let options = StoreOptions { dir, fingerprint: [1; 32], budget: None, read, threads };
    let store = Store::open(options, cache.layout().page_sizes()).unwrap();
    cache.set_store(backend, store);
    cache
}

fn text(tokens: usize) -> Vec<TokenKey> {
    (0..tokens as u64).map(|i| i * i).collect()
}

/// Reads a text as a request does; returns how much of it was known.
fn compute(backend: &Cpu, cache: &mut KvCache<Cpu>, keys: &[TokenKey]) -> usize {
    answer(backend, cache, keys, keys.len())
}

/// Reads the `prompt` first tokens of a text, and writes the others; returns how much of the
/// prompt was known.
fn answer(backend: &Cpu, cache: &mut KvCache<Cpu>, keys: &[TokenKey], prompt: usize) -> usize {
    let mut kv = cache.sequence();
    let known = cache.attach(backend, &mut kv, &keys[..prompt - 1], &mut || false).unwrap();
    while kv.len() < keys.len() {
        let count = prompt.saturating_sub(kv.len()).clamp(1, 100);
        cache.extend(backend, &mut kv, count, 0, &mut KvStep::default()).unwrap();
        cache.advance(backend, &mut kv, keys, count);
    }
    cache.persist(backend, &mut kv, keys, true);
    cache.release(kv);
    known
}

/// What the next token needs: the global layers' pages of the whole text, and the chunked
/// layers' of its chunk.
fn needed_bytes(dtype: KvDtype, pages: usize) -> usize {
    let layout = layout(dtype);
    let global = layout.geometry(PoolKind::Global);
    let (exact, full) = match dtype.is_quantised() {
        true => (1, PageForm::Sealed),
        false => (0, PageForm::Exact),
    };
    let chunked = layout.geometry(PoolKind::Chunked).page_bytes(PageForm::Exact);
    exact * global.page_bytes(PageForm::Exact)
        + (pages - exact) * global.page_bytes(full)
        + pages % (CHUNK / PAGE_TOKENS) * chunked
}

#[test]
fn no_byte_is_read_that_the_next_token_does_not_need() {
    let backend = Cpu::new(Some(1)).unwrap();
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Int4] {
        // At a boundary of a chunk, and inside of one.
        for pages in [8, 9, 11, 132, 130] {
            let dir = tempfile::tempdir().unwrap();
            let keys = text(pages * PAGE_TOKENS + 1);
            let mut first = cache(&backend, dtype, dir.path(), ReadMode::Map);
            compute(&backend, &mut first, &keys);
            for read in [ReadMode::Map, ReadMode::Copy] {
                let mut later = cache(&backend, dtype, dir.path(), read);
                let mut kv = later.sequence();
                assert_eq!(later.known(&mut kv, &keys), pages * PAGE_TOKENS);
                assert_eq!(later.bytes_read().pages, 0, "names tell what is known");
                let mut attach = |kv| later.attach(&backend, kv, &keys, &mut || false);
                assert_eq!(attach(&mut kv), Ok(pages * PAGE_TOKENS));
                assert_eq!(later.bytes_read().pages, needed_bytes(dtype, pages) as u64);
                // What is in memory is not read again.
                let mut other = later.sequence();
                let before = later.bytes_read();
                later.attach(&backend, &mut other, &keys, &mut || false).unwrap();
                assert_eq!(later.bytes_read(), before);
            }
        }
    }
}

#[test]
fn a_text_of_more_files_than_may_be_open_is_found() {
    const PAGES: usize = 300;
    let backend = Cpu::new(Some(1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let keys = text(PAGES * PAGE_TOKENS + 1);
    for pages in 1..=PAGES {
        let mut grown = cache(&backend, KvDtype::Bf16, dir.path(), ReadMode::Copy);
        compute(&backend, &mut grown, &keys[..pages * PAGE_TOKENS + 1]);
    }
    let files = walk(dir.path()).len();
    assert!(files > 100, "{files} files");
    let mut later = cache(&backend, KvDtype::Bf16, dir.path(), ReadMode::Map);
    let mut kv = later.sequence();
    let found = later.attach(&backend, &mut kv, &keys, &mut || false).unwrap();
    assert_eq!(found, PAGES * PAGE_TOKENS);
    assert_eq!(later.bytes_read().pages, needed_bytes(KvDtype::Bf16, PAGES) as u64);
}

/// The files below a directory.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn an_interruption_while_a_text_is_read_leaves_nothing_half_done() {
    let backend = Cpu::new(Some(1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let keys = text(140 * PAGE_TOKENS + 70);
    compute(&backend, &mut cache(&backend, KvDtype::F32, dir.path(), ReadMode::Map), &keys);
    for read in [ReadMode::Map, ReadMode::Copy] {
        for after in [0, 1, 5, 100] {
            let mut later = cache(&backend, KvDtype::F32, dir.path(), read);
            let (mut kv, mut asked) = (later.sequence(), 0);
            let mut interrupted = || {
                asked += 1;
                asked > after
            };
            let outcome = later.attach(&backend, &mut kv, &keys, &mut interrupted);
            // Other threads may have done everything before the caller's is asked again.
            match outcome {
                Err(Interrupted) => assert!(kv.is_empty() && later.bytes_in_use() == 0),
                Ok(found) => assert!(after > 0 && found == 141 * PAGE_TOKENS),
            }
            later.release(kv);
            let mut kv = later.sequence();
            let found = later.attach(&backend, &mut kv, &keys, &mut || false);
            assert_eq!(found, Ok(141 * PAGE_TOKENS));
        }
    }
}

/// The same prompt again computes its last page at most, wherever chunks end.
#[test]
fn the_same_prompt_again_computes_a_page_at_most() {
    let backend = Cpu::new(Some(1)).unwrap();
    let lengths = [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, 3 * CHUNK - 70];
    for dtype in [KvDtype::F32, KvDtype::Int8] {
        for prompt in lengths {
            for more in [0, 1, 2, 100, CHUNK + 100] {
                let keys = text(prompt + more);
                let rest = |known: usize| prompt - 1 - known;
                let mut memory = KvCache::new(&backend, layout(dtype), 1 << 30).unwrap();
                assert_eq!(answer(&backend, &mut memory, &keys, prompt), 0);
                for _ in 0..2 {
                    let known = answer(&backend, &mut memory, &keys, prompt);
                    assert!(rest(known) < PAGE_TOKENS, "{known} of {prompt} + {more}");
                }
                for read in [ReadMode::Map, ReadMode::Copy] {
                    let dir = tempfile::tempdir().unwrap();
                    let mut first = cache(&backend, dtype, dir.path(), read);
                    answer(&backend, &mut first, &keys, prompt);
                    for mut cache in [first, cache(&backend, dtype, dir.path(), read)] {
                        let known = answer(&backend, &mut cache, &keys, prompt);
                        assert!(
                            rest(known) < PAGE_TOKENS,
                            "{known} of {prompt} + {more}, {read:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Pages that are kept for that go before anything else that is kept, and are kept again.
#[test]
fn pages_for_the_same_prompt_go_first() {
    let backend = Cpu::new(Some(1)).unwrap();
    let layout = layout(KvDtype::F32);
    let page = |kind| layout.geometry(kind).page_bytes(PageForm::Exact);
    let (global, chunked) = (page(PoolKind::Global), page(PoolKind::Chunked));
    let mut cache = KvCache::new(&backend, layout.clone(), 1 << 30).unwrap();
    let keys = text(CHUNK + 100);
    answer(&backend, &mut cache, &keys, CHUNK);
    // One page is after the chunk, three of the chunk are before the prompt's last page.
    assert_eq!(cache.bytes_in_use(), 5 * global + (1 + 3) * chunked);
    cache.set_budget(7 * global + 3 * chunked);
    let other: Vec<_> = text(70).iter().map(|key| key + 7).collect();
    answer(&backend, &mut cache, &other, 70);
    assert_eq!(cache.bytes_in_use(), 6 * global + 2 * chunked);
    cache.set_budget(usize::MAX);
    assert_eq!(answer(&backend, &mut cache, &keys, CHUNK), 0);
    assert_eq!(answer(&backend, &mut cache, &keys, CHUNK), CHUNK - PAGE_TOKENS);
    // A text that goes on from the end of the chunk needs none of them.
    assert_eq!(answer(&backend, &mut cache, &keys, CHUNK + 90), CHUNK + PAGE_TOKENS);
}

/// With pages that are copied into memory, what is kept of other texts makes room for them.
#[test]
fn kept_pages_make_room_for_pages_from_files() {
    let backend = Cpu::new(Some(1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let keys = text(10 * PAGE_TOKENS + 1);
    let other =
        |stem: u64| -> Vec<_> { text(6 * PAGE_TOKENS).iter().map(|key| key + stem).collect() };
    compute(&backend, &mut cache(&backend, KvDtype::F32, dir.path(), ReadMode::Copy), &keys);
    let mut later = cache(&backend, KvDtype::F32, dir.path(), ReadMode::Copy);
    let budget = layout(KvDtype::F32).peak_bytes(keys.len(), 100) + 1000;
    later.set_budget(budget);
    for stem in 1..9 {
        compute(&backend, &mut later, &other(stem));
    }
    assert!(later.bytes_in_use() > budget / 2, "other texts are kept");
    assert_eq!(compute(&backend, &mut later, &keys), 10 * PAGE_TOKENS);
    assert!(later.bytes_in_use() <= budget);
    // The beginning that is in memory stays.
    let before = later.bytes_read().pages;
    assert_eq!(compute(&backend, &mut later, &keys), 10 * PAGE_TOKENS);
    assert_eq!(later.bytes_read().pages, before);
}

/// The text that was used last stays beyond the budget of kept pages, until another comes
/// or a sequence needs the memory.
#[test]
fn the_last_text_stays_as_a_whole() {
    let backend = Cpu::new(Some(1)).unwrap();
    let layout = layout(KvDtype::F32);
    let few = 4 * layout.geometry(PoolKind::Global).page_bytes(PageForm::Exact);
    let keys = text(20 * PAGE_TOKENS + 1);
    let other: Vec<_> = text(100).iter().map(|key| key + 7).collect();
    let mut strict = KvCache::new(&backend, layout.clone(), few).unwrap();
    compute(&backend, &mut strict, &keys);
    assert!(compute(&backend, &mut strict, &keys) < 5 * PAGE_TOKENS);
    let mut cache = KvCache::new(&backend, layout.clone(), few).unwrap();
    cache.keep_last_text();
    for _ in 0..3 {
        compute(&backend, &mut cache, &keys);
        assert_eq!(compute(&backend, &mut cache, &keys), 20 * PAGE_TOKENS);
        // It grows, as a session does.
        assert_eq!(
            answer(&backend, &mut cache, &text(22 * PAGE_TOKENS), keys.len()),
            20 * PAGE_TOKENS
        );
        compute(&backend, &mut cache, &other);
        assert!(cache.bytes_in_use() <= few, "{} > {few}", cache.bytes_in_use());
    }
    compute(&backend, &mut cache, &keys);
    let budget = layout.peak_bytes(other.len(), 100);
    cache.set_budget(budget);
    compute(&backend, &mut cache, &other);
    assert!(cache.bytes_in_use() <= budget);
}
