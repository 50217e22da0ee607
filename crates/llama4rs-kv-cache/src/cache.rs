//! The two pools and the sequences in them.

use std::ops::Range;

use llama4rs_tensor::{
    AlignedBytes, Backend, Error, KvDtype, KvGeometry, KvSpan, PageForm, PageId, Result, Slot,
};

use crate::allocator::PageAllocator;
use crate::page_table::PageTable;
use crate::persist::{chunked_in_tree, StoreState};
use crate::prefix::{Inserted, NodePages, PrefixTree, TokenKey};
use crate::store::{
    extend_chain, BytesRead, Interrupted, PageHash, PageSizes, ReadMode, Store, Text,
};
use crate::PAGE_TOKENS;

/// Which pool a layer's keys and values live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// Layers that see the current chunk only.
    Chunked,
    /// Layers that see everything.
    Global,
}

impl PoolKind {
    /// The word in file names and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            PoolKind::Chunked => "chunked",
            PoolKind::Global => "global",
        }
    }
}

/// A layer's place: its pool and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKv {
    /// The pool.
    pub pool: PoolKind,
    /// The layer's number within the pool.
    pub index: usize,
}

/// What the cache must know of a model.
#[derive(Clone, Debug)]
pub struct KvLayout {
    /// The pool of each layer, in layer order.
    pub layers: Vec<PoolKind>,
    /// Tokens of a chunk; needed when a layer is chunked.
    pub chunk_size: Option<usize>,
    /// Key/value heads of a layer.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Element type of keys and values.
    pub dtype: KvDtype,
    /// Whether full pages of the global layers are in mapped files, not in memory, as
    /// soon as a segment of them is full.
    pub mapped: bool,
}

impl KvLayout {
    /// Sizes of the pages of one kind. Chunked layers are small: they stay exact.
    pub fn geometry(&self, kind: PoolKind) -> KvGeometry {
        KvGeometry {
            num_layers: self.layers.iter().filter(|&&k| k == kind).count(),
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            page_tokens: PAGE_TOKENS,
            dtype: match kind {
                PoolKind::Chunked => self.dtype.exact(),
                PoolKind::Global => self.dtype,
            },
        }
    }

    /// The form of a full page of a text.
    pub(crate) fn page_form(&self, kind: PoolKind, number: usize) -> PageForm {
        match kind == PoolKind::Global && self.dtype.is_quantised() && number > 0 {
            true => PageForm::Sealed,
            false => PageForm::Exact,
        }
    }

    /// Bytes of full pages, as a store wants to know them.
    pub fn page_sizes(&self) -> PageSizes {
        let bytes = |kind, page| self.geometry(kind).page_bytes(self.page_form(kind, page));
        PageSizes {
            first_global: bytes(PoolKind::Global, 0),
            global: bytes(PoolKind::Global, 1),
            chunked: bytes(PoolKind::Chunked, 0),
        }
    }

    /// Pages of a chunk, if chunks are whole pages: else a page of the chunked pool does
    /// not hold the tokens of a page of the global one.
    pub(crate) fn chunk_pages(&self) -> Option<usize> {
        let chunk = self.chunk_size.filter(|chunk| chunk.is_multiple_of(PAGE_TOKENS))?;
        Some(chunk / PAGE_TOKENS)
    }

    /// Each layer's place.
    pub fn places(&self) -> Vec<LayerKv> {
        let mut counts = [0, 0];
        self.layers
            .iter()
            .map(|&pool| {
                let count = &mut counts[(pool == PoolKind::Global) as usize];
                *count += 1;
                LayerKv { pool, index: *count - 1 }
            })
            .collect()
    }
}

/// One sequence's share of the cache. Give it back with [`KvCache::release`].
#[derive(Debug)]
pub struct SequenceKv {
    pub(crate) len: usize,
    pub(crate) chunked: PageTable,
    pub(crate) global: PageTable,
    pub(crate) stored: Stored,
    /// The hashes of its text, as far as they were needed.
    pub(crate) chain: Vec<PageHash>,
    /// Pages before which everything is in the store, or was tried.
    pub(crate) persisted: usize,
    /// Tokens after which somebody goes on who asks for the same: all but the last one of
    /// the prompt.
    pub(crate) resume: usize,
}

/// What a node of the prefix tree costs beside its pages, about.
const NODE_BYTES: usize = 1024;

/// How much of a sequence the prefix tree knows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored {
    /// This many pages.
    Pages(usize),
    /// The tree has lost an earlier page: no more are stored.
    Lost,
}

impl SequenceKv {
    /// Tokens whose keys and values are stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is stored yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What one step writes to and reads from one pool.
#[derive(Clone, Debug, Default)]
pub struct PoolStep {
    /// Where each row's key and value go.
    pub slots: Vec<Slot>,
    /// Pages that the step fills, to be sealed when their keys and values are
    /// written: `(exact, sealed)`.
    pub seals: Vec<(PageId, PageId)>,
    /// What the rows see.
    pub spans: Vec<KvSpan>,
}

/// What one step writes and reads: built once, used by every layer.
#[derive(Clone, Debug, Default)]
pub struct KvStep {
    /// For the chunked layers.
    pub chunked: PoolStep,
    /// For the global layers.
    pub global: PoolStep,
}

impl KvStep {
    /// Forgets the last step, keeps the memory.
    pub fn clear(&mut self) {
        for pool in [&mut self.chunked, &mut self.global] {
            pool.slots.clear();
            pool.seals.clear();
            pool.spans.clear();
        }
    }

    /// The part of one pool.
    pub fn pool(&self, kind: PoolKind) -> &PoolStep {
        match kind {
            PoolKind::Chunked => &self.chunked,
            PoolKind::Global => &self.global,
        }
    }
}

const FORMS: [PageForm; 2] = [PageForm::Exact, PageForm::Sealed];

pub(crate) struct Pool<B: Backend> {
    pub geometry: KvGeometry,
    pub allocator: PageAllocator,
    pub storage: B::KvPool,
}

impl<B: Backend> Pool<B> {
    /// A pool for the layers of one kind; `None` when there are none.
    fn new(backend: &B, geometry: KvGeometry) -> Result<Option<Self>> {
        if geometry.num_layers == 0 {
            return Ok(None);
        }
        let storage = backend.kv_pool(geometry)?;
        Ok(Some(Self { geometry, allocator: PageAllocator::default(), storage }))
    }

    /// Makes every page that was handed out usable.
    pub fn reserve(&mut self, backend: &B) -> Result<()> {
        for form in FORMS {
            backend.kv_reserve(&mut self.storage, form, self.allocator.capacity(form))?;
        }
        Ok(())
    }

    fn discard(&mut self, backend: &B, keep: usize) {
        let stale = self.allocator.take_stale(keep);
        if !stale.is_empty() {
            backend.kv_discard(&mut self.storage, &stale);
        }
    }

    fn bytes_in_use(&self) -> usize {
        let bytes = |&form| self.allocator.in_memory(form) * self.geometry.page_bytes(form);
        FORMS.iter().map(bytes).sum()
    }
}

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
    keeps_last_text: bool,
    /// Most bytes of pages in use.
    pub(crate) budget: usize,
    /// The hash at the beginning of every text.
    root: PageHash,
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

    /// Keeps the full pages of a sequence whose tokens are `tokens` for later sequences.
    pub(crate) fn remember(&mut self, sequence: &mut SequenceKv, tokens: &[TokenKey]) {
        if self.prefix_budget == 0 {
            return;
        }
        extend_chain(&mut sequence.chain, self.root, tokens);
        while let Stored::Pages(count) = sequence.stored {
            let (start, end) = (count * PAGE_TOKENS, (count + 1) * PAGE_TOKENS);
            if end > sequence.len.min(tokens.len()) {
                return;
            }
            let pages = self.share_pages(sequence, start);
            let text = Text::new(&sequence.chain, tokens);
            sequence.stored = match self.prefixes.insert(text, count, pages) {
                Inserted::New => {
                    self.prefix_bytes += NODE_BYTES + self.page_bytes(pages);
                    self.leave_chunk(text, count + 1, sequence);
                    Stored::Pages(count + 1)
                }
                Inserted::Known => {
                    self.restore_chunked(text, count, pages, sequence);
                    Stored::Pages(count + 1)
                }
                Inserted::Refused => {
                    self.release_pages(pages);
                    Stored::Lost
                }
            };
            while self.prefix_bytes > self.prefix_budget && self.evict_for_budget() {}
        }
    }

    /// Forgets a page because too many are kept; `false`: what is left stays.
    fn evict_for_budget(&mut self) -> bool {
        let last_text = self.keeps_last_text && self.prefixes.is_one_text();
        !last_text && self.evict()
    }

    /// Forgets the page that was of no use for longest, but none of the text that was looked
    /// for last; `false`: there is no other.
    pub(crate) fn evict_older(&mut self) -> bool {
        let Some(pages) = self.prefixes.evict_older() else { return false };
        self.prefix_bytes -= NODE_BYTES + self.page_bytes(pages);
        self.release_pages(pages);
        true
    }

    /// Forgets the page that was of no use for longest; `false`: there is none.
    fn evict(&mut self) -> bool {
        if let Some(pages) = self.prefixes.evict_retired() {
            self.release_chunked(pages);
            return true;
        }
        let Some(pages) = self.prefixes.evict() else { return false };
        self.prefix_bytes -= NODE_BYTES + self.page_bytes(pages);
        self.release_pages(pages);
        true
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

    /// The pages of a sequence that begin at token `start`, with one more owner.
    fn share_pages(&mut self, sequence: &SequenceKv, start: usize) -> NodePages {
        // What was left behind is of use only where the prompt is asked again.
        let number = start / PAGE_TOKENS;
        let needed = number >= self.first_of_chunk(sequence.len / PAGE_TOKENS)
            || self.resume_pages(sequence).contains(&number);
        let aligned = self.layout.chunk_pages().is_some() && needed;
        let share = |pool: &mut Option<Pool<B>>, table: &PageTable| {
            let page = table.page_of(start)?;
            pool.as_mut().map(|pool| pool.allocator.share(page))
        };
        NodePages {
            global: share(&mut self.global, &sequence.global),
            chunked: aligned.then(|| share(&mut self.chunked, &sequence.chunked)).flatten(),
        }
    }

    fn release_pages(&mut self, pages: NodePages) {
        if let Some(pool) = &mut self.global {
            pool.allocator.release(pages.global);
        }
        if let Some(pool) = &mut self.chunked {
            pool.allocator.release(pages.chunked);
        }
    }

    /// At the end of a chunk its chunked pages are of no more use to a text that goes on; those
    /// from which its prompt can be asked again may go as soon as memory is needed.
    fn leave_chunk(&mut self, text: Text<'_>, pages: usize, sequence: &SequenceKv) {
        let Some(chunk) = self.layout.chunk_pages().filter(|chunk| pages.is_multiple_of(*chunk))
        else {
            return;
        };
        let resume = self.resume_pages(sequence);
        let mut first = pages - chunk;
        if resume.start == first && !resume.is_empty() {
            self.prefixes.retire(text.hash(resume.end), resume.len());
            first = resume.end;
        }
        let forgotten = self.prefixes.take_chunked(text.hash(pages), pages - first);
        self.release_chunked(forgotten);
    }

    /// Gives a node that the tree knows the chunked page that it has lost, if the prompt of
    /// `sequence` can be asked again from there.
    fn restore_chunked(
        &mut self,
        text: Text<'_>,
        number: usize,
        mut pages: NodePages,
        sequence: &SequenceKv,
    ) {
        let resume = self.resume_pages(sequence);
        if let Some(page) = pages.chunked.filter(|_| resume.contains(&number)) {
            if self.prefixes.restore(text.hash(number + 1), page) {
                pages.chunked = None;
                self.prefix_bytes +=
                    self.page_bytes(NodePages { global: None, chunked: Some(page) });
                self.prefixes.retire(text.hash(number + 1), number + 1 - resume.start);
            }
        }
        self.release_pages(pages);
    }

    fn release_chunked(&mut self, pages: Vec<PageId>) {
        for page in pages {
            let pages = NodePages { global: None, chunked: Some(page) };
            self.prefix_bytes -= self.page_bytes(pages);
            self.release_pages(pages);
        }
    }

    /// Memory of a node's pages, or what their maps cost.
    fn page_bytes(&self, pages: NodePages) -> usize {
        let bytes = |pool: &Option<Pool<B>>, page: Option<PageId>| {
            let Some((pool, page)) = pool.as_ref().zip(page) else { return 0 };
            let in_memory = || pool.geometry.page_bytes(page.form());
            pool.allocator.map_cost(page).unwrap_or_else(in_memory)
        };
        bytes(&self.global, pages.global) + bytes(&self.chunked, pages.chunked)
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

    /// Lets a sequence of whole pages, at least two and inside of a chunk, go on to `tokens` without
    /// computing anything: every further page gets the content of its last one. For measurements.
    pub fn repeat_page(
        &mut self,
        backend: &B,
        sequence: &mut SequenceKv,
        tokens: usize,
    ) -> Result<()> {
        let template = |pool: &Option<Pool<B>>, table: &PageTable| {
            let page = table.page_of(sequence.len.checked_sub(1)?)?;
            let content = |pool: &Pool<B>| Ok(backend.kv_read(&pool.storage, page)?.into_owned());
            pool.as_ref().map(content)
        };
        let chunked = template(&self.chunked, &sequence.chunked).transpose()?;
        let global = template(&self.global, &sequence.global).transpose()?;
        let last_chunk = self.layout.chunk_size.map_or(0, |chunk| tokens / chunk * chunk);
        let mut step = KvStep::default();
        while sequence.len + PAGE_TOKENS <= tokens {
            let start = sequence.len;
            step.clear();
            self.extend(backend, sequence, PAGE_TOKENS, 0, &mut step)?;
            // Pages of chunks that are complete by then are never read.
            let parts = [
                (&mut self.chunked, &sequence.chunked, &chunked, start >= last_chunk),
                (&mut self.global, &sequence.global, &global, true),
            ];
            for (pool, table, content, wanted) in parts {
                let (Some(pool), Some(page), Some(content)) = (pool, table.page_of(start), content)
                else {
                    continue;
                };
                if wanted {
                    let mut bytes = AlignedBytes::zeroed(content.len())?;
                    bytes.copy_from_slice(content);
                    backend.kv_adopt(&mut pool.storage, page, bytes.into())?;
                }
            }
            self.commit(sequence, PAGE_TOKENS);
        }
        Ok(())
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
