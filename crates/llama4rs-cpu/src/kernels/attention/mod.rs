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
//! A task is a block of rows of one span and one key/value head: a page is in the
//! cache for all of its queries, and the heads of a row share each load.

#[cfg(test)]
mod reference;
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

#[cfg(test)]
mod tests {
    use llama4rs_tensor::{Backend, KvDtype, KvGeometry, PageForm, PageId, Slot};
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::{all_cpus, assert_bits, assert_close, best_cpu, Random};
    use crate::Cpu;

    /// A pool whose every token has keys and values, and what lies beyond is NaN.
    fn filled_pool(
        random: &mut Random,
        geometry: KvGeometry,
        pages: usize,
        tokens: usize,
    ) -> KvPages {
        let cpu = best_cpu();
        let mut pool = cpu.kv_pool(geometry).unwrap();
        cpu.kv_reserve(&mut pool, PageForm::Exact, pages).unwrap();
        let cols = geometry.num_kv_heads * geometry.head_dim;
        let slots: Vec<Slot> = (0..pages * geometry.page_tokens)
            .map(|t| Slot {
                page: PageId::exact((pages - 1 - t / geometry.page_tokens) as u32),
                offset: (t % geometry.page_tokens) as u32,
            })
            .collect();
        for layer in 0..geometry.num_layers {
            let mut tensor = || {
                let mut values = random.values(slots.len() * cols);
                values[tokens * cols..].fill(f32::NAN);
                Tensor::from_values(&values, cols).unwrap()
            };
            let (keys, values) = (tensor(), tensor());
            cpu.write_kv(&mut pool, layer, &slots, &keys, &values).unwrap();
        }
        pool
    }

    fn run(cpu: &Cpu, pool: &KvPages, queries: &Tensor, spans: &[KvSpan], scale: f32) -> Vec<f32> {
        let mut out = cpu.empty();
        let layer = pool.geometry().num_layers - 1;
        cpu.attend(pool, layer, queries, spans, scale, &mut out).unwrap();
        out.values().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            num_kv_heads in 1usize..4,
            group in 1usize..7,
            head_dim in prop::sample::select(vec![2, 8, 16, 24, 32, 64, 80, 128]),
            page_tokens in prop::sample::select(vec![1, 5, 16, 17, 64]),
            wide in any::<bool>(),
            first in 0usize..150,
            rows in 1usize..40,
            seed in any::<u64>(),
        ) {
            let dtype = if wide { KvDtype::F32 } else { KvDtype::Bf16 };
            let geometry = KvGeometry { num_layers: 2, num_kv_heads, head_dim, page_tokens, dtype };
            let random = &mut Random(seed);
            let tokens = first + rows;
            let pages = tokens.div_ceil(page_tokens) + 1;
            let pool = filled_pool(random, geometry, pages, tokens);
            let queries = random.tensor(rows, group * num_kv_heads * head_dim);
            let pages: Vec<PageId> = (0..pages as u32).rev().map(PageId::exact).collect();
            let span = KvSpan { rows: 0..rows, pages: pages.clone(), visible: first + 1 };
            let spans = std::slice::from_ref(&span);
            let scale = 2.0;
            let expected = reference::attend(&pool, 1, &queries, spans, scale);
            let exact = reference::attend_exactly(&pool, 1, &queries, spans, scale);
            assert_close("reference", &exact, &expected, 1e-5);
            for cpu in all_cpus() {
                assert_bits(&cpu.description(), &expected, &run(cpu, &pool, &queries, spans, scale));
            }
            let one_by_one: Vec<KvSpan> = (0..rows)
                .rev()
                .map(|r| KvSpan { rows: r..r + 1, pages: pages.clone(), visible: first + 1 + r })
                .collect();
            let got = run(best_cpu(), &pool, &queries, &one_by_one, scale);
            assert_bits("one row per span", &expected, &got);
        }
    }

    #[test]
    fn long_contexts_merge_segments() {
        let geometry = KvGeometry {
            num_layers: 1,
            num_kv_heads: 1,
            head_dim: 16,
            page_tokens: 64,
            dtype: KvDtype::Bf16,
        };
        let random = &mut Random(5);
        let tokens = 2 * SEGMENT_TOKENS + 10;
        let num_pages = tokens.div_ceil(64);
        let pool = filled_pool(random, geometry, num_pages, tokens);
        let queries = random.tensor(20, 2 * 16);
        let pages: Vec<PageId> = (0..num_pages as u32).rev().map(PageId::exact).collect();
        let span = KvSpan { rows: 0..20, pages, visible: tokens - 19 };
        let spans = std::slice::from_ref(&span);
        let expected = reference::attend(&pool, 0, &queries, spans, 3.0);
        let exact = reference::attend_exactly(&pool, 0, &queries, spans, 3.0);
        assert_close("reference", &exact, &expected, 1e-5);
        assert_bits("best", &expected, &run(best_cpu(), &pool, &queries, spans, 3.0));
    }

    #[test]
    fn rows_outside_of_all_spans_are_zero() {
        let geometry = KvGeometry {
            num_layers: 1,
            num_kv_heads: 1,
            head_dim: 4,
            page_tokens: 4,
            dtype: KvDtype::F32,
        };
        let random = &mut Random(6);
        let pool = filled_pool(random, geometry, 1, 4);
        let queries = random.tensor(3, 4);
        let span = KvSpan { rows: 1..2, pages: vec![PageId::exact(0)], visible: 2 };
        let out = run(best_cpu(), &pool, &queries, &[span], 1.0);
        assert!(out[..4].iter().chain(&out[8..]).all(|&x| x == 0.0));
        assert!(out[4..8].iter().all(|&x| x != 0.0));
    }
}
