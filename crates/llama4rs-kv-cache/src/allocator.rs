//! Page numbers: handed out, shared, taken back, never lost.

use llama4rs_tensor::{PageForm, PageId};

/// The pages of both forms of one pool.
#[derive(Debug)]
pub(crate) struct PageAllocator {
    exact: FormAllocator,
    sealed: FormAllocator,
}

impl Default for PageAllocator {
    fn default() -> Self {
        Self {
            exact: FormAllocator::new(PageForm::Exact),
            sealed: FormAllocator::new(PageForm::Sealed),
        }
    }
}

impl PageAllocator {
    fn of(&mut self, form: PageForm) -> &mut FormAllocator {
        match form {
            PageForm::Exact => &mut self.exact,
            PageForm::Sealed => &mut self.sealed,
        }
    }

    fn get(&self, form: PageForm) -> &FormAllocator {
        match form {
            PageForm::Exact => &self.exact,
            PageForm::Sealed => &self.sealed,
        }
    }

    /// Pages of a form that exist, in use or free.
    pub fn capacity(&self, form: PageForm) -> usize {
        self.get(form).owners.len()
    }

    /// Pages of a form that are in use.
    pub fn in_use(&self, form: PageForm) -> usize {
        self.get(form).owners.len() - self.get(form).free.len()
    }

    /// Pages of a form that are in use and whose content is in memory of their own.
    pub fn in_memory(&self, form: PageForm) -> usize {
        self.in_use(form) - self.get(form).mapped_in_use
    }

    /// Notes that a page in use takes no memory: its content is in a mapped file, which
    /// costs something nevertheless.
    pub fn set_mapped(&mut self, page: PageId, cost: usize) {
        let form = self.of(page.form());
        let cost = form.mapped[page.index()].replace(cost);
        form.mapped_in_use += cost.is_none() as usize;
    }

    /// What the map of a page costs, if its content is in a mapped file.
    pub fn map_cost(&self, page: PageId) -> Option<usize> {
        self.get(page.form()).mapped[page.index()]
    }

    /// Whether the content of a page in use is in a mapped file.
    pub fn is_mapped(&self, page: PageId) -> bool {
        self.map_cost(page).is_some()
    }

    /// A page with one owner; when none is free the capacity grows by one.
    pub fn allocate(&mut self, form: PageForm) -> PageId {
        self.of(form).allocate()
    }

    /// One more owner of a page in use.
    pub fn share(&mut self, page: PageId) -> PageId {
        let owners = &mut self.of(page.form()).owners[page.index()];
        debug_assert!(*owners > 0, "a free page was shared");
        *owners += 1;
        page
    }

    /// One owner less of each page; a page without owners is free again.
    pub fn release(&mut self, pages: impl IntoIterator<Item = PageId>) {
        for page in pages {
            self.of(page.form()).release(page);
        }
    }

    /// Takes note that the content of the free pages is discarded, but for the
    /// `keep` of each form that were freed last; returns the pages.
    pub fn take_stale(&mut self, keep: usize) -> Vec<PageId> {
        let mut stale = self.exact.take_stale(keep);
        stale.append(&mut self.sealed.take_stale(keep));
        stale
    }
}

/// Free list and reference counts over the page numbers `0..capacity` of one form.
#[derive(Debug)]
struct FormAllocator {
    form: PageForm,
    /// Owners of each page; 0: free.
    owners: Vec<u32>,
    /// What the maps of pages in use cost that are mapped from files, and how many these are.
    mapped: Vec<Option<usize>>,
    mapped_in_use: usize,
    /// The page freed last is used first: its memory is warm.
    free: Vec<PageId>,
    /// How many pages at the front of `free` hold no content any more.
    discarded: usize,
}

impl FormAllocator {
    fn new(form: PageForm) -> Self {
        Self {
            form,
            owners: Vec::new(),
            mapped: Vec::new(),
            mapped_in_use: 0,
            free: Vec::new(),
            discarded: 0,
        }
    }

    fn allocate(&mut self) -> PageId {
        let page = self.free.pop().unwrap_or_else(|| {
            self.owners.push(0);
            self.mapped.push(None);
            PageId::new(self.form, self.owners.len() as u32 - 1)
        });
        self.discarded = self.discarded.min(self.free.len());
        self.owners[page.index()] = 1;
        page
    }

    fn release(&mut self, page: PageId) {
        let owners = &mut self.owners[page.index()];
        debug_assert!(*owners > 0, "a page was freed twice");
        *owners -= 1;
        if *owners == 0 {
            self.free.push(page);
            let mapped = self.mapped[page.index()].take();
            self.mapped_in_use -= mapped.is_some() as usize;
        }
    }

    fn take_stale(&mut self, keep: usize) -> Vec<PageId> {
        let end = self.free.len().saturating_sub(keep).max(self.discarded);
        let stale = self.free[self.discarded..end].to_vec();
        self.discarded = end;
        stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_when_the_last_owner_goes() {
        let mut pages = PageAllocator::default();
        let (a, b) = (pages.allocate(PageForm::Exact), pages.allocate(PageForm::Sealed));
        assert_ne!(a, b);
        pages.share(a);
        pages.release([a, b]);
        assert_eq!([PageForm::Exact, PageForm::Sealed].map(|form| pages.in_use(form)), [1, 0]);
        pages.release([a]);
        assert_eq!(pages.in_use(PageForm::Exact), 0);
        assert_eq!(pages.allocate(PageForm::Sealed), b);
        assert_eq!(pages.capacity(PageForm::Sealed), 1);
    }

    #[test]
    fn mapped_pages_take_no_memory_until_they_are_free() {
        let mut pages = PageAllocator::default();
        let (a, b) = (pages.allocate(PageForm::Exact), pages.allocate(PageForm::Exact));
        pages.share(a);
        for _ in 0..2 {
            pages.set_mapped(a, 5);
            assert_eq!((pages.is_mapped(a), pages.is_mapped(b)), (true, false));
            assert_eq!([pages.in_use(PageForm::Exact), pages.in_memory(PageForm::Exact)], [2, 1]);
        }
        pages.release([a]);
        assert!(pages.is_mapped(a));
        pages.release([a]);
        assert_eq!(pages.in_memory(PageForm::Exact), 1);
        assert_eq!(pages.allocate(PageForm::Exact), a);
        assert!(!pages.is_mapped(a));
        assert_eq!(pages.in_memory(PageForm::Exact), 2);
    }

    #[test]
    fn each_freed_page_is_discarded_once() {
        let mut pages = PageAllocator::default();
        let all: Vec<_> = (0..5).map(|_| pages.allocate(PageForm::Exact)).collect();
        pages.release(all.iter().copied());
        assert_eq!(pages.take_stale(2), all[..3]);
        assert_eq!(pages.take_stale(2), []);
        // The two warm ones first, then one whose content is gone.
        let again: Vec<_> = (0..3).map(|_| pages.allocate(PageForm::Exact)).collect();
        assert_eq!(again, [all[4], all[3], all[2]]);
        pages.release(again);
        assert_eq!(pages.take_stale(0), [all[4], all[3], all[2]]);
        assert_eq!(pages.take_stale(0), []);
    }
}
