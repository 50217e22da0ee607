//! From a token's position to its page: one table per sequence and pool.
//!
//! Positions are cut into *windows*: a chunk for the chunked layers, one endless
//! window for the global layers. Every window starts on a page of its own, so a
//! finished window's pages can go, whatever the chunk size.

use std::collections::VecDeque;
use std::ops::Range;

use llama4rs_tensor::{KvSpan, Slot};

use crate::allocator::PageAllocator;
use crate::PAGE_TOKENS;

/// Pages of the live windows of one sequence in one pool.
#[derive(Debug)]
pub(crate) struct PageTable {
    /// Tokens of a window; `None`: one window for ever.
    window: Option<usize>,
    /// Index of the first live window.
    first_window: usize,
    /// Pages of each live window, in order.
    windows: VecDeque<Vec<u32>>,
}

impl PageTable {
    pub fn new(window: Option<usize>) -> Self {
        Self { window, first_window: 0, windows: VecDeque::new() }
    }

    /// `(window, token within it)` of a position.
    fn locate(&self, position: usize) -> (usize, usize) {
        self.window.map_or((0, position), |w| (position / w, position % w))
    }

    /// Makes room for the tokens at `positions`, appends their slots, and appends
    /// one span per window that they touch. `row` is the step's row of the first.
    pub fn extend(
        &mut self,
        allocator: &mut PageAllocator,
        positions: Range<usize>,
        row: usize,
        slots: &mut Vec<Slot>,
        spans: &mut Vec<KvSpan>,
    ) {
        let mut position = positions.start;
        while position < positions.end {
            let (window, start) = self.locate(position);
            let room = self.window.map_or(usize::MAX, |w| w - start);
            let count = room.min(positions.end - position);
            while self.first_window + self.windows.len() <= window {
                self.windows.push_back(Vec::new());
            }
            let pages = &mut self.windows[window - self.first_window];
            while pages.len() * PAGE_TOKENS < start + count {
                pages.push(allocator.allocate());
            }
            slots.extend((start..start + count).map(|token| Slot {
                page: pages[token / PAGE_TOKENS],
                offset: (token % PAGE_TOKENS) as u32,
            }));
            let first_row = row + position - positions.start;
            spans.push(KvSpan {
                rows: first_row..first_row + count,
                pages: pages.clone(),
                visible: start + 1,
            });
            position += count;
        }
    }

    /// Frees what a sequence of `len` tokens does not need: the windows that it
    /// has finished and the pages beyond its end.
    pub fn trim(&mut self, allocator: &mut PageAllocator, len: usize) {
        let (window, tokens) = self.locate(len);
        while self.first_window < window {
            let finished = self.windows.pop_front().unwrap_or_default();
            allocator.release(finished);
            self.first_window += 1;
        }
        for (index, pages) in self.windows.iter_mut().enumerate() {
            let needed = if index == 0 { tokens.div_ceil(PAGE_TOKENS) } else { 0 };
            allocator.release(pages.drain(needed.min(pages.len())..));
        }
        while self.windows.back().is_some_and(Vec::is_empty) {
            self.windows.pop_back();
        }
    }

    /// Takes over shared pages that hold the tokens before `len`, a multiple of
    /// [`PAGE_TOKENS`] at which the table has no pages of its own yet.
    pub fn adopt(&mut self, len: usize, pages: Vec<u32>) {
        debug_assert!(self.windows.is_empty(), "only an empty table adopts pages");
        let (window, tokens) = self.locate(len);
        debug_assert_eq!(pages.len() * PAGE_TOKENS, tokens, "whole pages of the last window");
        self.first_window = window;
        if !pages.is_empty() {
            self.windows.push_back(pages);
        }
    }

    /// The page of a token that is stored, if its window is still alive.
    pub fn page_of(&self, position: usize) -> Option<u32> {
        let (window, token) = self.locate(position);
        let pages = self.windows.get(window.checked_sub(self.first_window)?)?;
        pages.get(token / PAGE_TOKENS).copied()
    }

    /// Frees everything.
    pub fn clear(&mut self, allocator: &mut PageAllocator) {
        for pages in self.windows.drain(..) {
            allocator.release(pages);
        }
    }

    #[cfg(test)]
    pub fn pages(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Random step sizes, some rolled back: every token keeps its slot, every
        /// span shows exactly the tokens of its window, and no page is lost.
        #[test]
        fn slots_and_spans_follow_the_definition(
            window in prop::option::of(1usize..200),
            steps in prop::collection::vec((1usize..150, any::<bool>()), 1..20),
        ) {
            let mut allocator = PageAllocator::default();
            let mut table = PageTable::new(window);
            let mut home = Vec::new();
            for (count, keep) in steps {
                let len = home.len();
                let (mut slots, mut spans) = (Vec::new(), Vec::new());
                table.extend(&mut allocator, len..len + count, 3, &mut slots, &mut spans);
                prop_assert_eq!(slots.len(), count);
                home.extend(slots);
                for span in &spans {
                    for (i, row) in span.rows.clone().enumerate() {
                        let position = len + row - 3;
                        let start = window.map_or(0, |w| position / w * w);
                        prop_assert_eq!(span.visible + i, position - start + 1);
                        for (token, slot) in home[start..=position].iter().enumerate() {
                            prop_assert_eq!(slot.page, span.pages[token / PAGE_TOKENS]);
                            prop_assert_eq!(slot.offset as usize, token % PAGE_TOKENS);
                        }
                    }
                }
                if !keep {
                    home.truncate(len);
                }
                table.trim(&mut allocator, home.len());
                prop_assert_eq!(allocator.in_use(), table.pages());
                let live = window.map_or(home.len(), |w| home.len() % w);
                prop_assert_eq!(table.pages(), live.div_ceil(PAGE_TOKENS), "memory follows use");
            }
            table.clear(&mut allocator);
            prop_assert_eq!(allocator.in_use(), 0);
        }
    }
}
