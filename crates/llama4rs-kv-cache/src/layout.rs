//! What the cache must know of a model: which layers, and how large their pages are.

use llama4rs_tensor::{KvDtype, KvGeometry, PageForm};

use crate::store::PageSizes;
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
