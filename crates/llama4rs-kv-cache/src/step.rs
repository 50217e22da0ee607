//! What one step writes and reads.

use llama4rs_tensor::{KvSpan, PageId, Slot};

use crate::layout::PoolKind;

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
