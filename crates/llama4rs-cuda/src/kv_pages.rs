//! Pages of keys and values on the device.
//!
//! Pages of a form come in chunks that never move, so growing copies nothing.
//! Kernels get the addresses of pages; that of a sealed page is made odd.

use std::sync::Arc;

use llama4rs_tensor::check::require_spans;
use llama4rs_tensor::{Error, KvGeometry, KvSpan, PageForm, PageId, Result};

use crate::gpu::Gpu;
use crate::memory::Buffer;

const CHUNK_BYTES: usize = 32 << 20;
/// The kernels' block of keys.
pub(crate) const PAGE_TOKENS: usize = 64;
/// The widest head that the kernels have registers for.
const MOST_HEAD_DIM: usize = 256;

/// A pool of pages.
pub struct KvPages {
    geometry: KvGeometry,
    exact: Chunks,
    sealed: Chunks,
}

/// Pages of one form.
struct Chunks {
    page_bytes: usize,
    pages_per_chunk: usize,
    num_pages: usize,
    chunks: Vec<Buffer<u8>>,
}

impl Chunks {
    fn new(page_bytes: usize) -> Self {
        let pages_per_chunk = (CHUNK_BYTES / page_bytes.max(1)).max(1);
        Self { page_bytes, pages_per_chunk, num_pages: 0, chunks: Vec::new() }
    }

    fn reserve(&mut self, gpu: &Arc<Gpu>, num_pages: usize) -> Result<()> {
        while self.chunks.len() < num_pages.div_ceil(self.pages_per_chunk) {
            let bytes = self.page_bytes * self.pages_per_chunk;
            self.chunks.push(Buffer::lasting(gpu, bytes, "key/value pages")?);
        }
        self.num_pages = self.num_pages.max(num_pages);
        Ok(())
    }

    /// The chunk of a page and where it begins there.
    fn place(&self, index: usize) -> (usize, usize) {
        (index / self.pages_per_chunk, index % self.pages_per_chunk * self.page_bytes)
    }
}

impl KvPages {
    pub(crate) fn new(geometry: KvGeometry) -> Result<Self> {
        geometry.check()?;
        if geometry.page_tokens != PAGE_TOKENS || geometry.head_dim > MOST_HEAD_DIM {
            return Err(Error::shape(
                "kv pool",
                format!("pages of {PAGE_TOKENS} tokens and heads of at most {MOST_HEAD_DIM}"),
                format!("{geometry:?}"),
            ));
        }
        let chunks = |form| Chunks::new(geometry.page_bytes(form));
        Ok(Self { geometry, exact: chunks(PageForm::Exact), sealed: chunks(PageForm::Sealed) })
    }

    pub(crate) fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }

    fn chunks(&self, form: PageForm) -> &Chunks {
        match form {
            PageForm::Exact => &self.exact,
            PageForm::Sealed => &self.sealed,
        }
    }

    /// Makes the first `num_pages` pages of a form usable.
    pub(crate) fn reserve(
        &mut self,
        gpu: &Arc<Gpu>,
        form: PageForm,
        num_pages: usize,
    ) -> Result<()> {
        if self.geometry.page_bytes(form) == 0 && num_pages > 0 {
            let dtype = self.geometry.dtype.name();
            return Err(Error::shape(
                "kv_reserve",
                "exact pages",
                format!("sealed ones in {dtype}"),
            ));
        }
        match form {
            PageForm::Exact => self.exact.reserve(gpu, num_pages),
            PageForm::Sealed => self.sealed.reserve(gpu, num_pages),
        }
    }

    /// Whether a page is there.
    pub(crate) fn has(&self, page: PageId) -> bool {
        page.index() < self.chunks(page.form()).num_pages
    }

    /// An error unless the spans fit `rows` rows of queries and their pages are there.
    pub(crate) fn check_spans(&self, rows: usize, spans: &[KvSpan]) -> Result<()> {
        require_spans(&self.geometry, rows, spans, |page| self.has(page))
    }

    /// The number of pages of a form.
    pub(crate) fn num_pages(&self, form: PageForm) -> usize {
        self.chunks(form).num_pages
    }

    /// Where a page that is there begins.
    pub(crate) fn address(&self, page: PageId) -> u64 {
        let chunks = self.chunks(page.form());
        let (chunk, start) = chunks.place(page.index());
        chunks.chunks[chunk].offset(start)
    }

    /// All bytes of a page that is there.
    pub(crate) fn read(&self, page: PageId) -> Result<Vec<u8>> {
        let chunks = self.chunks(page.form());
        let (chunk, start) = chunks.place(page.index());
        chunks.chunks[chunk].read(start, chunks.page_bytes)
    }

    /// Makes `bytes`, as many as a page has, the content of a page that is there.
    pub(crate) fn write(&mut self, page: PageId, bytes: &[u8]) -> Result<()> {
        let chunks = match page.form() {
            PageForm::Exact => &mut self.exact,
            PageForm::Sealed => &mut self.sealed,
        };
        let (chunk, start) = chunks.place(page.index());
        chunks.chunks[chunk].write_at(start, bytes)
    }
}
