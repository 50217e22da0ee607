//! Long texts without computing them, for measurements.

use llama4rs_tensor::{AlignedBytes, Backend, Result};

use crate::cache::KvCache;
use crate::page_table::PageTable;
use crate::pool::Pool;
use crate::sequence::SequenceKv;
use crate::step::KvStep;
use crate::PAGE_TOKENS;

impl<B: Backend> KvCache<B> {
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
}
