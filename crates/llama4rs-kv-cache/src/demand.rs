//! What sequences may still need, so that nobody starts who could not finish.

use std::collections::HashSet;

use llama4rs_tensor::{Backend, PageForm, PageId};

use crate::cache::KvCache;
use crate::layout::{KvLayout, PoolKind};
use crate::persist::StoreState;
use crate::sequence::SequenceKv;
use crate::store::SEGMENT_PAGES;
use crate::PAGE_TOKENS;

impl KvLayout {
    /// Most bytes that a sequence owns at any time on its way to `tokens` tokens, when
    /// no step takes more than `step_tokens` of them.
    pub fn peak_bytes(&self, tokens: usize, step_tokens: usize) -> usize {
        let mut demand = Demand::new(self.clone(), step_tokens);
        demand.chunked.future = self.peak_chunked_pages(tokens, step_tokens);
        demand.global.future = self.peak_global_pages(tokens, 0, step_tokens);
        demand.bytes()
    }

    /// A step that passes the end of a chunk owns that chunk and what comes after it.
    fn peak_chunked_pages(&self, tokens: usize, step_tokens: usize) -> Pages {
        let chunk = self.chunk_size.unwrap_or(usize::MAX);
        let beyond = tokens.saturating_sub(chunk).min(step_tokens.saturating_sub(1));
        let after = beyond / chunk * pages(chunk) + pages(beyond % chunk);
        Pages { exact: pages(tokens.min(chunk)) + after, sealed: 0 }
    }

    /// The pages of a step are exact until it is committed, those that it seals, too; the
    /// first page always is. `mapped` pages of the text are in files already.
    fn peak_global_pages(&self, tokens: usize, mapped: usize, step_tokens: usize) -> Pages {
        let of_step = 1 + pages(step_tokens.saturating_sub(1));
        // Of a text in files only what follows the last full segment is in memory.
        let most = if self.mapped { SEGMENT_PAGES + of_step } else { usize::MAX };
        let in_memory = |pages: usize| pages.saturating_sub(mapped).min(most);
        if !self.dtype.is_quantised() {
            return Pages { exact: in_memory(pages(tokens)), sealed: 0 };
        }
        Pages {
            exact: pages(tokens).min(1 + of_step),
            sealed: in_memory((tokens / PAGE_TOKENS).saturating_sub(1)),
        }
    }
}

impl<B: Backend> KvCache<B> {
    /// Whether full pages become mapped files while a sequence runs: the store maps them,
    /// and it works.
    pub fn maps_pages(&self) -> bool {
        let works = match self.store_state {
            StoreState::Working => true,
            StoreState::Failing { trusted, .. } => trusted,
        };
        self.layout.mapped && self.store.is_some() && works
    }
}

/// Most bytes of memory that the pages of some sequences may take together at any time:
/// what they own now, shared pages once, and what each may still allocate. Whatever the
/// sequences do, the sum never grows.
#[derive(Debug)]
pub struct Demand {
    layout: KvLayout,
    step_tokens: usize,
    chunked: PoolDemand,
    global: PoolDemand,
}

impl Demand {
    /// Of no sequence yet. No step will take more than `step_tokens` tokens of one.
    pub fn new(layout: KvLayout, step_tokens: usize) -> Self {
        let (chunked, global) = Default::default();
        Self { layout, step_tokens, chunked, global }
    }

    /// Adds a sequence of `cache` that will have `tokens` tokens at most.
    pub fn add<B: Backend>(&mut self, cache: &KvCache<B>, sequence: &SequenceKv, tokens: usize) {
        let pages_of = || sequence.global.pages();
        if self.layout.mapped {
            // Pages that it shares may go to files one by one, while new ones come.
            let is_mapped = |page: &PageId| {
                cache.global.as_ref().is_some_and(|pool| pool.allocator.is_mapped(*page))
            };
            let mapped = pages_of().filter(is_mapped).count();
            let most = self.layout.peak_global_pages(tokens, mapped, self.step_tokens);
            self.global.add([].into_iter(), most);
        } else {
            let most = self.layout.peak_global_pages(tokens, 0, self.step_tokens);
            self.global.add(pages_of(), most);
        }
        let chunk = self.layout.chunk_size.unwrap_or(usize::MAX);
        let last = tokens.max(1) - 1;
        if sequence.len() / chunk < last / chunk {
            // When it leaves the chunk, pages that it shares may stay with others.
            let most = self.layout.peak_chunked_pages(tokens, self.step_tokens);
            self.chunked.add([].into_iter(), most);
        } else {
            let most = Pages { exact: pages(last % chunk + 1), sealed: 0 };
            self.chunked.add(sequence.chunked.pages(), most);
        }
    }

    /// The sum.
    pub fn bytes(&self) -> usize {
        let bytes = |kind, pool: &PoolDemand| {
            let geometry = self.layout.geometry(kind);
            let Pages { exact, sealed } = pool.owned_pages.plus(pool.future);
            let exact = exact.saturating_mul(geometry.page_bytes(PageForm::Exact));
            exact.saturating_add(sealed.saturating_mul(geometry.page_bytes(PageForm::Sealed)))
        };
        bytes(PoolKind::Chunked, &self.chunked)
            .saturating_add(bytes(PoolKind::Global, &self.global))
    }
}

/// Numbers of pages of both forms.
#[derive(Clone, Copy, Debug, Default)]
struct Pages {
    exact: usize,
    sealed: usize,
}

impl Pages {
    fn count(&mut self, page: PageId) {
        match page.form() {
            PageForm::Exact => self.exact += 1,
            PageForm::Sealed => self.sealed += 1,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self { exact: self.exact + other.exact, sealed: self.sealed + other.sealed }
    }

    fn minus(self, other: Self) -> Self {
        let exact = self.exact.saturating_sub(other.exact);
        Self { exact, sealed: self.sealed.saturating_sub(other.sealed) }
    }
}

#[derive(Debug, Default)]
struct PoolDemand {
    owned: HashSet<PageId>,
    /// How many `owned` has.
    owned_pages: Pages,
    /// To be allocated.
    future: Pages,
}

impl PoolDemand {
    /// Adds a sequence that owns these pages and will own `most` at the same time.
    fn add(&mut self, pages: impl Iterator<Item = PageId>, most: Pages) {
        let mut own = Pages::default();
        for page in pages {
            own.count(page);
            if self.owned.insert(page) {
                self.owned_pages.count(page);
            }
        }
        self.future = self.future.plus(most.minus(own));
    }
}

fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}
