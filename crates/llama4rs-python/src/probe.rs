//! Short timings of the kernels themselves: what a plan's speeds come from.

use std::time::Instant;

use llama4rs_cpu::Cpu;
use llama4rs_tensor::{
    AlignedBytes, Backend, Error, KvGeometry, KvSpan, PackedMatrix, PageForm, PageId, Result, Slot,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::checkpoint::parse_format;
use crate::engine::parse_kv_dtype;
use crate::guard::detached;

/// A byte that makes harmless numbers in every format: no zeros, denormals or NaN.
const FILL: u8 = 0x3C;
const PAGE_TOKENS: usize = 64;
/// Rows that are written into the pages at a time.
const WRITTEN_ROWS: usize = 512;

/// Seconds per product of `inputs` rows with a matrix of `rows` outputs by `cols` inputs.
#[pyfunction]
#[pyo3(signature = (weights, rows, cols, inputs, *, threads = None, rounds = 3))]
pub(crate) fn matmul_seconds(
    py: Python<'_>,
    weights: &str,
    rows: usize,
    cols: usize,
    inputs: usize,
    threads: Option<usize>,
    rounds: usize,
) -> PyResult<Vec<f64>> {
    let format = parse_format(weights)?;
    timed(py, move || {
        let bytes = format.matrix_bytes(rows, cols).unwrap_or(usize::MAX);
        let mut packed = AlignedBytes::zeroed(bytes)?;
        packed.fill(FILL);
        let cpu = Cpu::new(threads)?;
        let matrix = cpu.matrix(PackedMatrix::new(format, 1, rows, cols, packed.into())?)?;
        let x = cpu.upload(&vec![0.1; inputs * cols], cols)?;
        let mut out = cpu.empty();
        measure(rounds, || cpu.matmul(&x, &[&matrix], &mut [&mut out]))
    })
}

/// Seconds per attention of the last `queries` of `tokens` tokens, in one layer.
#[pyfunction]
#[pyo3(signature = (kv_cache, heads, kv_heads, head_dim, tokens, queries, *, threads = None, rounds = 3))]
pub(crate) fn attention_seconds(
    py: Python<'_>,
    kv_cache: &str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
    queries: usize,
    threads: Option<usize>,
    rounds: usize,
) -> PyResult<Vec<f64>> {
    let dtype = parse_kv_dtype(Some(kv_cache))?.unwrap_or(llama4rs_tensor::KvDtype::Bf16);
    if queries > tokens {
        return Err(PyValueError::new_err("there are at most as many queries as tokens"));
    }
    timed(py, move || {
        let cpu = Cpu::new(threads)?;
        let (num_layers, num_kv_heads, page_tokens) = (1, kv_heads, PAGE_TOKENS);
        let geometry = KvGeometry { num_layers, num_kv_heads, head_dim, page_tokens, dtype };
        let mut pool = cpu.kv_pool(geometry)?;
        let num_pages = tokens.div_ceil(PAGE_TOKENS);
        cpu.kv_reserve(&mut pool, PageForm::Exact, num_pages)?;
        let cols = kv_heads * head_dim;
        let slot = |token: usize| Slot {
            page: PageId::exact((token / PAGE_TOKENS) as u32),
            offset: (token % PAGE_TOKENS) as u32,
        };
        let slots: Vec<Slot> = (0..tokens).map(slot).collect();
        for slots in slots.chunks(WRITTEN_ROWS) {
            let x = cpu.upload(&vec![0.1; slots.len() * cols], cols)?;
            cpu.write_kv(&mut pool, 0, slots, &x, &x)?;
        }
        let mut stored: Vec<PageId> = (0..num_pages as u32).map(PageId::exact).collect();
        if dtype.is_quantised() {
            cpu.kv_reserve(&mut pool, PageForm::Sealed, num_pages)?;
            let sealed = |page: PageId| (page, PageId::sealed(page.index() as u32));
            let full = &mut stored[..tokens / PAGE_TOKENS];
            let seals: Vec<_> = full.iter().skip(1).copied().map(sealed).collect();
            cpu.kv_seal(&mut pool, 0, &seals)?;
            full.iter_mut().skip(1).for_each(|page| *page = sealed(*page).1);
        }
        let spans = spans(&stored, tokens - queries, queries, dtype.is_quantised());
        let q = cpu.upload(&vec![0.1; queries * heads * head_dim], heads * head_dim)?;
        let mut out = cpu.empty();
        measure(rounds, || cpu.attend(&pool, 0, &q, &spans, 0.1, &mut out))
    })
}

/// What the rows from token `first` on see: with codes, a span for each page, which
/// its own rows see exact.
fn spans(stored: &[PageId], first: usize, rows: usize, codes: bool) -> Vec<KvSpan> {
    if !codes {
        return vec![KvSpan { rows: 0..rows, pages: stored.to_vec(), visible: first + 1 }];
    }
    let mut spans = Vec::new();
    let mut row = 0;
    while row < rows {
        let own = (first + row) / PAGE_TOKENS;
        let end = rows.min((own + 1) * PAGE_TOKENS - first);
        let mut pages = stored[..=own].to_vec();
        pages[own] = PageId::exact(own as u32);
        spans.push(KvSpan { rows: row..end, pages, visible: first + row + 1 });
        row = end;
    }
    spans
}

/// Seconds of each round; one more comes first and does not count.
fn measure(rounds: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    work()?;
    let round = |_| {
        let start = Instant::now();
        work().map(|()| start.elapsed().as_secs_f64())
    };
    (0..rounds).map(round).collect()
}

fn timed(py: Python<'_>, work: impl FnOnce() -> Result<Vec<f64>> + Send) -> PyResult<Vec<f64>> {
    detached(py, work)?.map_err(|error: Error| PyValueError::new_err(error.to_string()))
}
