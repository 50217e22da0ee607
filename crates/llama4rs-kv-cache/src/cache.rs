//! The two pools and the sequences in them.

use llama4rs_tensor::{Backend, KvDtype, KvGeometry, KvSpan, Result, Slot};

use crate::allocator::PageAllocator;
use crate::page_table::PageTable;
use crate::PAGE_TOKENS;

/// Which pool a layer's keys and values live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Layers that see the current chunk only.
    Chunked,
    /// Layers that see everything.
    Global,
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
}

impl KvLayout {
    fn geometry(&self, kind: PoolKind) -> KvGeometry {
        KvGeometry {
            num_layers: self.layers.iter().filter(|&&k| k == kind).count(),
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            page_tokens: PAGE_TOKENS,
            dtype: self.dtype,
        }
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

    /// Bytes that a sequence of `tokens` tokens keeps, whole pages counted.
    pub fn sequence_bytes(&self, tokens: usize) -> usize {
        let pages = |tokens: usize| tokens.div_ceil(PAGE_TOKENS);
        let live = self.chunk_size.map_or(0, |chunk| tokens.min(chunk));
        pages(live) * self.geometry(PoolKind::Chunked).page_bytes()
            + pages(tokens) * self.geometry(PoolKind::Global).page_bytes()
    }
}

/// One sequence's share of the cache. Give it back with [`KvCache::release`].
#[derive(Debug)]
pub struct SequenceKv {
    len: usize,
    chunked: PageTable,
    global: PageTable,
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

struct Pool<B: Backend> {
    geometry: KvGeometry,
    allocator: PageAllocator,
    storage: B::KvPool,
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
}

/// Keys and values of all sequences on one device.
pub struct KvCache<B: Backend> {
    layout: KvLayout,
    chunked: Option<Pool<B>>,
    global: Option<Pool<B>>,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache; it allocates as sequences grow.
    pub fn new(backend: &B, layout: KvLayout) -> Result<Self> {
        Ok(Self {
            chunked: Pool::new(backend, layout.geometry(PoolKind::Chunked))?,
            global: Pool::new(backend, layout.geometry(PoolKind::Global))?,
            layout,
        })
    }

    /// The layout that the cache was made for.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// A sequence without tokens.
    pub fn sequence(&self) -> SequenceKv {
        SequenceKv {
            len: 0,
            chunked: PageTable::new(self.layout.chunk_size),
            global: PageTable::new(None),
        }
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
        let parts = [
            (&mut self.chunked, &mut sequence.chunked, &mut step.chunked),
            (&mut self.global, &mut sequence.global, &mut step.global),
        ];
        let mut outcome = Ok(());
        for (pool, table, step) in parts {
            let (Some(pool), Ok(())) = (pool, &outcome) else { continue };
            table.extend(
                &mut pool.allocator,
                positions.clone(),
                row,
                &mut step.slots,
                &mut step.spans,
            );
            outcome = backend.kv_reserve(&mut pool.storage, pool.allocator.capacity());
        }
        if outcome.is_err() {
            for step in [&mut step.chunked, &mut step.global] {
                step.slots.truncate(row);
                step.spans.retain(|span| span.rows.start < row);
            }
            self.rollback(sequence);
        }
        outcome
    }

    /// The last `count` tokens that [`extend`](Self::extend) reserved are stored:
    /// counts them, and frees the pages of chunks that are complete.
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

    /// The device's pages of one kind, to write to.
    ///
    /// # Panics
    /// When the model has no layer of this kind.
    pub fn storage_mut(&mut self, kind: PoolKind) -> &mut B::KvPool {
        let pool = match kind {
            PoolKind::Chunked => &mut self.chunked,
            PoolKind::Global => &mut self.global,
        };
        &mut pool.as_mut().expect("a layer of this kind exists").storage
    }

    /// The device's pages of one kind, to read.
    ///
    /// # Panics
    /// When the model has no layer of this kind.
    pub fn storage(&self, kind: PoolKind) -> &B::KvPool {
        let pool = match kind {
            PoolKind::Chunked => &self.chunked,
            PoolKind::Global => &self.global,
        };
        &pool.as_ref().expect("a layer of this kind exists").storage
    }

    /// Bytes of the pages in use.
    pub fn bytes_in_use(&self) -> usize {
        let pools = [&self.chunked, &self.global].into_iter().flatten();
        pools.map(|pool| pool.allocator.in_use() * pool.geometry.page_bytes()).sum()
    }
}
