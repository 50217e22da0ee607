//! One sequence's share of the cache.

use crate::layout::PoolKind;
use crate::page_table::PageTable;
use crate::store::PageHash;

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

    /// The pages of one kind.
    pub(crate) fn table(&self, kind: PoolKind) -> &PageTable {
        match kind {
            PoolKind::Chunked => &self.chunked,
            PoolKind::Global => &self.global,
        }
    }
}
