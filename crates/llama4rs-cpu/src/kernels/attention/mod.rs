//! `out = softmax(scale · q kᵀ) v` over pages of keys and values.
//!
//! The order of operations, for one query (one row, one head). Keys run through
//! the pages of the row's span, from the first page on, as many as the row sees:
//!
//! ```text
//! page:     s[t] = scale * (q · k[t])          16 lanes over the width, then a tree
//!           m' = max(m, max s);  c = exp(m - m');  p[t] = exp(s[t] - m')
//!           sum = fma(sum, c, Σ p)             16 lanes over the tokens, then a tree
//!           acc = acc * c;  for token t:  acc = fma(p[t], v[t], acc)
//! segment:  8192 tokens of pages have their own (m, sum, acc); they are merged in order:
//!           m' = max(M, m);  C = exp(M - m');  c = exp(m - m')
//!           SUM = fma(sum, c, SUM * C);  ACC = fma(acc, c, ACC * C)
//! at last:  out = ACC / SUM
//! ```
//!
//! Nothing here depends on which other rows or heads a task computes, so a
//! prompt in one call and the same tokens one by one give the same bits. (Where
//! `c` is 1, multiplying is left out.)
//!
//! A task is a block of rows of one span and one key/value head; it unpacks the
//! keys and values of a page once for all of its queries.

mod task;

use llama4rs_tensor::{KvSpan, Result};

use self::task::{AttentionTask, TaskScratch};
use super::kv_pages::KvPages;
use crate::parallel::{Shared, Spare, Threads};
use crate::simd::Dispatch;
use crate::Tensor;

/// Keys whose sums stay in one accumulator.
const SEGMENT_TOKENS: usize = 8192;
/// Rows of a task.
const BLOCK_ROWS: usize = 16;

/// Working memory of [`attend`].
#[derive(Default)]
pub struct AttentionScratch {
    blocks: Vec<Block>,
    tasks: Spare<TaskScratch>,
}

/// Some rows of one span.
#[derive(Clone, Copy)]
struct Block {
    span: usize,
    first_row: usize,
    rows: usize,
}

/// Attention of `queries` over `layer` of `pool`; the shapes fit and no row is in two spans.
pub fn attend(
    dispatch: Dispatch,
    threads: &Threads,
    scratch: &mut AttentionScratch,
    pool: &KvPages,
    layer: usize,
    queries: &Tensor,
    spans: &[KvSpan],
    scale: f32,
    out: &mut Tensor,
) -> Result<()> {
    out.resize(queries.rows(), queries.cols())?;
    let covered: usize = spans.iter().map(|span| span.rows.len()).sum();
    if covered < queries.rows() {
        out.values_mut().fill(0.0);
    }
    let AttentionScratch { blocks, tasks } = scratch;
    blocks.clear();
    for (span, KvSpan { rows, .. }) in spans.iter().enumerate() {
        blocks.extend(rows.clone().step_by(BLOCK_ROWS).map(|first_row| Block {
            span,
            first_row,
            rows: BLOCK_ROWS.min(rows.end - first_row),
        }));
    }
    // Late rows see the most keys: they go first.
    blocks.reverse();
    let heads = pool.geometry().num_kv_heads;
    let out = Shared::new(out.values_mut());
    threads.for_each(blocks.len() * heads, |task| {
        let Block { span, first_row, rows } = blocks[task / heads];
        let span = &spans[span];
        tasks.with(|scratch| {
            dispatch.run(AttentionTask {
                pool,
                layer,
                kv_head: task % heads,
                queries,
                first_row,
                rows,
                pages: &span.pages,
                visible: span.visible + (first_row - span.rows.start),
                scale,
                out,
                scratch,
            });
        });
    });
    Ok(())
}
