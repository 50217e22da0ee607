//! Attention against its definition, on every instruction set and with any number of threads.

use std::ops::Range;

use llama4rs_tensor::{Backend, KvDtype, KvGeometry, PageForm, PageId, Slot};
use proptest::prelude::*;

use super::*;
use crate::test_support::{all_cpus, assert_bits, assert_close, best_cpu, exact_cpus, Random};
use crate::Cpu;

/// A pool whose every token has keys and values, and what lies beyond is NaN;
/// and the pages of its tokens, the full ones sealed but for the first.
pub fn filled_pool(
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
        let seals: Vec<_> = full.clone().map(|i| (pages[i], PageId::sealed(i as u32))).collect();
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
        let exact = reference::attend_exactly(&pool, 1, &queries, spans, scale);
        for cpus in [exact_cpus(), all_cpus()] {
            let arithmetic = cpus[0].arithmetic();
            let expected = reference::attend(&pool, 1, &queries, spans, scale, arithmetic);
            // Rounded factors add an error next to that of the codes.
            let tolerance = match (geometry.dtype, arithmetic) {
                (KvDtype::F32, _) | (KvDtype::Bf16, Arithmetic::Exact) => 1e-5,
                (KvDtype::Bf16, _) => 0.05,
                (KvDtype::Int8, Arithmetic::Exact) => 2e-3,
                (KvDtype::Int8, _) => 0.05,
                (KvDtype::Int4, _) => 0.1,
            };
            assert_close("reference", &exact, &expected, tolerance);
            for cpu in cpus {
                let got = run(cpu, &pool, &queries, spans, scale);
                assert_bits(&cpu.description(), &expected, &got);
            }
        }
        let one_by_one: Vec<KvSpan> = (0..rows)
            .rev()
            .map(|r| KvSpan { rows: r..r + 1, pages: pages.clone(), visible: first + 1 + r })
            .collect();
        let got = run(best_cpu(), &pool, &queries, &one_by_one, scale);
        let together = run(best_cpu(), &pool, &queries, spans, scale);
        assert_bits("one row per span", &together, &got);
    }
}

#[test]
fn long_contexts_merge_segments() {
    for dtype in KvDtype::ALL {
        let geometry =
            KvGeometry { num_layers: 1, num_kv_heads: 1, head_dim: 32, page_tokens: 64, dtype };
        let random = &mut Random(5);
        let tokens = 5 * SEGMENT_TOKENS + 10;
        let (pool, pages) = filled_pool(random, geometry, tokens);
        let queries = random.tensor(30, 2 * 32);
        let span = |rows: Range<usize>, visible| KvSpan { rows, pages: pages.clone(), visible };
        // In company, and short ones beside long ones.
        let spans = [
            span(0..10, tokens - 9),
            KvSpan { rows: 10..11, pages: pages[..1].to_vec(), visible: 40 },
            span(11..14, tokens - 2),
            KvSpan { rows: 14..15, pages: pages[..40].to_vec(), visible: 40 * 64 },
        ];
        for cpus in [exact_cpus(), all_cpus()] {
            let arithmetic = cpus[0].arithmetic();
            let expected = reference::attend(&pool, 0, &queries, &spans, 3.0, arithmetic);
            for cpu in cpus {
                assert_bits(&cpu.description(), &expected, &run(cpu, &pool, &queries, &spans, 3.0));
            }
            if !dtype.is_quantised() {
                let exact = reference::attend_exactly(&pool, 0, &queries, &spans, 3.0);
                let in_pairs = (dtype, arithmetic) == (KvDtype::Bf16, Arithmetic::Fast);
                assert_close("reference", &exact, &expected, if in_pairs { 0.02 } else { 1e-5 });
            }
        }
    }
}

/// Rounding the factors of the codes adds little to what the codes themselves cost.
#[test]
fn codes_cost_more_than_rounded_factors() {
    for (dtype, share) in [(KvDtype::Int8, 0.02), (KvDtype::Int4, 0.2)] {
        let geometry =
            KvGeometry { num_layers: 1, num_kv_heads: 2, head_dim: 128, page_tokens: 64, dtype };
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
            let got = reference::attend(&pool, 0, &queries, &coded, scale, Arithmetic::Exact);
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
