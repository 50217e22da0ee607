//! From a token's position to its page: one table per sequence and pool.
//!
//! Positions are cut into *windows*: a chunk for the chunked layers, one endless
//! window for the global layers. Every window starts on a page of its own, so a
//! finished window's pages can go, whatever the chunk size.

use std::collections::VecDeque;
use std::ops::Range;

use llama4rs_tensor::{KvSpan, PageForm, PageId, Slot};

use crate::allocator::PageAllocator;
use crate::step::PoolStep;
use crate::PAGE_TOKENS;

/// The places of one page's tokens. While the step that fills a page has not been
/// committed, the page is there in both forms.
#[derive(Clone, Copy, Debug)]
struct Page {
    exact: Option<PageId>,
    sealed: Option<PageId>,
}

impl Page {
    fn of(id: PageId) -> Self {
        match id.form() {
            PageForm::Exact => Self { exact: Some(id), sealed: None },
            PageForm::Sealed => Self { exact: None, sealed: Some(id) },
        }
    }

    /// What later pages see.
    fn stored(&self) -> PageId {
        self.sealed.or(self.exact).expect("a page has a place")
    }

    fn places(self) -> impl Iterator<Item = PageId> {
        self.exact.into_iter().chain(self.sealed)
    }
}

/// Pages of the live windows of one sequence in one pool.
#[derive(Debug)]
pub(crate) struct PageTable {
    /// Tokens of a window; `None`: one window for ever.
    window: Option<usize>,
    /// Whether full pages are sealed: all but the first of a window.
    seals: bool,
    /// Index of the first live window.
    first_window: usize,
    /// Pages of each live window, in order.
    windows: VecDeque<Vec<Page>>,
}

impl PageTable {
    pub fn new(window: Option<usize>, seals: bool) -> Self {
        Self { window, seals, first_window: 0, windows: VecDeque::new() }
    }

    /// `(window, token within it)` of a position.
    fn locate(&self, position: usize) -> (usize, usize) {
        self.window.map_or((0, position), |w| (position / w, position % w))
    }

    /// Makes room for the tokens at `positions` and appends to `step` their slots,
    /// the pages that they fill, and what they see: a span for each window that
    /// they touch or, where pages are sealed, for each page. `row` is the step's
    /// row of the first.
    pub fn extend(
        &mut self,
        allocator: &mut PageAllocator,
        positions: Range<usize>,
        row: usize,
        step: &mut PoolStep,
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
            let first_row = row + position - positions.start;
            let tokens = start..start + count;
            if self.seals {
                extend_sealing(pages, allocator, tokens, first_row, step);
            } else {
                extend_exact(pages, allocator, tokens, first_row, step);
            }
            position += count;
        }
    }

    /// Frees what a sequence of `len` tokens does not need: the windows that it has
    /// finished, the pages beyond its end, and one form of the pages in both.
    pub fn trim(&mut self, allocator: &mut PageAllocator, len: usize) {
        let (window, tokens) = self.locate(len);
        while self.first_window < window {
            let finished = self.windows.pop_front().unwrap_or_default();
            allocator.release(finished.into_iter().flat_map(Page::places));
            self.first_window += 1;
        }
        for (index, pages) in self.windows.iter_mut().enumerate() {
            let needed = if index == 0 { tokens.div_ceil(PAGE_TOKENS) } else { 0 };
            let rest = pages.drain(needed.min(pages.len())..);
            allocator.release(rest.flat_map(Page::places));
            // Pages in both forms are at the end: those of the last step.
            for (number, page) in pages.iter_mut().enumerate().rev() {
                let full = (number + 1) * PAGE_TOKENS <= tokens;
                match (page.exact, page.sealed) {
                    (Some(_), Some(_)) if full => allocator.release(page.exact.take()),
                    (Some(_), Some(_)) => allocator.release(page.sealed.take()),
                    _ if full => break,
                    _ => {}
                }
            }
        }
        while self.windows.back().is_some_and(Vec::is_empty) {
            self.windows.pop_back();
        }
    }

    /// Takes over shared pages that hold the tokens before `len`, a multiple of
    /// [`PAGE_TOKENS`] at which the table has no pages of its own yet.
    pub fn adopt(&mut self, len: usize, pages: Vec<PageId>) {
        debug_assert!(self.windows.is_empty(), "only an empty table adopts pages");
        let (window, tokens) = self.locate(len);
        debug_assert_eq!(pages.len() * PAGE_TOKENS, tokens, "whole pages of the last window");
        self.first_window = window;
        if !pages.is_empty() {
            self.windows.push_back(pages.into_iter().map(Page::of).collect());
        }
    }

    /// The page of a token that is stored, if its window is still alive.
    pub fn page_of(&self, position: usize) -> Option<PageId> {
        let (window, token) = self.locate(position);
        let pages = self.windows.get(window.checked_sub(self.first_window)?)?;
        pages.get(token / PAGE_TOKENS).map(Page::stored)
    }

    /// Frees everything.
    pub fn clear(&mut self, allocator: &mut PageAllocator) {
        for pages in self.windows.drain(..) {
            allocator.release(pages.into_iter().flat_map(Page::places));
        }
    }

    /// All pages that the sequence owns.
    pub fn pages(&self) -> impl Iterator<Item = PageId> + '_ {
        self.windows.iter().flatten().copied().flat_map(Page::places)
    }

    /// How many pages of a form [`extend`](Self::extend) would allocate.
    pub fn missing_pages(&self, form: PageForm, positions: Range<usize>) -> usize {
        let (mut missing, mut position) = (0, positions.start);
        while position < positions.end {
            let (window, start) = self.locate(position);
            let room = self.window.map_or(usize::MAX, |w| w - start);
            let end = start + room.min(positions.end - position);
            missing += match form {
                PageForm::Exact => {
                    let pages = self.windows.get(window - self.first_window);
                    end.div_ceil(PAGE_TOKENS) - pages.map_or(0, Vec::len)
                }
                PageForm::Sealed if self.seals => {
                    (end / PAGE_TOKENS).max(1) - (start / PAGE_TOKENS).max(1)
                }
                PageForm::Sealed => 0,
            };
            position += end - start;
        }
        missing
    }
}

/// The exact page that a token of a window is written to.
fn own_page(pages: &mut Vec<Page>, allocator: &mut PageAllocator, token: usize) -> PageId {
    if pages.len() == token / PAGE_TOKENS {
        pages.push(Page::of(allocator.allocate(PageForm::Exact)));
    }
    pages[token / PAGE_TOKENS].exact.expect("a page that is not full is exact")
}

fn slot(page: PageId, token: usize) -> Slot {
    Slot { page, offset: (token % PAGE_TOKENS) as u32 }
}

/// `tokens` of one window: one span.
fn extend_exact(
    pages: &mut Vec<Page>,
    allocator: &mut PageAllocator,
    tokens: Range<usize>,
    row: usize,
    step: &mut PoolStep,
) {
    for token in tokens.clone() {
        step.slots.push(slot(own_page(pages, allocator, token), token));
    }
    step.spans.push(KvSpan {
        rows: row..row + tokens.len(),
        pages: pages.iter().map(Page::stored).collect(),
        visible: tokens.start + 1,
    });
}

/// `tokens` of one window, page by page: each sees its own page as it was computed
/// and the pages before as they are stored. The first page stays exact.
fn extend_sealing(
    pages: &mut Vec<Page>,
    allocator: &mut PageAllocator,
    tokens: Range<usize>,
    row: usize,
    step: &mut PoolStep,
) {
    let before = tokens.start / PAGE_TOKENS;
    let mut seen: Vec<PageId> = pages[..before].iter().map(Page::stored).collect();
    let mut token = tokens.start;
    while token < tokens.end {
        let number = token / PAGE_TOKENS;
        let end = tokens.end.min((number + 1) * PAGE_TOKENS);
        let exact = own_page(pages, allocator, token);
        step.slots.extend((token..end).map(|token| slot(exact, token)));
        seen.push(exact);
        let first_row = row + token - tokens.start;
        step.spans.push(KvSpan {
            rows: first_row..first_row + (end - token),
            pages: seen.clone(),
            visible: token + 1,
        });
        if number > 0 && end.is_multiple_of(PAGE_TOKENS) {
            let sealed = allocator.allocate(PageForm::Sealed);
            pages[number].sealed = Some(sealed);
            step.seals.push((exact, sealed));
            seen[number] = sealed;
        }
        token = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMS: [PageForm; 2] = [PageForm::Exact, PageForm::Sealed];

    fn count(table: &PageTable, form: PageForm) -> usize {
        table.pages().filter(|page| page.form() == form).count()
    }

    /// Pages of both forms when tokens at `positions` are there.
    fn expected(table: &PageTable, positions: Range<usize>) -> [usize; 2] {
        FORMS.map(|form| count(table, form) + table.missing_pages(form, positions.clone()))
    }

    proptest! {
        /// Random step sizes, some rolled back: every token keeps its slot, every
        /// span shows exactly the tokens of its window, and no page is lost.
        #[test]
        fn slots_and_spans_follow_the_definition(
            window in prop::option::of(1usize..200),
            steps in prop::collection::vec((1usize..150, any::<bool>()), 1..20),
        ) {
            let mut allocator = PageAllocator::default();
            let mut table = PageTable::new(window, false);
            let mut home = Vec::new();
            for (tokens, keep) in steps {
                let len = home.len();
                let mut step = PoolStep::default();
                let expected = expected(&table, len..len + tokens);
                table.extend(&mut allocator, len..len + tokens, 3, &mut step);
                prop_assert_eq!(FORMS.map(|form| allocator.in_use(form)), expected);
                prop_assert_eq!(step.slots.len(), tokens);
                prop_assert!(step.seals.is_empty());
                home.extend(step.slots);
                for span in &step.spans {
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
                prop_assert_eq!(allocator.in_use(PageForm::Exact), count(&table, PageForm::Exact));
                let live = window.map_or(home.len(), |w| home.len() % w);
                let pages = count(&table, PageForm::Exact);
                prop_assert_eq!(pages, live.div_ceil(PAGE_TOKENS), "memory follows use");
            }
            table.clear(&mut allocator);
            prop_assert_eq!(allocator.in_use(PageForm::Exact), 0);
        }

        /// Precision by position: whatever the steps, a row sees its own page and
        /// the first one exact, all others sealed, each sealed once from the page
        /// that its tokens were written to.
        #[test]
        fn what_a_row_sees_depends_on_its_position_only(
            steps in prop::collection::vec((1usize..300, any::<bool>()), 1..15),
        ) {
            let mut allocator = PageAllocator::default();
            let mut table = PageTable::new(None, true);
            let (mut len, mut sealed) = (0, Vec::new());
            for (tokens, keep) in steps {
                let mut step = PoolStep::default();
                let expected = expected(&table, len..len + tokens);
                table.extend(&mut allocator, len..len + tokens, 0, &mut step);
                prop_assert_eq!(FORMS.map(|form| allocator.in_use(form)), expected);
                let mut seals = step.seals.iter();
                let mut new = Vec::new();
                for span in &step.spans {
                    let position = len + span.rows.start;
                    prop_assert_eq!(span.visible, position + 1);
                    prop_assert_eq!(span.pages.len(), position / PAGE_TOKENS + 1);
                    let own = *span.pages.last().unwrap();
                    for row in span.rows.clone() {
                        let token = len + row;
                        prop_assert_eq!(token / PAGE_TOKENS, position / PAGE_TOKENS);
                        prop_assert_eq!(step.slots[row], slot(own, token));
                    }
                    prop_assert_eq!(own.form(), PageForm::Exact);
                    let earlier = span.pages[..span.pages.len() - 1].iter().skip(1).copied();
                    prop_assert_eq!(earlier.collect::<Vec<_>>(), [&sealed[..], &new].concat());
                    if (len + span.rows.end) % PAGE_TOKENS == 0 && span.pages.len() > 1 {
                        let (exact, page) = *seals.next().unwrap();
                        prop_assert_eq!(exact, own);
                        prop_assert_eq!(page.form(), PageForm::Sealed);
                        new.push(page);
                    }
                }
                prop_assert_eq!(seals.next(), None);
                if keep {
                    len += tokens;
                    sealed.extend(new);
                }
                table.trim(&mut allocator, len);
                for form in FORMS {
                    prop_assert_eq!(allocator.in_use(form), count(&table, form));
                }
                let open = len > PAGE_TOKENS && len % PAGE_TOKENS > 0;
                let exact = usize::from(len > 0) + usize::from(open);
                prop_assert_eq!(count(&table, PageForm::Exact), exact);
                prop_assert_eq!(count(&table, PageForm::Sealed), sealed.len());
            }
            table.clear(&mut allocator);
            prop_assert_eq!(FORMS.map(|form| allocator.in_use(form)), [0, 0]);
        }
    }
}
