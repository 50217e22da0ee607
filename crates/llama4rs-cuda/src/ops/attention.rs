//! Attention: `attention_exact.cu`.

use llama4rs_tensor::{Error, KvSpan, PageForm, Result};

use super::kv_pages::{address_of, dtype_constants, words};
use crate::arguments::arguments;
use crate::cuda::{Cuda, Launch};
use crate::kernels::ATTENTION_EXACT;
use crate::kv_pages::KvPages;
use crate::memory::Buffer;
use crate::tensor::Tensor;

const THREADS: u32 = 128;
/// Keys of a block and of a split.
const KEYS: usize = 64;
const SPLIT_KEYS: usize = 512;
/// Queries that one block computes: rows times query heads of a key/value head.
const QUERIES: usize = 16;

/// Constants of the kernels, and the shared memory that they need.
struct Variant {
    head_dim: usize,
    group: usize,
    rows: usize,
    dtype: [(&'static str, u32); 2],
}

impl Variant {
    fn constants(&self) -> [(&'static str, u32); 5] {
        let [bf16, bits] = self.dtype;
        [
            ("HEAD_DIM", self.head_dim as u32),
            ("GROUP_HEADS", self.group as u32),
            ("ROWS", self.rows as u32),
            bf16,
            bits,
        ]
    }

    /// Bytes of the kernel's `Shared`.
    fn shared(&self) -> usize {
        let (width, queries) = (self.head_dim.next_multiple_of(4), self.rows * self.group);
        4 * (KEYS * (width + 4) + queries * (width + KEYS + 6))
    }
}

/// Rows that a block takes when a span has `rows`: the whole block, or a single row.
fn rows_of_block(rows: usize, group: usize) -> usize {
    if rows == 1 {
        1
    } else {
        (QUERIES / group).max(1)
    }
}

/// What the kernel gets to know about the spans.
struct Work {
    /// Tiles, then the keys that each row sees, then addresses of pages.
    list: Vec<u32>,
    tiles: usize,
    visible_at: usize,
    pages_at: usize,
    covered: usize,
    max_splits: usize,
}

impl Work {
    fn of(pool: &KvPages, spans: &[KvSpan], rows: usize, tile_rows: usize) -> Self {
        let mut addresses = Vec::new();
        let (mut list, mut visible) = (Vec::new(), vec![0; rows]);
        let (mut covered, mut most) = (0, 0);
        for span in spans {
            let first_page = addresses.len() / 2;
            let seen = span.visible + span.rows.len().saturating_sub(1);
            let pages = span.pages.iter().take(seen.div_ceil(KEYS));
            addresses.extend(words(
                pages.map(|&page| pool.address(page) | (page.form() == PageForm::Sealed) as u64),
            ));
            for row in span.rows.clone() {
                visible[row] = (span.visible + row - span.rows.start) as u32;
            }
            for row in span.rows.clone().step_by(tile_rows) {
                let count = tile_rows.min(span.rows.end - row);
                list.extend([first_page as u32, row as u32, count as u32, visible[row]]);
            }
            covered += span.rows.len();
            if !span.rows.is_empty() {
                most = most.max(seen);
            }
        }
        let (tiles, visible_at) = (list.len() / 4, list.len());
        list.extend(visible);
        // Addresses have eight bytes.
        list.resize(list.len().next_multiple_of(2), 0);
        let pages_at = list.len();
        list.extend(addresses);
        // The same grid while the text doubles; splits without keys end at once.
        let max_splits = most.div_ceil(SPLIT_KEYS).next_power_of_two();
        Self { list, tiles, visible_at, pages_at, covered, max_splits }
    }
}

impl Cuda {
    pub(crate) fn run_attend(
        &self,
        pool: &KvPages,
        layer: usize,
        queries: &Tensor,
        spans: &[KvSpan],
        scale: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        let geometry = *pool.geometry();
        let (rows, head_dim) = (queries.rows(), geometry.head_dim);
        let heads = queries.cols() / head_dim;
        let group = heads / geometry.num_kv_heads;
        if group > 2 * QUERIES {
            let most = format!("at most {} query heads for a key/value head", 2 * QUERIES);
            return Err(Error::shape("attend", most, group));
        }
        out.resize(&self.gpu, rows, queries.cols())?;
        let longest = spans.iter().map(|span| span.rows.len()).max().unwrap_or(0);
        let tile_rows = rows_of_block(longest, group);
        let from = [address_of(pool), spans.as_ptr() as usize, spans.len(), rows];
        let work = self.gpu.once_a_step(from, || {
            pool.check_spans(rows, spans)?;
            let work = Work::of(pool, spans, rows, tile_rows);
            let list = self.growing_list("spans", &work.list, work.pages_at)?;
            Ok((work, list))
        })?;
        let (work, list) = &*work;
        if work.covered < rows {
            out.clear()?;
        }
        if work.tiles == 0 || heads == 0 {
            return Ok(());
        }
        let variant =
            Variant { head_dim, group, rows: tile_rows, dtype: dtype_constants(geometry.dtype) };
        // Splits get blocks of their own where there are too few blocks without.
        let blocks = work.tiles * geometry.num_kv_heads;
        let split = work.max_splits > 1 && blocks < 2 * self.info().multiprocessors as usize;
        let partial = match split {
            true => {
                let len = rows * heads * work.max_splits * (head_dim + 2);
                Some(Buffer::<f32>::new(&self.gpu, len, "attention")?)
            }
            false => None,
        };
        let parts = partial.as_ref().map_or(0, Buffer::address);
        let launch = |kernel, shared, blocks| Launch {
            source: &ATTENTION_EXACT,
            kernel,
            constants: &[],
            shared,
            blocks,
            threads: THREADS,
        };
        let constants = variant.constants();
        let splits = if split { work.max_splits } else { 1 };
        let attend =
            launch("attend", variant.shared(), [work.tiles, geometry.num_kv_heads, splits]);
        let arguments = arguments![
            out.address(),
            queries.address(),
            list.offset(work.pages_at),
            &**list,
            layer,
            scale,
            parts,
            work.max_splits
        ];
        self.launch(Launch { constants: &constants, ..attend }, &arguments)?;
        if split {
            let fold = launch("fold_splits", 0, [rows, heads, 1]);
            let visible = list.offset(work.visible_at);
            let arguments = arguments![out.address(), parts, visible, work.max_splits];
            self.launch(Launch { constants: &constants, ..fold }, &arguments)?;
        }
        if geometry.dtype.rotates_values() {
            self.rotate_heads(&geometry, out.address(), out)?;
        }
        Ok(())
    }

    pub(crate) fn run_attend_all(
        &self,
        [q, k, v]: [&Tensor; 3],
        tile_rows: usize,
        head_dim: usize,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        out.resize(&self.gpu, q.rows(), q.cols())?;
        let rows = QUERIES.min(tile_rows.max(1));
        let dtype = [("KV_BF16", 0), ("CODE_BITS", 0)];
        let variant = Variant { head_dim, group: 1, rows, dtype };
        let tiles = q.rows().checked_div(tile_rows).unwrap_or(0);
        let launch = Launch {
            source: &ATTENTION_EXACT,
            kernel: "attend_all",
            constants: &variant.constants(),
            shared: variant.shared(),
            blocks: [tiles * tile_rows.div_ceil(rows), q.cols() / head_dim, 1],
            threads: THREADS,
        };
        let [q, k, v] = [q, k, v].map(Tensor::address);
        self.launch(launch, &arguments![out.address(), q, k, v, tile_rows, scale])
    }
}
