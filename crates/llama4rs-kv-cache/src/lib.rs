//! Floor 1: where the keys and values of every sequence live.
//!
//! Llama 4 has two kinds of attention layer, so the cache has two pools:
//!
//! ```text
//! chunked layers   only the tokens of the current chunk are ever visible:
//!                  pages are freed as soon as a chunk is complete
//! global layers    every token stays visible: pages grow with the sequence
//! ```
//!
//! With a quantised [`KvDtype`](llama4rs_tensor::KvDtype) the pages of the global
//! pool change their form when they are full: an *exact* page becomes a *sealed*
//! one. **Precision by position**: a token sees its own page exact, every page
//! before it as it is stored (sealed, but for the first, which stays exact). So
//! results do not depend on how a text was cut into steps, batched or resumed. A
//! page is sealed once, in the step that fills it: each layer writes, seals, attends.
//!
//! A *page* holds [`PAGE_TOKENS`] tokens of all layers of its pool. A sequence
//! owns a [`SequenceKv`]: its length and two page tables. For each step
//! [`KvCache::extend`] reserves pages for the new tokens and writes down where
//! they go ([`Slot`](llama4rs_tensor::Slot)s) and what they see
//! ([`KvSpan`](llama4rs_tensor::KvSpan)s); after the step [`KvCache::commit`]
//! makes them part of the sequence, or [`KvCache::rollback`] forgets them.

mod allocator;
mod beginning;
mod cache;
mod demand;
mod kept;
mod layout;
mod page_table;
mod persist;
mod pool;
mod prefix;
mod repeat;
mod resume;
mod sequence;
mod step;
pub mod store;

pub use cache::KvCache;
pub use demand::Demand;
pub use layout::{KvLayout, LayerKv, PoolKind};
pub use prefix::TokenKey;
pub use sequence::SequenceKv;
pub use step::{KvStep, PoolStep};

/// Tokens of one page.
pub const PAGE_TOKENS: usize = 64;
