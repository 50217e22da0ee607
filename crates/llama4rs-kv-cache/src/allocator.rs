//! Page numbers: handed out, taken back, never lost.

/// Free list over the page numbers `0..capacity`.
#[derive(Debug, Default)]
pub(crate) struct PageAllocator {
    capacity: u32,
    free: Vec<u32>,
}

impl PageAllocator {
    /// Pages that exist, in use or free.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Pages in use.
    pub fn in_use(&self) -> usize {
        self.capacity as usize - self.free.len()
    }

    /// A page number; when none is free the capacity grows by one.
    pub fn allocate(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.capacity += 1;
            self.capacity - 1
        })
    }

    /// Takes pages back.
    pub fn release(&mut self, pages: impl IntoIterator<Item = u32>) {
        self.free.extend(pages);
        debug_assert!(self.free.len() <= self.capacity as usize, "a page was freed twice");
    }
}
