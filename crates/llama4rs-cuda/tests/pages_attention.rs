//! Attention over pages on tensor cores at the lengths where splits, pages and tiles begin and end: near plain
//! single precision, and the same bits for a row alone, in a batch and in a prompt.

mod support;

use std::ops::Range;

use half::bf16;
use llama4rs_tensor::{Backend, KvDtype, KvGeometry, KvSpan, PageForm, PageId};
use support::operations::{attend, filled, geometry, halves, PAGE, ROUNDED};
use support::{assert_bits, assert_close, cpu, tensor_cores, Random};

const SCALE: f32 = 0.11;

/// One sequence on both backends, and queries of its last rows.
struct Case {
    what: String,
    geometry: KvGeometry,
    width: usize,
    tokens: usize,
    sealed: Range<usize>,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

impl Case {
    fn new(
        random: &mut Random,
        dtype: KvDtype,
        [kv_heads, group, head_dim]: [usize; 3],
        tokens: usize,
        rows: usize,
    ) -> Self {
        let geometry = geometry(dtype, kv_heads, head_dim);
        let (cols, width) = (kv_heads * head_dim, kv_heads * group * head_dim);
        // As the engine has it: pages that every row sees whole and that are not a row's own.
        let whole = if dtype == KvDtype::Int8 { (tokens - rows) / PAGE } else { 0 };
        Self {
            what: format!("{dtype:?} {kv_heads} x {group} x {head_dim}, {rows} of {tokens}"),
            geometry,
            width,
            tokens,
            // Page 0 stays exact, too.
            sealed: if whole > 2 { 1..whole } else { 0..whole },
            keys: random.values(tokens * cols),
            values: random.values(tokens * cols),
            queries: halves(random, rows * width),
        }
    }

    fn rows(&self) -> usize {
        self.queries.len() / self.width
    }

    fn pool<B: Backend>(&self, backend: &B) -> (B::KvPool, Vec<PageId>) {
        filled(backend, self.geometry, &self.keys, &self.values, self.sealed.clone())
    }

    /// Rows of the case, as spans of these rows.
    fn spans(&self, pages: &[PageId], cuts: &[Range<usize>]) -> Vec<KvSpan> {
        let start = cuts.first().map_or(0, |first| first.start);
        let span = |rows: &Range<usize>| KvSpan {
            rows: rows.start - start..rows.end - start,
            pages: pages.to_vec(),
            visible: self.tokens - self.rows() + 1 + rows.start,
        };
        cuts.iter().map(span).collect()
    }

    /// Compares all rows with the CPU; and with themselves in other company.
    fn check(&self, cuts: &[Vec<Range<usize>>]) {
        let (pool, pages) = self.pool(cpu());
        let all = 0..self.rows();
        let together = [all];
        let spans = self.spans(&pages, &together);
        let expected = attend(cpu(), &pool, &self.queries, self.width, SCALE, &spans);
        let cuda = tensor_cores().unwrap();
        let (pool, pages) = self.pool(cuda);
        let run = |cuts: &[Range<usize>]| {
            let (start, end) = (cuts[0].start, cuts[cuts.len() - 1].end);
            let queries = &self.queries[start * self.width..end * self.width];
            attend(cuda, &pool, queries, self.width, SCALE, &self.spans(&pages, cuts))
        };
        let got = run(&together);
        assert_close(&self.what, &expected, &got, ROUNDED);
        for cuts in cuts {
            let (start, end) = (cuts[0].start, cuts[cuts.len() - 1].end);
            let rows = &got[start * self.width..end * self.width];
            assert_bits(&format!("{} as {cuts:?}", self.what), rows, &run(cuts));
        }
    }
}

fn alone(rows: usize) -> Vec<Range<usize>> {
    (0..rows).map(|row| row..row + 1).collect()
}

#[test]
fn lengths_around_pages_and_splits() {
    if tensor_cores().is_none() {
        return;
    }
    let random = &mut Random(31);
    let groups = [[1, 1, 64], [1, 5, 128], [2, 8, 64], [1, 16, 128], [1, 9, 64], [2, 16, 64]];
    for dtype in [KvDtype::Bf16, KvDtype::Int8] {
        for (i, tokens) in [1, 63, 64, 65, 255, 256, 257, 511, 577, 1030].into_iter().enumerate() {
            Case::new(random, dtype, groups[i % groups.len()], tokens, 1).check(&[]);
            // More rows than are computed one by one, the last of them alone and in pairs.
            let rows = 19.min(tokens);
            let last = rows - 1..rows;
            let pair = rows.saturating_sub(2)..rows;
            let case = Case::new(random, dtype, groups[(i + 3) % groups.len()], tokens, rows);
            case.check(&[alone(rows), vec![last], vec![pair]]);
        }
    }
}

#[test]
fn long_texts_whose_splits_have_grown() {
    if tensor_cores().is_none() {
        return;
    }
    let random = &mut Random(32);
    for (dtype, heads, tokens) in [
        (KvDtype::Bf16, [1, 2, 64], 8 * 1024 + 70),
        (KvDtype::Int8, [1, 1, 128], 8 * 1024 + 513),
        (KvDtype::Int8, [1, 1, 64], 32 * 1024 + 2049),
        (KvDtype::Bf16, [1, 1, 64], 128 * 1024 + 130),
    ] {
        let rows = 17;
        let case = Case::new(random, dtype, heads, tokens, rows);
        let last = rows - 1..rows;
        case.check(&[vec![last], vec![3..4, 4..9]]);
    }
}

#[test]
fn many_sequences_of_several_lengths() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(33);
    for (dtype, heads, tokens) in [
        (KvDtype::Bf16, [2, 5, 128], 900),
        (KvDtype::Int8, [2, 5, 128], 900),
        (KvDtype::Bf16, [1, 2, 64], 17_000),
    ] {
        let case = Case::new(random, dtype, heads, tokens, 40);
        let (pool, pages) = case.pool(cuda);
        // Rows of one text, as if each were a sequence of its own that has come so far.
        let mut spans = case.spans(&pages, &alone(case.rows()));
        if tokens > 1000 {
            // Some need many times the splits of others.
            spans
                .iter_mut()
                .enumerate()
                .for_each(|(i, span)| span.visible = 1 + i * i * 11 % tokens);
        }
        let all = attend(cuda, &pool, &case.queries, case.width, SCALE, &spans);
        for (row, span) in spans.into_iter().enumerate() {
            let query = &case.queries[row * case.width..][..case.width];
            let span = KvSpan { rows: 0..1, ..span };
            let one = attend(cuda, &pool, query, case.width, SCALE, &[span]);
            assert_bits(&case.what, &all[row * case.width..][..case.width], &one);
        }
    }
}

#[test]
fn sealed_numbers_of_any_size() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(34);
    // Halves have no room for these products as they are. Scores stay small: their rounding would show.
    for (key, value, query) in [(1.0, 60000.0, 1e-2), (1e-3, 1e-4, 300.0), (300.0, 1.0, 1e-5)] {
        let mut case = Case::new(random, KvDtype::Int8, [1, 5, 128], 400, 3);

        // Of each head one channel with large keys, one with large queries and small keys.
        let sized = |values: &mut [f32], factor: f32, outliers: &[(usize, f32)]| {
            for (i, x) in values.iter_mut().enumerate() {
                let outlier = outliers.iter().find(|(channel, _)| *channel == i % 128);
                *x = bf16::from_f32(*x * factor * outlier.map_or(1.0, |(_, by)| *by)).to_f32();
            }
        };
        sized(&mut case.keys, key, &[(5, 100.0), (77, 1e-3)]);
        sized(&mut case.values, value, &[]);
        sized(&mut case.queries, query, &[(77, 1e3)]);
        case.check(&[alone(3)]);
    }
    // A row of zeros sees the mean.
    let mut case = Case::new(random, KvDtype::Int8, [1, 2, 64], 200, 1);
    case.queries.fill(0.0);
    case.check(&[]);
    assert!(case.pool(cuda).1.iter().any(|page| page.form() == PageForm::Sealed));
}
