//! The longest known beginning of a text, from the prefix tree and from files.

use llama4rs_tensor::{Backend, Bytes, PageId, Result};

use crate::cache::KvCache;
use crate::layout::PoolKind;
use crate::prefix::NodePages;
use crate::store::{Interrupted, Store, Text};
use crate::PAGE_TOKENS;

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
}

/// Pages of the chunked layers in the tree, from page `first` on without a gap.
pub(crate) fn chunked_in_tree(found: &[NodePages], first: usize) -> usize {
    let rest = found.get(first..).unwrap_or_default();
    rest.iter().take_while(|node| node.chunked.is_some()).count()
}
