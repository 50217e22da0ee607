//! `out = softmax(scale · q kᵀ) v` over pages of keys and values.
//!
//! The order of operations, for one query (one row, one head). Keys run through
//! the pages of the row's span, from the first page on, as many as the row sees:
//!
//! ```text
//! exact page:   s[t] = scale * (q · k[t])          16 lanes over the width, then a tree
//! sealed page:  r[d] = round(q[d] step[d] / a)     with a = max |q[d] step[d]| / L
//!               s[t] = scale * fma(Σ r[d] (code[t][d] - zero), a, q · centre)
//! pairs         s[t] = scale * (q · k[t])          q in bf16, see below
//! then          m' = max(m, max s);  c = exp(m - m');  p[t] = exp(s[t] - m')
//!               sum = fma(sum, c, Σ p)             16 lanes over the tokens, then a tree
//!               acc = acc * c
//! exact page:   for token t:  acc = fma(p[t], v[t], acc)
//! pairs:        acc = acc + p · v                  p in bf16, also where it is summed up
//! sealed page:  r[t] = round(p[t] step[t] / b)     with b = max |p[t] step[t]| / L
//!               acc = fma(Σ r[t] (code[t] - zero), b, acc + p · centre)
//! segment:      1024 tokens of pages have their own (m, sum, acc); they are merged in order:
//!               m' = max(M, m);  C = exp(M - m');  c = exp(m - m')
//!               SUM = fma(sum, c, SUM * C);  ACC = fma(acc, c, ACC * C)
//! at last:      out = ACC / SUM, rotated back where values are stored rotated
//! ```
//!
//! `L` is 127 * 255 for 8-bit codes and 127 for 4-bit codes; the sums over `r`
//! are integers, rounded once; dot products with centres have 16 lanes, then a
//! tree. With [`Arithmetic::Fast`] an exact page of bf16 is a page of *pairs*, if a head is
//! a multiple of 32 channels and a page of 16 tokens: queries and probabilities are rounded to
//! bf16, and both products run through pairs as [`crate::simd::pairs`] says, a page at a time.
//!
//! Nothing here depends on which other rows or heads a task computes, so a
//! prompt in one call and the same tokens one by one give the same bits. (Where
//! `c` is 1, multiplying is left out.)
//!
//! A task is a block of rows of one span and one key/value head: a page is in the
//! cache for all of its queries, and the heads of a row share each load. Where
//! that gives too few tasks, as in decoding, each segment is a task of its own.

mod call;
mod exact;
mod pairs;
#[cfg(test)]
mod reference;
mod sealed;
mod task;
#[cfg(test)]
mod tests;
mod work;

use llama4rs_tensor::{KvSpan, Result};

use self::call::{Block, Call};
use self::task::TaskScratch;
use super::kv_pages::KvPages;
use crate::parallel::{Shared, Spare, Threads};
use crate::simd::Dispatch;
use crate::{Arithmetic, Tensor};

/// Keys whose sums stay in one accumulator.
const SEGMENT_TOKENS: usize = 1024;
/// Rows of a task.
const BLOCK_ROWS: usize = 16;
/// Tasks for each thread that make segments of their own unnecessary.
const TASKS_PER_THREAD: usize = 4;
/// Floats of the segments that wait to be merged.
const WAITING_FLOATS: usize = 4 << 20;

/// Working memory of [`attend`].
#[derive(Default)]
pub struct AttentionScratch {
    blocks: Vec<Block>,
    tasks: Spare<TaskScratch>,
    waiting: Vec<f32>,
    totals: Vec<f32>,
}

/// Attention of `queries` over `layer` of `pool`; the shapes fit and no row is in two spans.
pub fn attend(
    (dispatch, arithmetic): (Dispatch, Arithmetic),
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
    let AttentionScratch { blocks, tasks, waiting, totals } = scratch;
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
    let out = Shared::new(out.values_mut());
    let call = Call {
        dispatch,
        arithmetic,
        threads,
        pool,
        layer,
        queries,
        spans,
        scale,
        blocks,
        tasks,
        out,
    };
    let tasks = blocks.len() * pool.geometry().num_kv_heads;
    if threads.count() == 1 || tasks >= TASKS_PER_THREAD * threads.count() {
        call.rows();
    } else {
        let floats = call.heads() * call.stride();
        call.segments((WAITING_FLOATS / floats.max(1)).max(1), waiting, totals);
    }
    Ok(())
}
