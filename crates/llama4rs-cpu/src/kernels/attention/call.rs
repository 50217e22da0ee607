//! A call, cut into tasks: blocks of rows and heads, and where these are few, segments.

use std::ops::Range;

use llama4rs_tensor::KvSpan;

use super::task::{AttentionTask, Goal, MergeTask, Rowset, TaskScratch};
use super::work::Partial;
use crate::kernels::kv_pages::KvPages;
use crate::parallel::{Shared, Spare, Threads};
use crate::simd::Dispatch;
use crate::{Arithmetic, Tensor};

/// Some rows of one span.
#[derive(Clone, Copy)]
pub struct Block {
    pub span: usize,
    pub first_row: usize,
    pub rows: usize,
}

/// What all tasks of a call share.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub dispatch: Dispatch,
    pub arithmetic: Arithmetic,
    pub threads: &'a Threads,
    pub pool: &'a KvPages,
    pub layer: usize,
    pub queries: &'a Tensor,
    pub spans: &'a [KvSpan],
    pub scale: f32,
    pub blocks: &'a [Block],
    pub tasks: &'a Spare<TaskScratch>,
    pub out: Shared<'a, f32>,
}

impl<'a> Call<'a> {
    pub fn heads(&self) -> usize {
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
            arithmetic: self.arithmetic,
        }
    }

    fn run(&self, rowset: Rowset<'_>, goal: Goal<'_>) {
        self.tasks.with(|scratch| {
            self.dispatch.run_integers(AttentionTask { rowset, goal, scratch });
        });
    }

    /// One task for each block and head.
    pub fn rows(&self) {
        self.threads.for_each(self.blocks.len() * self.heads(), |task| {
            let rowset = self.rowset(task / self.heads(), task % self.heads());
            self.run(rowset, Goal::Rows(self.out));
        });
    }

    /// Floats for the sums of any block and head.
    pub fn stride(&self) -> usize {
        let blocks = 0..self.blocks.len();
        blocks.map(|block| self.rowset(block, 0).sizes().partial()).max().unwrap_or(0)
    }

    /// One task for each block, head and segment. At most `most` segments of each
    /// head wait to be merged.
    pub fn segments(&self, most: usize, waiting: &mut Vec<f32>, totals: &mut Vec<f32>) {
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
    use llama4rs_tensor::{KvDtype, KvGeometry};

    use super::super::tests::filled_pool;
    use super::*;
    use crate::test_support::{assert_bits, best_cpu, Random};

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
            arithmetic: cpu.arithmetic,
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
}
