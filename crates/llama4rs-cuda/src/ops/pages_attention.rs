//! Attention over bf16 pages and pages of 8-bit codes on tensor cores: `attention_decode.cu`,
//! `attention_prefill.cu`.
//!
//! Queries and weights are rounded to bf16 (beside 8-bit codes to f16), sums are single precision; both
//! kernels compute a row with the same bits (`kernels/attention.cuh`).

use llama4rs_tensor::{KvDtype, KvGeometry, KvSpan, PageForm, Result};

use super::kv_pages::{address_of, words};
use crate::arguments::Structure;
use crate::cuda::{Cuda, Launch, TICKETS};
use crate::kernels::{ATTENTION_DECODE, ATTENTION_PREFILL};
use crate::kv_pages::{KvPages, PAGE_TOKENS};
use crate::memory::Buffer;
use crate::tensor::Tensor;

/// Splits from the first page on, and pages of each, until the next line (`split_begin` of the kernels).
const SPLITS: [(usize, usize); 4] = [(0, 4), (128, 8), (512, 32), (2048, 64)];
/// Query heads of a key/value head in one product, and the most.
const ROW_TILE: usize = 8;
const MOST_GROUP: usize = 2 * ROW_TILE;
/// Spans of at most so many rows are computed row by row, their keys in splits side by side.
const FEW_ROWS: usize = 16;
/// Rows of queries of a block of `attend_prefill_parts`.
const PART_TILE: usize = 64;
/// Single rows with so many times fewer splits than the longest of a launch take another one.
const UNLIKE: usize = 8;
/// Most bytes of parts of one launch: a span of many rows over very many keys takes several.
const MOST_PART_BYTES: usize = 256 << 20;
/// Bytes of shared memory of decode, for each channel of a head.
const DECODE_SLOTS: usize = 544;
/// Pages in shared memory of prefill.
const RING: usize = 2;

/// Whether the kernels take these sizes.
pub(crate) fn suits(pool: &KvPages, heads: usize) -> bool {
    let geometry = pool.geometry();
    takes(geometry) && heads / geometry.num_kv_heads <= MOST_GROUP
}

/// Whether the kernels take such pages.
pub(crate) fn takes(geometry: &KvGeometry) -> bool {
    matches!(geometry.dtype, KvDtype::Bf16 | KvDtype::Int8)
        && matches!(geometry.head_dim, 64 | 128)
        && geometry.num_kv_heads <= TICKETS
}

/// The kernels of `attention_prefill.cu`; the numbers are those that they are compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefill {
    /// `attend_prefill`
    Large = 0,
    /// `attend_prefill_small`, for devices with less shared memory
    Small = 1,
    /// `attend_prefill_parts`
    Parts = 2,
}

impl Prefill {
    /// The one for spans of many rows.
    pub fn of_spans(head_dim: usize, shared_memory: usize) -> Self {
        match Prefill::Large.shared(head_dim) <= shared_memory {
            true => Prefill::Large,
            false => Prefill::Small,
        }
    }

    fn kernel(self) -> &'static str {
        match self {
            Prefill::Large => "attend_prefill",
            Prefill::Small => "attend_prefill_small",
            Prefill::Parts => "attend_prefill_parts",
        }
    }

    fn warps(self) -> usize {
        if self == Prefill::Large {
            8
        } else {
            4
        }
    }

    /// Bytes of dynamic shared memory: pages, and merged splits.
    fn shared(self, head_dim: usize) -> usize {
        let ring = RING * 4 * PAGE_TOKENS * head_dim;
        match self {
            Prefill::Parts => ring,
            whole => ring + whole.warps() * (64 * head_dim + 128),
        }
    }

    /// What it is compiled with.
    pub fn constants(self, head_dim: usize, sealable: bool) -> [(&'static str, u32); 3] {
        let sealable = ("SEALED_PAGES", sealable as u32);
        [("HEAD_DIM", head_dim as u32), sealable, ("PREFILL", self as u32)]
    }
}

/// Rows that share pages, as the kernels are told: row, rows, first page, visible.
type Item = [u32; 4];

/// What a step's spans are cut into.
#[derive(Default)]
struct Work {
    /// Items, then addresses of pages.
    list: Vec<u32>,
    /// Where the pages begin.
    pages_at: usize,
    /// Items of one row for decode.
    singles: Vec<Item>,
    /// Items of many rows for prefill.
    spans: Vec<Item>,
    /// Items of rows over so many keys that these are shared out, too.
    parted: Vec<Parted>,
    /// Most rows of a span.
    most_rows: usize,
    covered: usize,
}

/// A launch of `attend_prefill_parts`.
struct Parted {
    /// Where its item is, and then one for each row.
    item: usize,
    rows: usize,
    splits: usize,
    ranges: usize,
}

/// What decides how spans are cut.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    multiprocessors: usize,
}

impl Sizes {
    /// Blocks of `rows` rows of a span.
    fn tiles(self, rows: usize) -> usize {
        (rows * (self.heads / self.kv_heads)).div_ceil(PART_TILE) * self.kv_heads
    }

    /// Splits of so many keys.
    fn splits(keys: usize) -> usize {
        let pages = keys.div_ceil(PAGE_TOKENS);
        let ends = SPLITS[1..].iter().map(|&(first, _)| first).chain([usize::MAX]);
        let of_each = SPLITS
            .iter()
            .zip(ends)
            .map(|(&(first, count), end)| (pages.min(end).max(first) - first).div_ceil(count));
        of_each.sum()
    }

    /// Values of a part.
    fn part(self) -> usize {
        self.head_dim + 4
    }
}

impl Work {
    fn of(pool: &KvPages, spans: &[KvSpan], sizes: Sizes) -> Self {
        let mut work = Self::default();
        let mut addresses = Vec::new();
        let many = spans.iter().map(|span| span.rows.len()).filter(|&rows| rows > FEW_ROWS);
        let blocks: usize = many.map(|rows| sizes.tiles(rows)).sum();
        // How many ranges of keys would keep every processor busy.
        let wanted = (4 * sizes.multiprocessors).checked_div(blocks).unwrap_or(1);
        let mut parted: Vec<(Vec<Item>, usize, usize)> = Vec::new();
        for span in spans.iter().filter(|span| !span.rows.is_empty()) {
            let first_page = (addresses.len() / 2) as u32;
            let rows = span.rows.len();
            let seen = span.visible + rows - 1;
            let pages = span.pages.iter().take(seen.div_ceil(PAGE_TOKENS));
            addresses.extend(words(
                pages.map(|&page| pool.address(page) | (page.form() == PageForm::Sealed) as u64),
            ));
            let item = |row, rows, visible| [row as u32, rows as u32, first_page, visible as u32];
            if rows <= FEW_ROWS {
                let single = |i| item(span.rows.start + i, 1, span.visible + i);
                work.singles.extend((0..rows).map(single));
            } else if blocks < sizes.multiprocessors && Sizes::splits(seen) > 1 {
                let splits = Sizes::splits(seen);
                let most = MOST_PART_BYTES / (4 * sizes.heads * splits * sizes.part());
                for first in (0..rows).step_by(most.max(1)) {
                    let count = most.max(1).min(rows - first);
                    let at = |i, rows| item(span.rows.start + i, rows, span.visible + i);
                    let single = (first..first + count).map(|i| at(i, 1));
                    let items = std::iter::once(at(first, count)).chain(single).collect();
                    parted.push((items, splits, wanted.clamp(1, splits)));
                }
            } else {
                work.spans.push(item(span.rows.start, rows, span.visible));
                work.most_rows = work.most_rows.max(rows);
            }
            work.covered += rows;
        }
        // The longest first: they take the longest, and those after them need fewer splits.
        work.singles.sort_by_key(|&[.., visible]| std::cmp::Reverse(visible));
        work.list.extend(work.singles.iter().chain(&work.spans).flatten());
        for (items, splits, ranges) in parted {
            let (item, rows) = (work.list.len() / 4, items.len() - 1);
            work.list.extend(items.iter().flatten());
            work.parted.push(Parted { item, rows, splits, ranges });
        }
        work.pages_at = work.list.len();
        work.list.extend(addresses);
        work
    }
}

impl Cuda {
    /// [`llama4rs_tensor::Backend::attend`] for pools that [suit](suits).
    pub(crate) fn run_attend_pages(
        &self,
        pool: &KvPages,
        layer: usize,
        queries: &Tensor,
        spans: &[KvSpan],
        scale: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        let geometry = *pool.geometry();
        let (rows, head_dim, kv_heads) = (queries.rows(), geometry.head_dim, geometry.num_kv_heads);
        let heads = queries.cols() / head_dim;
        let mut scratch = None;
        let halves = self.halves_of(queries, &mut scratch)?.address();
        out.resize(&self.gpu, rows, queries.cols())?;
        let multiprocessors = self.info().multiprocessors as usize;
        let sizes = Sizes { heads, kv_heads, head_dim, multiprocessors };
        if heads == 0 {
            return Ok(());
        }
        let from = [address_of(pool), spans.as_ptr() as usize, spans.len(), rows];
        let work = self.gpu.once_a_step(from, || {
            pool.check_spans(rows, spans)?;
            let work = Work::of(pool, spans, sizes);
            let list = self.growing_list("spans", &work.list, work.pages_at)?;
            Ok((work, list))
        })?;
        let (work, list) = &*work;
        if work.covered < rows {
            out.clear()?;
        }
        if work.covered == 0 {
            return Ok(());
        }
        let halves_out = out.halves_mut(&self.gpu)?.address();
        out.keep_halves(work.covered == rows);
        let out = out.address();
        let arguments = |first_item: usize,
                         [parts, tickets]: [u64; 2],
                         splits: usize,
                         ranges: usize|
         -> Result<Structure> {
            Structure::default()
                .long(halves)
                .long(list.offset(work.pages_at))
                .long(list.offset(4 * first_item))
                .long(out)
                .long(halves_out)
                .long(parts)
                .long(tickets)
                .size(heads)?
                .size(kv_heads)?
                .size(splits)?
                .size(layer)?
                .word((scale * std::f32::consts::LOG2_E).to_bits())
                .size(ranges)
        };
        let sealable = geometry.dtype.is_quantised();
        let row_tiles = (heads / kv_heads).div_ceil(ROW_TILE) as u32;
        let decode = [
            ("HEAD_DIM", head_dim as u32),
            ("ROW_TILES", row_tiles),
            ("SEALED_PAGES", sealable as u32),
        ];
        let launch_decode = |kernel, blocks, arguments: Structure| {
            let (source, constants, threads) = (&ATTENTION_DECODE, &decode, 128);
            let shared = DECODE_SLOTS * head_dim;
            self.launch(Launch { source, kernel, constants, shared, blocks, threads }, &arguments)
        };
        let launch_prefill = |prefill: Prefill, blocks, arguments: Structure| {
            let launch = Launch {
                source: &ATTENTION_PREFILL,
                kernel: prefill.kernel(),
                constants: &prefill.constants(head_dim, sealable),
                shared: prefill.shared(head_dim),
                blocks,
                threads: 32 * prefill.warps() as u32,
            };
            self.launch(launch, &arguments)
        };
        let mut first = 0;
        while let Some(&[.., longest]) = work.singles.get(first) {
            // The same grid while the text doubles; splits without keys end at once.
            let splits = Sizes::splits(longest as usize).next_power_of_two();
            let row = heads * splits * sizes.part();
            // Each row and kv head takes a ticket.
            let most = (self.tickets.len() / kv_heads).min(MOST_PART_BYTES / (4 * row)).max(1);
            let alike = |item: &&Item| UNLIKE * Sizes::splits(item[3] as usize) >= splits;
            let count = work.singles[first..].iter().take_while(alike).take(most).count();
            let parts = Buffer::<f32>::new(&self.gpu, count * row, "attention")?;
            let all = arguments(first, [parts.address(), self.tickets.address()], splits, 0)?;
            launch_decode("attend_decode", [splits, kv_heads, count], all)?;
            first += count;
        }
        if !work.spans.is_empty() {
            let prefill = Prefill::of_spans(head_dim, self.info().shared_memory);
            let tiles = (work.most_rows * (heads / kv_heads)).div_ceil(prefill.warps() * 16);
            let blocks = [tiles, kv_heads, work.spans.len()];
            launch_prefill(prefill, blocks, arguments(work.singles.len(), [0, 0], 0, 0)?)?;
        }
        for &Parted { item, rows, splits, ranges } in &work.parted {
            let len = rows * heads * splits * sizes.part();
            let parts = Buffer::<f32>::new(&self.gpu, len, "attention")?;
            let all = |item| arguments(item, [parts.address(), 0], splits, ranges);
            let blocks = [sizes.tiles(rows) / kv_heads * ranges, kv_heads, 1];
            launch_prefill(Prefill::Parts, blocks, all(item)?)?;
            launch_decode("attend_decode_merge", [kv_heads, rows, 1], all(item + 1)?)?;
        }
        Ok(())
    }
}
