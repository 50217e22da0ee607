//! Keys and values of all sequences: their pages come and go here.

use std::ops::Range;

use llama4rs_tensor::{Backend, Error, Result};

use crate::beginning::chunked_in_tree;
use crate::layout::{KvLayout, PoolKind};
use crate::page_table::PageTable;
use crate::persist::StoreState;
use crate::pool::{Pool, FORMS};
use crate::prefix::{PrefixTree, TokenKey};
use crate::sequence::{SequenceKv, Stored};
use crate::step::KvStep;
use crate::store::{extend_chain, BytesRead, Interrupted, PageHash, ReadMode, Store, Text};
use crate::PAGE_TOKENS;

/// Keys and values of all sequences on one device.
pub struct KvCache<B: Backend> {
    pub(crate) layout: KvLayout,
    pub(crate) chunked: Option<Pool<B>>,
    pub(crate) global: Option<Pool<B>>,
    pub(crate) prefixes: PrefixTree,
    /// Bytes of the pages that `prefixes` owns, and how many it may own.
    pub(crate) prefix_bytes: usize,
    pub(crate) prefix_budget: usize,
    /// Most bytes of files.
    pub(crate) disk_budget: Option<u64>,
    pub(crate) keeps_last_text: bool,
    /// Most bytes of pages in use.
    pub(crate) budget: usize,
    /// The hash at the beginning of every text.
    pub(crate) root: PageHash,
    pub(crate) store: Option<Store>,
    pub(crate) store_state: StoreState,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache; it allocates as sequences grow. Pages of texts that were
    /// seen stay for later sequences that begin alike, up to `prefix_budget` bytes.
    pub fn new(backend: &B, layout: KvLayout, prefix_budget: usize) -> Result<Self> {
        Ok(Self {
            prefixes: PrefixTree::default(),
            prefix_bytes: 0,
            // Twice as much fits into a number.
            prefix_budget: prefix_budget.min(isize::MAX as usize),
            disk_budget: None,
            keeps_last_text: false,
            budget: usize::MAX,
            root: PageHash::root(&[0; 32]),
            store: None,
            store_state: StoreState::default(),
            chunked: Pool::new(backend, layout.geometry(PoolKind::Chunked))?,
            global: Pool::new(backend, layout.geometry(PoolKind::Global))?,
            layout,
        })
    }

    /// Lets the text that was used last stay as a whole, even beyond `prefix_budget`, as long
    /// as nobody needs the memory.
    pub fn keep_last_text(&mut self) {
        self.keeps_last_text = true;
    }

    /// Limits the bytes of pages in use. Pages that are kept for later sequences make
    /// room; without any, [`extend`](Self::extend) is an error.
    pub fn set_budget(&mut self, bytes: usize) {
        self.budget = bytes;
    }

    /// Keeps pages in `store` as well, and lets sequences begin with what is there. Comes
    /// before the first sequence.
    pub fn set_store(&mut self, backend: &B, store: Store) {
        self.root = store.root();
        self.disk_budget = store.budget();
        self.layout.mapped = store.read_mode() == ReadMode::Map && backend.kv_keeps_mapped();
        self.store = Some(store);
    }

    /// The layout that the cache was made for.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// A sequence without tokens.
    pub fn sequence(&self) -> SequenceKv {
        SequenceKv {
            len: 0,
            chunked: PageTable::new(self.layout.chunk_size, false),
            global: PageTable::new(None, self.layout.dtype.is_quantised()),
            stored: Stored::Pages(0),
            chain: Vec::new(),
            persisted: 0,
            resume: 0,
        }
    }

    /// How many of `tokens`, the text of `sequence`, are known, in memory or in the store: the
    /// most that [`attach`](Self::attach) can find. Reads no pages.
    pub fn known(&mut self, sequence: &mut SequenceKv, tokens: &[TokenKey]) -> usize {
        extend_chain(&mut sequence.chain, self.root, tokens);
        let pages = tokens.len() / PAGE_TOKENS;
        let text = Text::new(&sequence.chain[..=pages], tokens);
        let found = self.prefixes.find(text);
        self.known_pages(text, &found) * PAGE_TOKENS
    }

    /// Lets an empty sequence begin with what is known of `tokens`, in memory or in the
    /// store; returns how many tokens that is, a multiple of [`PAGE_TOKENS`].
    ///
    /// Every page that comes from the store is read once and checked, which takes a while
    /// for a long text: `interrupted` is asked meanwhile, and the sequence stays empty when it
    /// says so.
    pub fn attach(
        &mut self,
        backend: &B,
        sequence: &mut SequenceKv,
        tokens: &[TokenKey],
        interrupted: &mut dyn FnMut() -> bool,
    ) -> std::result::Result<usize, Interrupted> {
        debug_assert!(sequence.is_empty(), "only an empty sequence begins with stored pages");
        sequence.resume = tokens.len();
        extend_chain(&mut sequence.chain, self.root, tokens);
        let text = Text::new(&sequence.chain, tokens);
        let mut found = self.prefixes.find(text);
        let beginning = self.beginning(backend, text, &mut found, interrupted)?;
        let count = beginning.pages;
        if count == 0 {
            return Ok(0);
        }
        let len = count * PAGE_TOKENS;
        if self.global.is_some() {
            sequence.global.adopt(len, beginning.global);
        }
        if self.chunked.is_some() {
            sequence.chunked.adopt(len, beginning.chunked);
        }
        sequence.len = len;
        let chunk = self.first_of_chunk(count);
        let whole = chunk + chunked_in_tree(&found, chunk);
        sequence.stored = Stored::Pages(count.min(found.len()).min(whole));
        sequence.persisted = count;
        self.remember(sequence, tokens);
        Ok(len)
    }

    /// Forgets kept pages until those that `sequence` must allocate for tokens at
    /// `positions` fit into the budget.
    fn make_room(
        &mut self,
        backend: &B,
        sequence: &SequenceKv,
        positions: Range<usize>,
    ) -> Result<()> {
        let missing = |pool: &Option<Pool<B>>, table: &PageTable| {
            let bytes = |pool: &Pool<B>, form| {
                table.missing_pages(form, positions.clone()) * pool.geometry.page_bytes(form)
            };
            pool.as_ref().map_or(0, |pool| FORMS.map(|form| bytes(pool, form)).iter().sum())
        };
        let bytes =
            missing(&self.chunked, &sequence.chunked) + missing(&self.global, &sequence.global);
        let mut evicted = false;
        while self.bytes_in_use().saturating_add(bytes) > self.budget {
            if !self.evict() {
                return Err(Error::OutOfMemory { what: "key/value pages", bytes });
            }
            evicted = true;
        }
        if evicted {
            // The new pages may be of another form or pool than those that made room.
            self.discard_free(backend, positions.len().div_ceil(PAGE_TOKENS));
        }
        Ok(())
    }

    /// Reserves pages for the next `count` tokens of `sequence`, which are the
    /// step's rows from `row` on, and notes their slots and spans in `step`.
    ///
    /// On an error the sequence and `step` are as they were.
    pub fn extend(
        &mut self,
        backend: &B,
        sequence: &mut SequenceKv,
        count: usize,
        row: usize,
        step: &mut KvStep,
    ) -> Result<()> {
        let positions = sequence.len..sequence.len + count;
        self.make_room(backend, sequence, positions.clone())?;
        let seals = [step.chunked.seals.len(), step.global.seals.len()];
        let parts = [
            (&mut self.chunked, &mut sequence.chunked, &mut step.chunked),
            (&mut self.global, &mut sequence.global, &mut step.global),
        ];
        let mut outcome = Ok(());
        for (pool, table, step) in parts {
            let (Some(pool), Ok(())) = (pool, &outcome) else { continue };
            table.extend(&mut pool.allocator, positions.clone(), row, step);
            outcome = pool.reserve(backend);
        }
        if outcome.is_err() {
            for (step, seals) in [&mut step.chunked, &mut step.global].into_iter().zip(seals) {
                step.slots.truncate(row);
                step.seals.truncate(seals);
                step.spans.retain(|span| span.rows.start < row);
            }
            self.rollback(sequence);
        }
        outcome
    }

    /// The last `count` tokens that [`extend`](Self::extend) reserved are stored:
    /// counts them, and frees the pages of chunks that are complete and the exact
    /// form of pages that are sealed.
    pub fn commit(&mut self, sequence: &mut SequenceKv, count: usize) {
        sequence.len += count;
        self.rollback(sequence);
    }

    /// Forgets tokens that were reserved and not committed.
    pub fn rollback(&mut self, sequence: &mut SequenceKv) {
        if let Some(pool) = &mut self.chunked {
            sequence.chunked.trim(&mut pool.allocator, sequence.len);
        }
        if let Some(pool) = &mut self.global {
            sequence.global.trim(&mut pool.allocator, sequence.len);
        }
    }

    /// Frees all pages of a sequence.
    pub fn release(&mut self, mut sequence: SequenceKv) {
        if let Some(pool) = &mut self.chunked {
            sequence.chunked.clear(&mut pool.allocator);
        }
        if let Some(pool) = &mut self.global {
            sequence.global.clear(&mut pool.allocator);
        }
    }

    /// Lets the device drop the content of pages that are free, but for the `keep` of
    /// each form that the next step takes first, as far as the budget has room for them.
    /// Call it between steps.
    pub fn discard_free(&mut self, backend: &B, keep: usize) {
        let spare = self.budget.saturating_sub(self.bytes_in_use());
        let pools = [&mut self.chunked, &mut self.global];
        let one_of_each: usize = pools
            .iter()
            .filter_map(|pool| Some(pool.as_ref()?.geometry))
            .flat_map(|geometry| FORMS.map(|form| geometry.page_bytes(form)))
            .sum();
        for pool in pools.into_iter().flatten() {
            pool.discard(backend, keep.min(spare / one_of_each.max(1)));
        }
    }

    pub(crate) fn pool(&self, kind: PoolKind) -> &Option<Pool<B>> {
        match kind {
            PoolKind::Chunked => &self.chunked,
            PoolKind::Global => &self.global,
        }
    }

    pub(crate) fn pool_mut(&mut self, kind: PoolKind) -> &mut Option<Pool<B>> {
        match kind {
            PoolKind::Chunked => &mut self.chunked,
            PoolKind::Global => &mut self.global,
        }
    }

    /// The device's pages of one kind, to write to.
    ///
    /// # Panics
    /// When the model has no layer of this kind.
    pub fn storage_mut(&mut self, kind: PoolKind) -> &mut B::KvPool {
        &mut self.pool_mut(kind).as_mut().expect("a layer of this kind exists").storage
    }

    /// The device's pages of one kind, to read.
    ///
    /// # Panics
    /// When the model has no layer of this kind.
    pub fn storage(&self, kind: PoolKind) -> &B::KvPool {
        &self.pool(kind).as_ref().expect("a layer of this kind exists").storage
    }

    /// Bytes that finding texts in the store has read so far.
    pub fn bytes_read(&self) -> BytesRead {
        self.store.as_ref().map(Store::bytes_read).unwrap_or_default()
    }

    /// Memory of the pages in use; those that are mapped from files take none.
    pub fn bytes_in_use(&self) -> usize {
        let pools = [&self.chunked, &self.global].into_iter().flatten();
        pools.map(Pool::bytes_in_use).sum()
    }
}
