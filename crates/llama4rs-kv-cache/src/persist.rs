//! Between the cache and the store: texts begin with pages from files, and full pages
//! become files.

use std::borrow::Cow;
use std::collections::HashMap;

use llama4rs_tensor::{Backend, Bytes, Error, PageId, Result};

use crate::cache::{KvCache, Pool, PoolKind, SequenceKv};
use crate::page_table::PageTable;
use crate::prefix::{NodePages, TokenKey};
use crate::store::{self, extend_chain, Interrupted, Pages, Store, Text, SEGMENT_PAGES};
use crate::PAGE_TOKENS;

/// Most maps of files that the prefix tree keeps: a quarter of what Linux lets a process have.
const MAX_MAPS: u128 = 1 << 14;

/// The first pages of a text: those that a sequence which goes on behind them needs,
/// each with one more owner.
#[derive(Default)]
pub(crate) struct Beginning {
    /// Pages of the text.
    pub pages: usize,
    /// All of them, of the global layers.
    pub global: Vec<PageId>,
    /// Those of the last chunk, of the chunked layers.
    pub chunked: Vec<PageId>,
}

/// Whether the last attempt to store pages was successful.
#[derive(Debug, Default)]
pub(crate) enum StoreState {
    #[default]
    Working,
    /// Why it was not, whether somebody was told, and whether the next is expected to be.
    Failing { why: String, told: bool, trusted: bool },
}

/// A beginning of which the last pages of each kind come from files.
struct Loaded {
    pages: usize,
    global: Vec<Bytes>,
    chunked: Vec<Bytes>,
}

impl Loaded {
    /// All of it is in memory.
    fn nothing(pages: usize) -> Self {
        Self { pages, global: Vec::new(), chunked: Vec::new() }
    }
}

impl<B: Backend> KvCache<B> {
    /// The longest beginning of `text` from what the prefix tree has `found` of it and
    /// from what is in files.
    pub(crate) fn beginning(
        &mut self,
        backend: &B,
        text: Text<'_>,
        found: &mut Vec<NodePages>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> std::result::Result<Beginning, Interrupted> {
        let loaded = self.with_store(|cache, store| match store {
            Some(store) => cache.load(backend, store, text, found, interrupted),
            None => Ok(Loaded::nothing(cache.usable_in_tree(found))),
        })?;
        Ok(self.take_over(backend, found, loaded).unwrap_or_else(|_| {
            // Without memory for the pages in files, those in memory have to do.
            let pages = self.usable_in_tree(found);
            self.take_over(backend, found, Loaded::nothing(pages)).unwrap_or_default()
        }))
    }

    /// How many pages [`beginning`](Self::beginning) would find, as far as the names of
    /// files tell.
    pub(crate) fn known_pages(&mut self, text: Text<'_>, found: &[NodePages]) -> usize {
        self.with_store(|cache, store| match store {
            Some(store) => {
                let known = found.len().max(store.available(PoolKind::Global, text, 0));
                cache.usable_in(store, text, found, known)
            }
            None => cache.usable_in_tree(found),
        })
    }

    /// Does something with the store, if files can be of use: a model without global layers
    /// goes on from any chunk.
    fn with_store<T>(&mut self, work: impl FnOnce(&mut Self, Option<&mut Store>) -> T) -> T {
        let mut store = self.store.take();
        let useful = store.as_mut().filter(|_| self.global.is_some());
        let outcome = work(self, useful);
        self.store = store;
        outcome
    }

    /// Of the pages in the tree the most that a sequence can go on from.
    fn usable_in_tree(&self, found: &[NodePages]) -> usize {
        self.usable(found.len(), |first| chunked_in_tree(found, first))
    }

    /// Of `known` pages the most that a sequence can go on from, by what is in the tree
    /// and in files.
    fn usable_in(
        &self,
        store: &mut Store,
        text: Text<'_>,
        found: &[NodePages],
        known: usize,
    ) -> usize {
        self.usable(known, |first| {
            let stored = store.available(PoolKind::Chunked, text.first(known), first);
            chunked_in_tree(found, first).max(stored)
        })
    }

    /// Of `known` pages the most that a sequence can go on from, when so many pages of
    /// the chunked layers are there from the first page of a chunk on.
    fn usable(&self, known: usize, chunked_from: impl FnOnce(usize) -> usize) -> usize {
        let (Some(_), Some(chunk)) = (&self.chunked, self.layout.chunk_size) else { return known };
        if self.layout.chunk_pages().is_none() {
            // Where a page and a chunk both end, the chunked layers need nothing.
            let whole = |pages: &usize| (pages * PAGE_TOKENS).is_multiple_of(chunk);
            return (0..=known).rev().find(whole).unwrap_or(0);
        }
        let first = self.first_of_chunk(known);
        first + chunked_from(first).min(known - first)
    }

    /// The first page of the chunk in which a text goes on after `pages` pages; without
    /// chunks of whole pages `pages`.
    pub(crate) fn first_of_chunk(&self, pages: usize) -> usize {
        match (&self.chunked, self.layout.chunk_pages()) {
            (Some(_), Some(chunk)) => pages / chunk * chunk,
            _ => pages,
        }
    }

    /// Reads from files what the tree lacks. Where that takes memory, kept pages of other
    /// texts make room; then `found` is what the tree still has.
    fn load(
        &mut self,
        backend: &B,
        store: &mut Store,
        text: Text<'_>,
        found: &mut Vec<NodePages>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> std::result::Result<Loaded, Interrupted> {
        let mut known = found.len().max(store.available(PoolKind::Global, text, 0));
        loop {
            let pages = self.usable_in(store, text, found, known);
            let (text, first) = (text.first(pages), self.first_of_chunk(pages));
            let in_tree = (first + chunked_in_tree(found, first)).min(pages);
            let held = [found.len().min(pages), in_tree];
            let mut evicted = false;
            while !self.has_room(pages - held[0], pages - held[1]) {
                if !self.evict_older() {
                    return Ok(Loaded::nothing(self.usable_in_tree(found)));
                }
                evicted = true;
            }
            if evicted {
                self.discard_free(backend, 0);
                *found = self.prefixes.find(text);
                continue;
            }
            let global = store.read(PoolKind::Global, text, 0, held[0]..pages, interrupted)?;
            let chunked =
                store.read(PoolKind::Chunked, text, first, held[1]..pages, interrupted)?;
            known = (held[0] + global.len()).min(held[1] + chunked.len());
            if known == pages {
                store.touch(PoolKind::Global, text, 0);
                store.touch(PoolKind::Chunked, text, first);
                return Ok(Loaded { pages, global, chunked });
            }
            // A file that is damaged is out of the way now; look again for what is left.
        }
    }

    /// Whether so many pages of the global and of the chunked layers may be read into memory.
    fn has_room(&self, global: usize, chunked: usize) -> bool {
        let sizes = self.layout.page_sizes();
        let bytes = global * sizes.global.max(sizes.first_global) + chunked * sizes.chunked;
        self.layout.mapped || self.bytes_in_use().saturating_add(bytes) <= self.budget
    }

    /// Shares the pages that are in memory and gives the others a page each.
    fn take_over(&mut self, backend: &B, found: &[NodePages], loaded: Loaded) -> Result<Beginning> {
        let Loaded { pages, global, chunked } = loaded;
        let first = self.first_of_chunk(pages);
        let mut beginning = Beginning { pages, ..Beginning::default() };
        let kinds = [
            (PoolKind::Global, 0..pages - global.len(), global, &mut beginning.global),
            (PoolKind::Chunked, first..pages - chunked.len(), chunked, &mut beginning.chunked),
        ];
        let mut outcome = Ok(());
        for (kind, shared, loaded, pages) in kinds {
            let forms = (shared.end..shared.end + loaded.len())
                .map(|number| self.layout.page_form(kind, number));
            let (forms, costs): (Vec<_>, _) = (forms.collect(), self.map_costs(&loaded));
            let Some(pool) = self.pool_mut(kind) else { continue };
            let known =
                found.get(shared).unwrap_or_default().iter().filter_map(|node| node.of(kind));
            pages.extend(known.map(|page| pool.allocator.share(page)));
            let new = forms.into_iter().map(|form| pool.allocator.allocate(form));
            let new: Vec<_> = new.collect();
            pages.extend_from_slice(&new);
            outcome = outcome.and_then(|()| pool.adopt(backend, &new, loaded, &costs));
        }
        if outcome.is_err() {
            for (kind, pages) in
                [(PoolKind::Global, beginning.global), (PoolKind::Chunked, beginning.chunked)]
            {
                self.pool_mut(kind)
                    .iter_mut()
                    .for_each(|pool| pool.allocator.release(pages.clone()));
            }
            return outcome.map(|()| Beginning::default());
        }
        Ok(beginning)
    }

    /// Stores the full pages of a sequence whose tokens are `tokens`, so that they
    /// survive the process. Without `end` only when a whole segment more is full, and
    /// what later pages do not need is left out.
    ///
    /// On an error nothing is lost: the pages stay in memory, and what was stored before
    /// stays stored. [`take_store_warning`](Self::take_store_warning) tells why.
    pub fn persist(
        &mut self,
        backend: &B,
        sequence: &mut SequenceKv,
        tokens: &[TokenKey],
        end: bool,
    ) {
        let full = sequence.len.min(tokens.len()) / PAGE_TOKENS;
        let pages = if end { full } else { full / SEGMENT_PAGES * SEGMENT_PAGES };
        if pages == 0 || self.global.is_none() || (!end && pages <= sequence.persisted) {
            return;
        }
        let Some(mut store) = self.store.take() else { return };
        extend_chain(&mut sequence.chain, store.root(), tokens);
        let text = Text::new(&sequence.chain, tokens).first(pages);
        let before = std::mem::replace(&mut sequence.persisted, pages);
        let outcome = self.write(backend, &mut store, sequence, text, before, end);
        self.store = Some(store);
        self.note_outcome(outcome);
    }

    /// Takes note whether pages could be stored.
    pub(crate) fn note_outcome(&mut self, outcome: store::Result<()>) {
        match outcome {
            Ok(()) => self.store_state = StoreState::Working,
            Err(error) => {
                let told = match self.store_state {
                    StoreState::Failing { told, .. } => told,
                    StoreState::Working => false,
                };
                let why = error.to_string();
                self.store_state = StoreState::Failing { why, told, trusted: false };
            }
        }
    }

    /// Why pages cannot be stored, once when that begins.
    pub fn take_store_warning(&mut self) -> Option<String> {
        match &mut self.store_state {
            StoreState::Failing { why, told, .. } => {
                (!std::mem::replace(told, true)).then(|| why.clone())
            }
            StoreState::Working => None,
        }
    }

    /// Why pages that should be mapped stay in memory; `None`: they do not.
    pub fn store_problem(&self) -> Option<&str> {
        match &self.store_state {
            StoreState::Failing { why, .. } if self.layout.mapped => Some(why),
            _ => None,
        }
    }

    /// Counts on the store again, until the next attempt tells: for when nobody runs.
    pub fn trust_store(&mut self) {
        if let StoreState::Failing { trusted, .. } = &mut self.store_state {
            *trusted = true;
        }
    }

    fn write(
        &mut self,
        backend: &B,
        store: &mut Store,
        sequence: &SequenceKv,
        text: Text<'_>,
        before: usize,
        end: bool,
    ) -> store::Result<()> {
        let first = self.first_of_chunk(text.pages());
        let mut kinds = vec![(PoolKind::Global, 0)];
        if end && first < text.pages() {
            kinds.push((PoolKind::Chunked, first));
        }
        for &(kind, floor) in &kinds {
            self.write_pool(backend, store, sequence, kind, text, floor)?;
        }
        if let Some(chunk) = self.layout.chunk_pages().filter(|_| self.chunked.is_some()) {
            let resume = self.resume_pages(sequence).start;
            for start in (before / chunk * chunk..first).step_by(chunk) {
                if start != resume {
                    store.retire(PoolKind::Chunked, text.first(start + chunk), start);
                }
            }
        }
        Ok(())
    }

    /// Stores the pages of one pool from `floor` on, and lets files be their memory.
    pub(crate) fn write_pool(
        &mut self,
        backend: &B,
        store: &mut Store,
        sequence: &SequenceKv,
        kind: PoolKind,
        text: Text<'_>,
        floor: usize,
    ) -> store::Result<()> {
        store.write(kind, text, floor, &Held { backend, cache: self, sequence })?;
        if self.layout.mapped {
            self.map_pages(backend, store, sequence, kind, text, floor);
        }
        Ok(())
    }

    /// What pages cost in the prefix tree whose bytes are mapped, though they take no memory:
    /// the system limits the number of maps, and a file that was removed keeps its room on
    /// the disk as long as it is mapped. So the tree keeps no more than [`MAX_MAPS`] maps and no
    /// more bytes of files than there may be.
    fn map_costs(&self, bytes: &[Bytes]) -> Vec<usize> {
        let mut pages_of = HashMap::new();
        for map in bytes.iter().filter_map(map_of) {
            *pages_of.entry(map).or_insert(0) += 1;
        }
        let cost = |bytes: &Bytes| {
            let pages = map_of(bytes).and_then(|map| pages_of.get(&map)).map_or(1, |&pages| pages);
            let share = |part: u128, of: u128| self.prefix_budget as u128 * part / of.max(1);
            let map = share(1, MAX_MAPS * pages);
            let disk = self.disk_budget.map_or(0, |most| share(bytes.len() as u128, most.into()));
            (map + disk).min(self.prefix_budget as u128) as usize
        };
        bytes.iter().map(cost).collect()
    }

    /// Lets the last pages of a text be those in files, and gives their memory back.
    fn map_pages(
        &mut self,
        backend: &B,
        store: &mut Store,
        sequence: &SequenceKv,
        kind: PoolKind,
        text: Text<'_>,
        floor: usize,
    ) {
        let page = |number: usize| sequence.table(kind).page_of(number * PAGE_TOKENS);
        let Some(pool) = self.pool(kind) else { return };
        let in_memory =
            |number: &usize| page(*number).is_some_and(|p| !pool.allocator.is_mapped(p));
        let count = (floor..text.pages()).rev().take_while(in_memory).count();
        let start = text.pages() - count;
        let bytes = store.read(kind, text, floor, start..text.pages(), &mut || false);
        let bytes = bytes.unwrap_or_default();
        let costs = self.map_costs(&bytes);
        for ((number, bytes), cost) in (start..).zip(bytes).zip(costs) {
            let (Some(page), true) = (page(number), bytes.is_mapped()) else { return };
            let node = self.prefixes.pages(text.hash(number + 1));
            let kept = node.is_some_and(|node| node.of(kind) == Some(page));
            let Some(pool) = self.pool_mut(kind) else { return };
            // What cannot be adopted stays as it is.
            if pool.adopt(backend, &[page], vec![bytes], &[cost]).is_ok() && kept {
                let freed = pool.geometry.page_bytes(page.form());
                self.prefix_bytes = self.prefix_bytes + cost - freed;
            }
        }
    }
}

/// Where the map begins that bytes are in.
fn map_of(bytes: &Bytes) -> Option<*const u8> {
    match bytes {
        Bytes::Mapped { file, .. } => Some(file.as_ptr()),
        Bytes::Owned(_) => None,
    }
}

impl<B: Backend> Pool<B> {
    /// Makes `bytes` the content of pages in use.
    fn adopt(
        &mut self,
        backend: &B,
        pages: &[PageId],
        bytes: Vec<Bytes>,
        map_costs: &[usize],
    ) -> Result<()> {
        self.reserve(backend)?;
        for ((&page, bytes), &cost) in pages.iter().zip(bytes).zip(map_costs) {
            let mapped = bytes.is_mapped() && backend.kv_keeps_mapped();
            backend.kv_adopt(&mut self.storage, page, bytes)?;
            if mapped {
                self.allocator.set_mapped(page, cost);
            }
        }
        Ok(())
    }
}

impl SequenceKv {
    fn table(&self, kind: PoolKind) -> &PageTable {
        match kind {
            PoolKind::Chunked => &self.chunked,
            PoolKind::Global => &self.global,
        }
    }
}

/// Pages of the chunked layers in the tree, from page `first` on without a gap.
pub(crate) fn chunked_in_tree(found: &[NodePages], first: usize) -> usize {
    let rest = found.get(first..).unwrap_or_default();
    rest.iter().take_while(|node| node.chunked.is_some()).count()
}

/// The pages of a sequence, for the store.
struct Held<'a, B: Backend> {
    backend: &'a B,
    cache: &'a KvCache<B>,
    sequence: &'a SequenceKv,
}

impl<B: Backend> Pages for Held<'_, B> {
    fn read(&self, kind: PoolKind, page: usize) -> Result<Cow<'_, [u8]>> {
        let id = self.sequence.table(kind).page_of(page * PAGE_TOKENS);
        match self.cache.pool(kind).as_ref().zip(id) {
            Some((pool, id)) => self.backend.kv_read(&pool.storage, id),
            None => Err(Error::shape(
                "store pages",
                "pages that the sequence still has",
                format!("page {page} of the {} layers", kind.as_str()),
            )),
        }
    }
}
