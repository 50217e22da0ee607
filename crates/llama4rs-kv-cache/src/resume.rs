//! Where the same prompt goes on when it is asked again.
//!
//! A prompt's last token is always computed, so whoever asks the same again goes on at the
//! last page boundary before it, and needs the pages of the chunked layers from the
//! beginning of that chunk on. The sequence itself has no more use for them when it passes
//! the end of the chunk. They stay nevertheless, in the store and, until memory is needed for
//! anything else, in the prefix tree.

use std::ops::Range;

use llama4rs_tensor::Backend;

use crate::cache::KvCache;
use crate::layout::PoolKind;
use crate::prefix::TokenKey;
use crate::sequence::SequenceKv;
use crate::store::{extend_chain, Text};
use crate::PAGE_TOKENS;

impl<B: Backend> KvCache<B> {
    /// The last `count` tokens that [`extend`](Self::extend) reserved are stored: counts them
    /// as [`commit`](Self::commit) does, and keeps full pages for others. `tokens` is the text of
    /// the sequence.
    pub fn advance(
        &mut self,
        backend: &B,
        sequence: &mut SequenceKv,
        tokens: &[TokenKey],
        count: usize,
    ) {
        sequence.len += count;
        // The pages of a chunk that is complete are still there.
        self.remember(sequence, tokens);
        self.persist_resume(backend, sequence, tokens, sequence.len - count);
        self.rollback(sequence);
        self.persist(backend, sequence, tokens, false);
    }

    /// Pages of the chunked layers that are needed to go on where the text of `sequence` is
    /// asked again.
    pub(crate) fn resume_pages(&self, sequence: &SequenceKv) -> Range<usize> {
        let end = sequence.resume / PAGE_TOKENS;
        self.first_of_chunk(end)..end
    }

    /// Stores these pages when the sequence leaves their chunk: it was `before` tokens long.
    fn persist_resume(
        &mut self,
        backend: &B,
        sequence: &mut SequenceKv,
        tokens: &[TokenKey],
        before: usize,
    ) {
        let Range { start, end } = self.resume_pages(sequence);
        let Some(chunk) = self.layout.chunk_pages().filter(|_| start < end) else { return };
        let passed = (start + chunk) * PAGE_TOKENS;
        if self.global.is_none() || before >= passed || sequence.len < passed {
            return;
        }
        let Some(mut store) = self.store.take() else { return };
        extend_chain(&mut sequence.chain, store.root(), tokens);
        let text = Text::new(&sequence.chain, tokens).first(end);
        let outcome =
            self.write_pool(backend, &mut store, sequence, PoolKind::Chunked, text, start);
        self.store = Some(store);
        self.note_outcome(outcome);
    }
}
