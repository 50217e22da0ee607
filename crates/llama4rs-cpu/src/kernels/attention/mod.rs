//! `out = softmax(scale · q kᵀ) v` over pages of keys and values.
//!
//! The order of operations, for one query (one row, one head). Keys run through
//! the pages of the row's span, from the first page on, as many as the row sees:
//!
//! ```text
//! exact page:   s[t] = scale * (q · k[t])          16 lanes over the width, then a tree
//! sealed page:  r[d] = round(q[d] step[d] / a)     with a = max |q[d] step[d]| / L
//!               s[t] = scale * fma(Σ r[d] (code[t][d] - zero), a, q · centre)
//! then          m' = max(m, max s);  c = exp(m - m');  p[t] = exp(s[t] - m')
//!               sum = fma(sum, c, Σ p)             16 lanes over the tokens, then a tree
//!               acc = acc * c
//! exact page:   for token t:  acc = fma(p[t], v[t], acc)
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
//! tree. Nothing here depends on which other rows or heads a task computes, so a
//! prompt in one call and the same tokens one by one give the same bits. (Where
//! `c` is 1, multiplying is left out.)
//!
//! A task is a block of rows of one span and one key/value head: a page is in the
//! cache for all of its queries, and the heads of a row share each load. Where
//! that gives too few tasks, as in decoding, each segment is a task of its own.

mod exact;
#[cfg(test)]
mod reference;
mod sealed;
mod task;
mod work;

use std::ops::Range;

use llama4rs_tensor::{KvSpan, Result};

use self::task::{AttentionTask, Goal, MergeTask, Rowset, TaskScratch};
use self::work::Partial;
use super::kv_pages::KvPages;
use crate::parallel::{Shared, Spare, Threads};
use crate::simd::Dispatch;
use crate::Tensor;

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

/// Some rows of one span.
#[derive(Clone, Copy)]
struct Block {
    span: usize,
    first_row: usize,
    rows: usize,
}

/// What all tasks of a call share.
#[derive(Clone, Copy)]
struct Call<'a> {
    dispatch: Dispatch,
    threads: &'a Threads,
    pool: &'a KvPages,
    layer: usize,
    queries: &'a Tensor,
    spans: &'a [KvSpan],
    scale: f32,
    blocks: &'a [Block],
    tasks: &'a Spare<TaskScratch>,
    out: Shared<'a, f32>,
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
    let call = Call { dispatch, threads, pool, layer, queries, spans, scale, blocks, tasks, out };
    let tasks = blocks.len() * pool.geometry().num_kv_heads;
    if threads.count() == 1 || tasks >= TASKS_PER_THREAD * threads.count() {
        call.rows();
    } else {
        let floats = call.heads() * call.stride();
        call.segments((WAITING_FLOATS / floats.max(1)).max(1), waiting, totals);
    }
    Ok(())
}

impl<'a> Call<'a> {
    fn heads(&self) -> usize {
        self.pool.geometry().num_kv_heads
    }

    fn rowset(&self, block: usize, kv_head: usize) -> Rowset<'a> {
        let Block { span, first_row, rows } = self.blocks[block];
        let span = &self.spans[span];
        Rowset {
            pool: self.pool,
            layer: self.layer,
            kv_head,
            queries: self.queries,
            first_row,
            rows,
            pages: &span.pages,
            visible: span.visible + (first_row - span.rows.start),
            scale: self.scale,
        }
    }

    fn run(&self, rowset: Rowset<'_>, goal: Goal<'_>) {
        self.tasks.with(|scratch| {
            self.dispatch.run_integers(AttentionTask { rowset, goal, scratch });
        });
    }

    /// One task for each block and head.
    fn rows(&self) {
        self.threads.for_each(self.blocks.len() * self.heads(), |task| {
            let rowset = self.rowset(task / self.heads(), task % self.heads());
            self.run(rowset, Goal::Rows(self.out));
        });
    }

    /// Floats for the sums of any block and head.
    fn stride(&self) -> usize {
        let blocks = 0..self.blocks.len();
        blocks.map(|block| self.rowset(block, 0).sizes().partial()).max().unwrap_or(0)
    }

    /// One task for each block, head and segment. At most `most` segments of each
    /// head wait to be merged.
    fn segments(&self, most: usize, waiting: &mut Vec<f32>, totals: &mut Vec<f32>) {
        let (heads, stride) = (self.heads(), self.stride());
        totals.resize(self.blocks.len() * heads * stride, 0.0);
        let totals = Shared::new(totals);
        for wave in self.waves(most) {
            let units: Vec<(usize, usize)> = wave
                .iter()
                .flat_map(|(block, segments)| segments.clone().map(|segment| (*block, segment)))
                .collect();
            waiting.resize((units.len() * heads * stride).max(waiting.len()), 0.0);
            let parts = Shared::new(waiting);
            // `[head][unit]`: the segments of one head follow each other.
            let place = |head: usize, unit: usize| (head * units.len() + unit) * stride;
            self.threads.for_each(units.len() * heads, |task| {
                let (unit, head) = (task / heads, task % heads);
                let (block, segment) = units[unit];
                let start = place(head, unit);
                // SAFETY: each task has its own part.
                let part = unsafe { parts.part(start..start + stride) };
                self.run(self.rowset(block, head), Goal::Segment(segment, part));
            });
            self.threads.for_each(wave.len() * heads, |task| {
                let (entry, head) = (task / heads, task % heads);
                let before = wave[..entry].iter().map(|(_, segments)| segments.len()).sum();
                let (block, segments) = wave[entry].clone();
                let start = place(head, before);
                let total = (block * heads + head) * stride;
                // SAFETY: a block is in a wave once: each task has its own segments and total.
                let (segments_of, total) = unsafe {
                    (
                        parts.part(start..start + segments.len() * stride),
                        totals.part(total..total + stride),
                    )
                };
                self.merge(block, head, segments, (segments_of, stride), total);
            });
        }
    }

    /// Adds segments to the total of a block and head, and writes it when it is complete.
    fn merge(
        &self,
        block: usize,
        head: usize,
        range: Range<usize>,
        (segments, stride): (&mut [f32], usize),
        total: &mut [f32],
    ) {
        let rowset = self.rowset(block, head);
        let sizes = rowset.sizes();
        if range.start == 0 {
            Partial::of(sizes, total).clear();
        }
        let sums = Partial::of(sizes, total);
        self.dispatch.run(MergeTask { rowset, segments, stride, total: sums });
        if range.end == rowset.segments() {
            // SAFETY: one task has this block and this head.
            unsafe { rowset.write(&Partial::of(sizes, total), self.out) };
        }
    }

    /// Blocks with runs of their segments, at most `most` segments at a time.
    fn waves(&self, most: usize) -> Vec<Vec<(usize, Range<usize>)>> {
        let mut waves = vec![Vec::new()];
        let mut room = most;
        for block in 0..self.blocks.len() {
            let segments = self.rowset(block, 0).segments();
            let mut start = 0;
            while start < segments {
                if room == 0 {
                    waves.push(Vec::new());
                    room = most;
                }
                let end = segments.min(start + room);
                room -= end - start;
                waves.last_mut().expect("one wave").push((block, start..end));
                start = end;
            }
        }
        waves
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::{Backend, KvDtype, KvGeometry, PageForm, PageId, Slot};
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::{all_cpus, assert_bits, assert_close, best_cpu, Random};
    use crate::Cpu;

    /// A pool whose every token has keys and values, and what lies beyond is NaN;
    /// and the pages of its tokens, the full ones sealed but for the first.
    fn filled_pool(
        random: &mut Random,
        geometry: KvGeometry,
        tokens: usize,
    ) -> (KvPages, Vec<PageId>) {
        let cpu = best_cpu();
        let mut pool = cpu.kv_pool(geometry).unwrap();
        let count = tokens.div_ceil(geometry.page_tokens) + 1;
        cpu.kv_reserve(&mut pool, PageForm::Exact, count).unwrap();
        let mut pages: Vec<PageId> = (0..count as u32).rev().map(PageId::exact).collect();
        let cols = geometry.num_kv_heads * geometry.head_dim;
        let slots: Vec<Slot> = (0..count * geometry.page_tokens)
            .map(|t| Slot {
                page: pages[t / geometry.page_tokens],
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
        if geometry.dtype.is_quantised() {
            cpu.kv_reserve(&mut pool, PageForm::Sealed, count).unwrap();
            let full = 1..(tokens / geometry.page_tokens).max(1);
            let seals: Vec<_> =
                full.clone().map(|i| (pages[i], PageId::sealed(i as u32))).collect();
            for layer in 0..geometry.num_layers {
                cpu.kv_seal(&mut pool, layer, &seals).unwrap();
            }
            full.for_each(|i| pages[i] = PageId::sealed(i as u32));
        }
        (pool, pages)
    }

    fn run(cpu: &Cpu, pool: &KvPages, queries: &Tensor, spans: &[KvSpan], scale: f32) -> Vec<f32> {
        let mut out = cpu.empty();
        let layer = pool.geometry().num_layers - 1;
        cpu.attend(pool, layer, queries, spans, scale, &mut out).unwrap();
        out.values().to_vec()
    }

    fn any_geometry() -> impl Strategy<Value = KvGeometry> {
        let head_dim = prop::sample::select(vec![2, 8, 16, 24, 32, 64, 80, 128, 256]);
        let page_tokens = prop::sample::select(vec![1, 5, 16, 17, 32, 64]);
        let dtype = prop::sample::select(KvDtype::ALL.to_vec());
        (1usize..4, head_dim, page_tokens, dtype).prop_map(
            |(num_kv_heads, head_dim, page_tokens, dtype)| KvGeometry {
                num_layers: 2,
                num_kv_heads,
                head_dim,
                page_tokens: if dtype.is_quantised() { 32 } else { page_tokens },
                dtype,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn every_set_and_thread_count_gives_the_reference(
            geometry in any_geometry(),
            group in 1usize..9,
            first in 0usize..150,
            rows in 1usize..40,
            seed in any::<u64>(),
        ) {
            let random = &mut Random(seed);
            // Rows that see a sealed page see all of it.
            let rows = match geometry.dtype.is_quantised() {
                true => rows.min(geometry.page_tokens - first % geometry.page_tokens),
                false => rows,
            };
            let tokens = first + rows;
            let (pool, mut pages) = filled_pool(random, geometry, tokens);
            let own = first / geometry.page_tokens;
            if pages[own].form() == PageForm::Sealed {
                pages[own] = PageId::exact((pages.len() - 1 - own) as u32);
            }
            let queries = random.tensor(rows, group * geometry.num_kv_heads * geometry.head_dim);
            let span = KvSpan { rows: 0..rows, pages: pages.clone(), visible: first + 1 };
            let spans = std::slice::from_ref(&span);
            let scale = 2.0;
            let expected = reference::attend(&pool, 1, &queries, spans, scale);
            let exact = reference::attend_exactly(&pool, 1, &queries, spans, scale);
            // Rounded factors add an error next to that of the codes.
            let tolerance = match geometry.dtype {
                KvDtype::F32 | KvDtype::Bf16 => 1e-5,
                KvDtype::Int8 => 2e-3,
                KvDtype::Int4 => 0.1,
            };
            assert_close("reference", &exact, &expected, tolerance);
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
        for dtype in KvDtype::ALL {
            let geometry =
                KvGeometry { num_layers: 1, num_kv_heads: 1, head_dim: 16, page_tokens: 64, dtype };
            let random = &mut Random(5);
            let tokens = 5 * SEGMENT_TOKENS + 10;
            let (pool, pages) = filled_pool(random, geometry, tokens);
            let queries = random.tensor(30, 2 * 16);
            let span = |rows: Range<usize>, visible| KvSpan { rows, pages: pages.clone(), visible };
            // In company, and short ones beside long ones.
            let spans = [
                span(0..10, tokens - 9),
                KvSpan { rows: 10..11, pages: pages[..1].to_vec(), visible: 40 },
                span(11..14, tokens - 2),
                KvSpan { rows: 14..15, pages: pages[..40].to_vec(), visible: 40 * 64 },
            ];
            let expected = reference::attend(&pool, 0, &queries, &spans, 3.0);
            for cpu in all_cpus() {
                assert_bits(&cpu.description(), &expected, &run(cpu, &pool, &queries, &spans, 3.0));
            }
            if !dtype.is_quantised() {
                let exact = reference::attend_exactly(&pool, 0, &queries, &spans, 3.0);
                assert_close("reference", &exact, &expected, 1e-5);
            }
        }
    }

    /// Rounding the factors of the codes adds little to what the codes themselves cost.
    #[test]
    fn codes_cost_more_than_rounded_factors() {
        for (dtype, share) in [(KvDtype::Int8, 0.02), (KvDtype::Int4, 0.2)] {
            let geometry = KvGeometry {
                num_layers: 1,
                num_kv_heads: 2,
                head_dim: 128,
                page_tokens: 64,
                dtype,
            };
            let random = &mut Random(10);
            let (pool, pages) = filled_pool(random, geometry, 640);
            let exact: Vec<PageId> =
                (0..pages.len() as u32).rev().map(PageId::exact).take(10).collect();
            let queries = random.tensor(8, 2 * 5 * 128);
            let spans = |pages: &[PageId]| -> Vec<KvSpan> {
                let span = |row| KvSpan { rows: row..row + 1, pages: pages.to_vec(), visible: 640 };
                (0..8).map(span).collect()
            };
            let (coded, plain) = (spans(&pages[..10]), spans(&exact));
            for scale in [0.1, 1.0] {
                let got = reference::attend(&pool, 0, &queries, &coded, scale);
                let codes = reference::attend_exactly(&pool, 0, &queries, &coded, scale);
                let truth = reference::attend_exactly(&pool, 0, &queries, &plain, scale);
                let square = |a: &[f64], b: &[f64]| -> f64 {
                    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
                };
                let got: Vec<f64> = got.iter().map(|&x| x as f64).collect();
                let rounding = (square(&got, &codes) / square(&codes, &truth)).sqrt();
                assert!(rounding < share, "{dtype:?}, scale {scale}: {rounding}");
            }
        }
    }

    #[test]
    fn waves_cover_every_segment_once() {
        let geometry = KvGeometry {
            num_layers: 1,
            num_kv_heads: 1,
            head_dim: 16,
            page_tokens: 64,
            dtype: KvDtype::F32,
        };
        let (pool, pages) = filled_pool(&mut Random(8), geometry, 4000);
        let span = |rows: Range<usize>, visible| KvSpan { rows, pages: pages.clone(), visible };
        let spans = [span(0..1, 4000), span(1..2, 900), span(2..3, 2100)];
        let blocks: Vec<Block> = (0..3).map(|i| Block { span: i, first_row: i, rows: 1 }).collect();
        let (queries, tasks) = (Random(9).tensor(3, 16), Spare::default());
        let cpu = best_cpu();
        let call = Call {
            dispatch: cpu.dispatch,
            threads: &cpu.threads,
            pool: &pool,
            layer: 0,
            queries: &queries,
            spans: &spans,
            scale: 1.0,
            blocks: &blocks,
            tasks: &tasks,
            out: Shared::new(&mut []),
        };
        assert_eq!(
            call.waves(3),
            [vec![(0, 0..3)], vec![(0, 3..4), (1, 0..1), (2, 0..1)], vec![(2, 1..3)]]
        );
        assert_eq!(call.waves(100), [vec![(0, 0..4), (1, 0..1), (2, 0..3)]]);
        let results = [0, 1, 2, 100].map(|most| {
            let mut out = [0.0; 48];
            let call = Call { out: Shared::new(&mut out), ..call };
            match most {
                0 => call.rows(),
                _ => call.segments(most, &mut Vec::new(), &mut Vec::new()),
            }
            out
        });
        results.iter().for_each(|waved| assert_bits("waves", &results[0], waved));
    }

    #[test]
    fn not_numbers_stay_with_their_query() {
        for dtype in KvDtype::ALL {
            let geometry =
                KvGeometry { num_layers: 1, num_kv_heads: 1, head_dim: 32, page_tokens: 32, dtype };
            let random = &mut Random(7);
            let (pool, pages) = filled_pool(random, geometry, 100);
            let mut values = random.values(4 * 32);
            let spans = [KvSpan { rows: 0..1, pages, visible: 97 }];
            let attend = |values: &[f32]| {
                let queries = Tensor::from_values(values, 4 * 32).unwrap();
                run(best_cpu(), &pool, &queries, &spans, 1.0)
            };
            let clean = attend(&values);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                values[40] = bad;
                let got = attend(&values);
                assert!(got[32..64].iter().all(|x| !x.is_finite()));
                assert_bits("others", &clean[..32], &got[..32]);
                assert_bits("others", &clean[64..], &got[64..]);
            }
        }
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
        let (pool, _) = filled_pool(random, geometry, 4);
        let queries = random.tensor(3, 4);
        let span = KvSpan { rows: 1..2, pages: vec![PageId::exact(1)], visible: 2 };
        let out = run(best_cpu(), &pool, &queries, &[span], 1.0);
        assert!(out[..4].iter().chain(&out[8..]).all(|&x| x == 0.0));
        assert!(out[4..8].iter().all(|&x| x != 0.0));
    }
}
