//! Pages that stay for later sequences: what the prefix tree takes over, and what it gives up.

use llama4rs_tensor::{Backend, PageId};

use crate::cache::KvCache;
use crate::page_table::PageTable;
use crate::pool::Pool;
use crate::prefix::{Inserted, NodePages, TokenKey};
use crate::sequence::{SequenceKv, Stored};
use crate::store::{extend_chain, Text};
use crate::PAGE_TOKENS;

/// What a node of the prefix tree costs beside its pages, about.
const NODE_BYTES: usize = 1024;

impl<B: Backend> KvCache<B> {
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
        let oldest = self.prefixes.evict_older();
        self.release_node(oldest)
    }

    /// Forgets the page that was of no use for longest; `false`: there is none.
    pub(crate) fn evict(&mut self) -> bool {
        if let Some(pages) = self.prefixes.evict_retired() {
            self.release_chunked(pages);
            return true;
        }
        let oldest = self.prefixes.evict();
        self.release_node(oldest)
    }

    /// Frees the pages of a node that has left the tree; `false`: there is none.
    fn release_node(&mut self, node: Option<NodePages>) -> bool {
        let Some(pages) = node else { return false };
        self.prefix_bytes -= NODE_BYTES + self.page_bytes(pages);
        self.release_pages(pages);
        true
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
}
