//! Keys, values and attention, beside the CPU.

mod support;

use half::{bf16, f16};
use llama4rs_cpu::Cpu;
use llama4rs_tensor::{
    AlignedBytes, Backend, KvDtype, KvGeometry, KvSpan, PageForm, PageId, Slot, VisionBackend,
    WeightFormat,
};
use support::operations::{attend, filled, geometry, PAGE};
use support::{assert_bits, assert_close, cpu, cuda, Random};

const TOLERANCE: f64 = 3e-6;
const SCALE: f32 = 0.3;

#[test]
fn attention_over_pages() {
    let Some(cuda) = cuda() else { return };
    let random = &mut Random(1);
    for (dtype, kv_heads, group, head_dim, tokens, rows) in [
        (KvDtype::F32, 1, 1, 8, 1, 1),
        (KvDtype::F32, 2, 3, 12, 70, 5),
        (KvDtype::Bf16, 1, 5, 16, 64, 64),
        (KvDtype::Bf16, 2, 2, 6, 130, 9),
        (KvDtype::F32, 1, 1, 136, 65, 2),
        (KvDtype::Bf16, 1, 4, 16, 1100, 2),
    ] {
        let geometry = geometry(dtype, kv_heads, head_dim);
        let cols = kv_heads * head_dim;
        let (keys, values) = (random.values(tokens * cols), random.values(tokens * cols));
        let queries = random.values((rows + 1) * cols * group);
        let what = format!("{dtype:?} {kv_heads} x {group} x {head_dim}, {rows} of {tokens}");
        // The last row is nobody's: it becomes zero.
        let span = |pages: &[PageId]| KvSpan {
            rows: 0..rows,
            pages: pages.to_vec(),
            visible: tokens - rows + 1,
        };
        let (pool, pages) = filled(cpu(), geometry, &keys, &values, 0..0);
        let expected = attend(cpu(), &pool, &queries, cols * group, SCALE, &[span(&pages)]);
        let (pool, pages) = filled(cuda, geometry, &keys, &values, 0..0);
        let got = attend(cuda, &pool, &queries, cols * group, SCALE, &[span(&pages)]);
        assert_close(&what, &expected, &got, TOLERANCE);
        let rows_in_all = rows;
        // The same rows in spans of their own, and alone.
        let row = |i: usize, rows| KvSpan {
            rows,
            pages: pages.clone(),
            visible: tokens - rows_in_all + 1 + i,
        };
        let spans: Vec<_> = (0..rows).map(|i| row(i, i..i + 1)).collect();
        assert_bits(&what, &got, &attend(cuda, &pool, &queries, cols * group, SCALE, &spans));
        for i in [0, rows - 1] {
            let width = cols * group;
            let query = &queries[i * width..][..width];
            let alone = attend(cuda, &pool, query, width, SCALE, &[row(i, 0..1)]);
            assert_bits(&what, &got[i * width..][..width], &alone);
        }
    }
}

/// Keys or values of layer 1 as the pages store them, `[kv head][token][head_dim]`.
fn stored(
    geometry: &KvGeometry,
    pool: &<Cpu as Backend>::KvPool,
    pages: &[PageId],
    value: bool,
) -> Vec<Vec<f64>> {
    let (dim, heads) = (geometry.head_dim, geometry.num_kv_heads);
    let head = |head: usize| {
        let tokens = pages.iter().flat_map(|&page| {
            let bytes = cpu().kv_read(pool, page).unwrap();
            let size = geometry.head_bytes(page.form());
            let bytes = bytes[(heads + head) * size..][..size].to_vec();
            (0..PAGE * dim)
                .map(move |i| number(geometry, page.form(), &bytes, value, i / dim, i % dim))
        });
        tokens.collect()
    };
    (0..heads).map(head).collect()
}

/// One number of a head's bytes, from the drawing of the layout.
fn number(
    geometry: &KvGeometry,
    form: PageForm,
    head: &[u8],
    value: bool,
    token: usize,
    channel: usize,
) -> f64 {
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let Some(layout) = geometry.sealed_head().filter(|_| form == PageForm::Sealed) else {
        let at = (value as usize * PAGE + token) * geometry.head_dim + channel;
        return bf16::from_bits(half(2 * at)).to_f64();
    };
    let (centres, steps, codes) = match value {
        false => (layout.key_centres, layout.key_steps, layout.key_codes),
        true => (layout.value_centres, layout.value_steps, layout.value_codes),
    };
    let ((lane, at, len), shared) = match value {
        false => ((token, channel, layout.width), channel),
        true => ((channel, token, PAGE), token),
    };
    let bits = geometry.dtype.code_bits().unwrap();
    let per_word = 32 / bits;
    let word = (lane / 16 * (len / per_word) + at / per_word) * 16 + lane % 16;
    let byte = head[codes.start + 4 * word + at % 4];
    let code = byte >> (at % per_word / 4 * 4) & ((1u16 << bits) - 1) as u8;
    let f16_at = |start: usize| f16::from_bits(half(start + 2 * shared)).to_f64();
    f16_at(centres.start) + f16_at(steps.start) * (code as f64 - (1 << (bits - 1)) as f64)
}

/// Attention in double precision; row `i` sees `visible + i` keys.
fn plain_attention(
    geometry: &KvGeometry,
    [keys, values]: &[Vec<Vec<f64>>; 2],
    queries: &[f32],
    group: usize,
    visible: usize,
) -> Vec<f32> {
    let dim = geometry.head_dim;
    let heads = geometry.num_kv_heads * group;
    let mut out = Vec::new();
    for (i, q) in queries.chunks_exact(dim).enumerate() {
        let (head, seen) = (i % heads / group, visible + i / heads);
        let score =
            |key: &[f64]| key.iter().zip(q).map(|(k, &q)| k * q as f64).sum::<f64>() * SCALE as f64;
        let scores: Vec<f64> = keys[head].chunks_exact(dim).take(seen).map(score).collect();
        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut row: Vec<f64> = (0..dim)
            .map(|d| {
                weights.iter().enumerate().map(|(t, w)| w * values[head][t * dim + d]).sum::<f64>()
                    / sum
            })
            .collect();
        if geometry.dtype.rotates_values() {
            rotate(&mut row);
        }
        out.extend(row.iter().map(|&x| x as f32));
    }
    out
}

/// The Hadamard rotation that an int4 pool applies to values.
fn rotate(x: &mut [f64]) {
    let order = 1usize << x.len().trailing_zeros();
    for x in x.chunks_exact_mut(order) {
        let sum = |i: usize| -> f64 {
            let sign = |j: usize| 1.0 - 2.0 * ((i & j).count_ones() % 2) as f64;
            x.iter().enumerate().map(|(j, x)| sign(j) * x).sum::<f64>() / (order as f64).sqrt()
        };
        let rotated: Vec<f64> = (0..order).map(sum).collect();
        x.copy_from_slice(&rotated);
    }
}

#[test]
fn sealed_pages_have_the_bytes_of_the_cpu() {
    let Some(cuda) = cuda() else { return };
    let random = &mut Random(2);
    for (dtype, head_dim) in
        [(KvDtype::Int8, 16), (KvDtype::Int4, 16), (KvDtype::Int8, 12), (KvDtype::Int4, 40)]
    {
        let (kv_heads, group, tokens) = (2, 2, 2 * PAGE + 5);
        let geometry = geometry(dtype, kv_heads, head_dim);
        let cols = kv_heads * head_dim;
        let mut keys = random.values(tokens * cols);
        let mut values = random.values(tokens * cols);
        (keys[5], values[7], values[8]) = (f32::NAN, 1e9, 0.0);
        values[cols..2 * cols].fill(0.25);
        let (on_cpu, cpu_pages) = filled(cpu(), geometry, &keys, &values, 0..2);
        let (mut on_gpu, pages) = filled(cuda, geometry, &keys, &values, 0..2);
        assert_eq!(cpu_pages, pages);
        let layer = geometry.page_bytes(PageForm::Sealed) / 2;
        for &page in &pages[..2] {
            let expected = cpu().kv_read(&on_cpu, page).unwrap();
            let got = cuda.kv_read(&on_gpu, page).unwrap();
            assert_eq!(&expected[layer..], &got[layer..], "{dtype:?} {head_dim} {page:?}");
        }
        let clean: Vec<f32> = random.values(tokens * cols);
        let (on_cpu, _) = filled(cpu(), geometry, &clean, &clean, 0..2);
        let stored = [false, true].map(|value| stored(&geometry, &on_cpu, &pages, value));
        let queries = random.values(3 * cols * group);
        let spans = [KvSpan { rows: 0..3, pages: pages.clone(), visible: tokens - 2 }];
        // Pages that another device wrote are adopted as they are.
        for &page in &pages {
            let bytes = cpu().kv_read(&on_cpu, page).unwrap();
            let mut owned = AlignedBytes::zeroed(bytes.len()).unwrap();
            owned.copy_from_slice(&bytes);
            cuda.kv_adopt(&mut on_gpu, page, owned.into()).unwrap();
        }
        let got = attend(cuda, &on_gpu, &queries, cols * group, SCALE, &spans);
        let expected = plain_attention(&geometry, &stored, &queries, group, tokens - 2);
        assert_close(&format!("{dtype:?} {head_dim}"), &expected, &got, TOLERANCE);
    }
}

#[test]
fn everybody_sees_everybody_in_a_tile() {
    let Some(cuda) = cuda() else { return };
    let random = &mut Random(3);
    for (tiles, tile_rows, heads, head_dim) in
        [(1, 1, 1, 1), (2, 17, 2, 12), (3, 5, 1, 88), (1, 70, 3, 16)]
    {
        let len = tiles * tile_rows * heads * head_dim;
        let (q, k, v) = (random.values(len), random.values(len), random.values(len));
        fn run<B: VisionBackend>(
            b: &B,
            x: [&[f32]; 3],
            cols: usize,
            rows: usize,
            dim: usize,
        ) -> Vec<f32> {
            let [q, k, v] = x.map(|x| b.upload(x, cols).unwrap());
            let mut out = b.empty();
            let next = Random(1).weights(WeightFormat::F32, 1, 1, cols);
            let next = b.matrix(next.packed()).unwrap();
            b.attend_all(&q, &k, &v, rows, dim, 0.4, &next, &mut out).unwrap();
            b.to_host(&out).unwrap()
        }
        let cols = heads * head_dim;
        let expected = run(cpu(), [&q, &k, &v], cols, tile_rows, head_dim);
        let got = run(cuda, [&q, &k, &v], cols, tile_rows, head_dim);
        assert_close(
            &format!("{tiles} {tile_rows} {heads} {head_dim}"),
            &expected,
            &got,
            TOLERANCE,
        );
    }
}

#[test]
fn pages_that_do_not_fit_are_errors() {
    let Some(cuda) = cuda() else { return };
    let sizes = geometry(KvDtype::Bf16, 2, 16);
    let refused = |text: &str, error: Option<llama4rs_tensor::Error>| {
        let error = error.expect(text).to_string();
        assert!(error.contains(text), "{error:?} does not contain {text:?}");
    };
    refused("pages of 64", cuda.kv_pool(KvGeometry { page_tokens: 5, ..sizes }).err());
    refused("kv pool", cuda.kv_pool(KvGeometry { num_layers: 0, ..sizes }).err());
    let mut pool = cuda.kv_pool(sizes).unwrap();
    refused("exact pages", cuda.kv_reserve(&mut pool, PageForm::Sealed, 1).err());
    cuda.kv_reserve(&mut pool, PageForm::Exact, 1).unwrap();
    let x = cuda.upload(&[0.0; 32], 32).unwrap();
    for slot in [
        Slot { page: PageId::exact(1), offset: 0 },
        Slot { page: PageId::exact(0), offset: 64 },
        Slot { page: PageId::sealed(0), offset: 0 },
    ] {
        refused("slots in 1 exact", cuda.write_kv(&mut pool, 0, &[slot], &x, &x).err());
    }
    let span = |visible, page| KvSpan { rows: 0..1, pages: vec![PageId::exact(page)], visible };
    let mut out = cuda.empty();
    for (layer, span, text) in [
        (2, span(1, 0), "a layer below 2"),
        (0, span(65, 0), "visible"),
        (0, span(1, 1), "reserved"),
    ] {
        refused(text, cuda.attend(&pool, layer, &x, &[span], 1.0, &mut out).err());
    }
    refused("a reserved page", cuda.kv_read(&pool, PageId::exact(1)).err());
}
