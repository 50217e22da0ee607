//! Products, feed-forward layers, mixtures and attention of random shapes on tensor cores: near plain single
//! precision, and the same bits for a row in any company.

mod support;

use llama4rs_tensor::{KvDtype, KvSpan, PageId, WeightFormat};
use proptest::prelude::*;
use support::operations::{
    attend, feed_forward, filled, format, geometry, halves, layer, matmul, mixture, PAGE, ROUNDED,
    SUMS,
};
use support::{assert_bits, assert_close, cpu, tensor_cores, Random};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 8, ..Default::default() }
}

/// Numbers of rows that reach every kernel, more often few.
fn tokens() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1usize..=8, 2 => 9usize..=16, 2 => 17usize..=64, 1 => 65usize..=140]
}

/// Rows `start..end` of `values`.
fn rows(values: &[f32], width: usize, range: std::ops::Range<usize>) -> &[f32] {
    &values[range.start * width..range.end * width]
}

/// `rows` rows from `first` tokens on, cut at `cuts`.
fn spans(pages: &[PageId], first: usize, rows: usize, cuts: &[usize]) -> Vec<KvSpan> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % rows).chain([0, rows]).collect();
    ends.sort_unstable();
    ends.dedup();
    let span = |pair: &[usize]| KvSpan {
        rows: pair[0]..pair[1],
        pages: pages.to_vec(),
        visible: first + pair[0],
    };
    ends.windows(2).map(span).collect()
}

proptest! {
    #![proptest_config(config(8))]
    #[test]
    fn products(
        format in format(),
        outputs in 1usize..90,
        cols in (1usize..180).prop_map(|n| n * 8),
        tokens in tokens(),
        part in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let Some(cuda) = tensor_cores() else { return Ok(()) };
        let random = &mut Random(seed);
        let weights = random.weights(format, 1, outputs, cols);
        let x = halves(random, tokens * cols);
        let expected = matmul(cpu(), &x, cols, &[&weights]);
        let all = matmul(cuda, &x, cols, &[&weights]);
        assert_close(&format!("{format}"), &expected[0], &all[0], SUMS);
        let first = part.index(tokens);
        let some = matmul(cuda, rows(&x, cols, first..tokens), cols, &[&weights]);
        assert_bits("some of the rows", rows(&all[0], outputs, first..tokens), &some[0]);
    }
}

proptest! {
    #![proptest_config(config(5))]
    #[test]
    fn dense_layers(
        gated in format(),
        down in format(),
        hidden in (1usize..60).prop_map(|n| n * 8),
        inner in (1usize..40).prop_map(|n| n * 8),
        tokens in tokens(),
        part in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let Some(cuda) = tensor_cores() else { return Ok(()) };
        let random = &mut Random(seed);
        let weights = layer(random, 1, [gated, down], [hidden, inner]);
        let x = halves(random, tokens * hidden);
        let expected = feed_forward(cpu(), &x, hidden, &weights);
        let all = feed_forward(cuda, &x, hidden, &weights);
        assert_close(&format!("{gated}, {down}"), &expected, &all, ROUNDED);
        let first = part.index(tokens);
        let some = feed_forward(cuda, rows(&x, hidden, first..tokens), hidden, &weights);
        assert_bits("some of the rows", rows(&all, hidden, first..tokens), &some);
    }

    #[test]
    fn mixtures(
        formats in [format(), format()],
        experts in 1usize..20,
        top_k in 1usize..=2,
        hidden in (1usize..40).prop_map(|n| n * 8),
        inner in (1usize..12).prop_map(|n| n * 8),
        tokens in tokens(),
        part in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let Some(cuda) = tensor_cores() else { return Ok(()) };
        let (random, top_k) = (&mut Random(seed), top_k.min(experts));
        let router = random.weights(WeightFormat::F32, 1, experts, hidden);
        let shared = layer(random, 1, formats, [hidden, inner]);
        let routed = layer(random, experts, formats, [hidden, inner]);
        let x = halves(random, tokens * hidden);
        let all = [&shared, &routed];
        let (chosen, expected) = mixture(cpu(), &x, hidden, top_k, &router, all);
        let (got_chosen, got) = mixture(cuda, &x, hidden, top_k, &router, all);
        prop_assert_eq!(chosen, got_chosen);
        assert_close(&format!("{formats:?}"), &expected, &got, ROUNDED);
        let first = part.index(tokens);
        let some = mixture(cuda, rows(&x, hidden, first..tokens), hidden, top_k, &router, all).1;
        assert_bits("some of the rows", rows(&got, hidden, first..tokens), &some);
    }

    #[test]
    fn attention(
        sealed in any::<bool>(),
        kv_heads in 1usize..=2,
        group in 1usize..=16,
        head_dim in prop::sample::select(vec![64usize, 128]),
        before in 0usize..700,
        count in prop_oneof![2 => 1usize..=3, 1 => 4usize..=40, 1 => 41usize..=80],
        cuts in prop::collection::vec(any::<usize>(), 0..4),
        seed in any::<u64>(),
    ) {
        let Some(cuda) = tensor_cores() else { return Ok(()) };
        let random = &mut Random(seed);
        let dtype = if sealed { KvDtype::Int8 } else { KvDtype::Bf16 };
        let geometry = geometry(dtype, kv_heads, head_dim);
        let (cols, width, tokens) = (kv_heads * head_dim, kv_heads * head_dim * group, before + count);
        let (keys, values) = (random.values(tokens * cols), random.values(tokens * cols));
        let queries = halves(random, count * width);
        // Page 0 stays exact, and those that some row does not see whole.
        let whole = before / PAGE;
        let sealed = if sealed && whole > 1 { 1..whole } else { 0..0 };
        let (pool, pages) = filled(cpu(), geometry, &keys, &values, sealed.clone());
        let together = |pages: &[PageId]| spans(pages, before + 1, count, &[]);
        let expected = attend(cpu(), &pool, &queries, width, 0.1, &together(&pages));
        let (pool, pages) = filled(cuda, geometry, &keys, &values, sealed);
        let got = attend(cuda, &pool, &queries, width, 0.1, &together(&pages));
        let what = format!("{dtype:?} {kv_heads} x {group} x {head_dim}, {count} of {tokens}");
        assert_close(&what, &expected, &got, ROUNDED);
        let apart = attend(cuda, &pool, &queries, width, 0.1, &spans(&pages, before + 1, count, &cuts));
        assert_bits(&what, &got, &apart);
    }
}
