//! The pages of one kind of layer: who has which, and the device's memory for them.

use llama4rs_tensor::{Backend, Bytes, KvGeometry, PageForm, PageId, Result};

use crate::allocator::PageAllocator;

/// Both forms of a page.
pub(crate) const FORMS: [PageForm; 2] = [PageForm::Exact, PageForm::Sealed];

pub(crate) struct Pool<B: Backend> {
    pub geometry: KvGeometry,
    pub allocator: PageAllocator,
    pub storage: B::KvPool,
}

impl<B: Backend> Pool<B> {
    /// A pool for the layers of one kind; `None` when there are none.
    pub fn new(backend: &B, geometry: KvGeometry) -> Result<Option<Self>> {
        if geometry.num_layers == 0 {
            return Ok(None);
        }
        let storage = backend.kv_pool(geometry)?;
        Ok(Some(Self { geometry, allocator: PageAllocator::default(), storage }))
    }

    /// Makes every page that was handed out usable.
    pub fn reserve(&mut self, backend: &B) -> Result<()> {
        for form in FORMS {
            backend.kv_reserve(&mut self.storage, form, self.allocator.capacity(form))?;
        }
        Ok(())
    }

    /// Makes `bytes` the content of pages in use.
    pub fn adopt(
        &mut self,
        backend: &B,
        pages: &[PageId],
        bytes: Vec<Bytes>,
        map_costs: &[usize],
    ) -> Result<()> {
        self.reserve(backend)?;
        for ((&page, bytes), &cost) in pages.iter().zip(bytes).zip(map_costs) {
            let mapped = bytes.is_mapped() && backend.kv_keeps_mapped();
            backend.kv_adopt(&mut self.storage, page, bytes)?;
            if mapped {
                self.allocator.set_mapped(page, cost);
            }
        }
        Ok(())
    }

    /// Lets the device drop the content of pages that are free, but for `keep` of each form.
    pub fn discard(&mut self, backend: &B, keep: usize) {
        let stale = self.allocator.take_stale(keep);
        if !stale.is_empty() {
            backend.kv_discard(&mut self.storage, &stale);
        }
    }

    /// Memory of the pages in use.
    pub fn bytes_in_use(&self) -> usize {
        let bytes = |&form| self.allocator.in_memory(form) * self.geometry.page_bytes(form);
        FORMS.iter().map(bytes).sum()
    }
}
