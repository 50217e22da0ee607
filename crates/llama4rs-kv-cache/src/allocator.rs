//! Page numbers: handed out, shared, taken back, never lost.

/// Free list and reference counts over the page numbers `0..capacity`.
#[derive(Debug, Default)]
pub(crate) struct PageAllocator {
    /// Owners of each page; 0: free.
    owners: Vec<u32>,
    free: Vec<u32>,
}

impl PageAllocator {
    /// Pages that exist, in use or free.
    pub fn capacity(&self) -> usize {
        self.owners.len()
    }

    /// Pages in use.
    pub fn in_use(&self) -> usize {
        self.owners.len() - self.free.len()
    }

    /// A page number with one owner; when none is free the capacity grows by one.
    pub fn allocate(&mut self) -> u32 {
        let page = self.free.pop().unwrap_or_else(|| {
            self.owners.push(0);
            self.owners.len() as u32 - 1
        });
        self.owners[page as usize] = 1;
        page
    }

    /// One more owner of a page in use.
    pub fn share(&mut self, page: u32) -> u32 {
        debug_assert!(self.owners[page as usize] > 0, "a free page was shared");
        self.owners[page as usize] += 1;
        page
    }

    /// One owner less of each page; a page without owners is free again.
    pub fn release(&mut self, pages: impl IntoIterator<Item = u32>) {
        for page in pages {
            let owners = &mut self.owners[page as usize];
            debug_assert!(*owners > 0, "a page was freed twice");
            *owners -= 1;
            if *owners == 0 {
                self.free.push(page);
            }
        }
    }
}
