//! Products, experts and attention on tensor cores, beside plain single precision.

mod support;

use half::bf16;
use llama4rs_cuda::Cuda;
use llama4rs_engine::{Sampler, SamplingOptions};
use llama4rs_tensor::{
    Backend, Draw, ExpertWeights, FeedForwardScratch, KvDtype, KvSpan, MixtureWeights, PageForm,
    PageId, Placement, Slot, WeightFormat,
};
use support::operations::{attend, filled, geometry, halves, matmul, PAGE, ROUNDED, SUMS};
use support::{assert_bits, assert_close, cpu, cuda, tensor_cores, Random, Weights, FORMATS};

#[test]
fn embedding_is_exact() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(1);
    for format in FORMATS {
        for (rows, cols) in [(1, 8), (50, 264), (17, 200), (5, 33)] {
            let table = random.weights(format, 1, rows, cols);
            let ids: Vec<u32> = (0..9).map(|_| random.below(rows) as u32).collect();
            let plain = table.packed().decode(0);
            let expected: Vec<f32> =
                ids.iter().flat_map(|&id| plain[id as usize * cols..][..cols].to_vec()).collect();
            let mut out = cuda.empty();
            cuda.embed(&cuda.matrix(table.packed()).unwrap(), &ids, &mut out).unwrap();
            assert_bits(&format!("{format} {cols}"), &expected, &cuda.to_host(&out).unwrap());
        }
    }
}

/// More bytes than are brought at once.
#[test]
fn weights_that_come_in_pieces() {
    let (Some(exact), Some(fast)) = (cuda(), tensor_cores()) else { return };
    let (rows, cols) = (19_500, 2008);
    let table = Random(7).weights(WeightFormat::Int8 { group: 128 }, 1, rows, cols);
    assert!(table.packed().bytes().len() > 36 << 20);
    let ids: Vec<u32> = (0..rows as u32).step_by(97).collect();
    let plain = table.packed().decode(0);
    let expected: Vec<f32> =
        ids.iter().flat_map(|&id| plain[id as usize * cols..][..cols].to_vec()).collect();
    for (name, cuda) in [("exact", exact), ("fast", fast)] {
        let mut out = cuda.empty();
        cuda.embed(&cuda.matrix(table.packed()).unwrap(), &ids, &mut out).unwrap();
        assert_bits(name, &expected, &cuda.to_host(&out).unwrap());
    }
}

/// Numbers of tokens on both sides of every change of kernel: the bits never change.
#[test]
fn products_of_every_format() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(2);
    for (format, rows, cols) in FORMATS
        .into_iter()
        .zip([(5, 16), (33, 264), (40, 96), (130, 1032), (16, 8), (17, 328), (40, 1288), (1, 520)])
        .map(|(format, (rows, cols))| (format, rows, cols))
    {
        let (first, second) =
            (random.weights(format, 1, rows, cols), random.weights(format, 1, 2 * rows, cols));
        let x = halves(random, 70 * cols);
        let expected = matmul(cpu(), &x, cols, &[&first, &second]);
        let all = matmul(cuda, &x, cols, &[&first, &second]);
        for (expected, got) in expected.iter().zip(&all) {
            assert_close(&format!("{format} {rows} {cols}"), expected, got, SUMS);
        }
        for tokens in [1, 7, 8, 9, 16, 17, 33] {
            let first_row = 70 - tokens;
            let some = matmul(cuda, &x[first_row * cols..], cols, &[&second, &first]);
            let what = format!("{format}, {tokens} tokens");
            assert_bits(&what, &all[0][first_row * rows..], &some[1]);
            assert_bits(&what, &all[1][first_row * 2 * rows..], &some[0]);
        }
    }
}

/// Many tiles: the kernel for prompts, on a device with few processors.
#[test]
fn products_of_many_tokens() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(3);
    let (rows, cols, tokens) = (260, 192, 260);
    for format in [WeightFormat::Int4 { group: 64 }, WeightFormat::Int8 { group: 32 }] {
        let weights = random.weights(format, 1, rows, cols);
        let x = halves(random, tokens * cols);
        let expected = matmul(cpu(), &x, cols, &[&weights]);
        let got = matmul(cuda, &x, cols, &[&weights]);
        assert_close(&format.to_string(), &expected[0], &got[0], SUMS);
        for row in [0, 127, 128, 259] {
            let alone = matmul(cuda, &x[row * cols..][..cols], cols, &[&weights]);
            assert_bits("a row alone", &got[0][row * rows..][..rows], &alone[0]);
        }
    }
}

struct Experts {
    top_k: usize,
    count: usize,
    hidden: usize,
    weights: [Weights; 3],
}

impl Experts {
    fn run<B: Backend>(&self, backend: &B, x: &[f32], logits: &[f32], out: &[f32]) -> Vec<f32> {
        let x = backend.upload(x, self.hidden).unwrap();
        let logits = backend.upload(logits, self.count).unwrap();
        let routing = backend.route(&logits, self.top_k).unwrap();
        let [gate, up, down] = self.weights.each_ref().map(|w| backend.matrix(w.packed()).unwrap());
        let mut out = backend.upload(out, self.hidden).unwrap();
        let weights = ExpertWeights { gate: &gate, up: &up, down: &down };
        backend.experts(&x, &routing, weights, &mut out).unwrap();
        backend.to_host(&out).unwrap()
    }
}

#[test]
fn experts_as_on_the_cpu() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(4);
    let (int4, int8) = (WeightFormat::Int4 { group: 64 }, WeightFormat::Int8 { group: 32 });
    for (formats, tokens, count, top_k, hidden, inner) in [
        ([int4; 3], 1, 16, 1, 64, 48),
        ([int4; 3], 70, 4, 1, 264, 40),
        ([WeightFormat::Int4 { group: 128 }, int8, int4], 9, 3, 2, 72, 24),
        ([WeightFormat::Bf16; 3], 40, 2, 1, 136, 8),
        ([int8; 3], 120, 2, 1, 128, 16),
    ] {
        let [gate, up, down] = formats;
        let weights = [
            random.weights(gate, count, inner, hidden),
            random.weights(up, count, inner, hidden),
            random.weights(down, count, hidden, inner),
        ];
        let experts = Experts { top_k, count, hidden, weights };
        let (x, out) = (halves(random, tokens * hidden), random.values(tokens * hidden));
        let mut logits = random.values(tokens * count);
        // One expert takes many rows, another none.
        for row in logits.chunks_exact_mut(count).step_by(2) {
            row[count - 1] = 3.0;
            row[0] = -3.0;
        }
        let expected = experts.run(cpu(), &x, &logits, &out);
        let got = experts.run(cuda, &x, &logits, &out);
        assert_close(&format!("{formats:?}"), &expected, &got, ROUNDED);
        for token in [0, tokens / 2, tokens - 1] {
            let row = |values: &[f32], width: usize| values[token * width..][..width].to_vec();
            let alone =
                experts.run(cuda, &row(&x, hidden), &row(&logits, count), &row(&out, hidden));
            assert_bits("a row alone", &row(&got, hidden), &alone);
        }
    }
}

#[test]
fn mixtures_as_on_the_cpu() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(10);
    let (int4, int8) = (WeightFormat::Int4 { group: 64 }, WeightFormat::Int8 { group: 64 });
    for (shared, routed, tokens, count, top_k, hidden, inner) in [
        (int4, int4, 1, 16, 1, 328, 40),
        (int4, int4, 6, 20, 2, 64, 24),
        (int8, int4, 40, 3, 1, 264, 72),
        (int4, int4, 150, 2, 1, 64, 16),
    ] {
        let matrices = |random: &mut Random, format, stack| {
            [[inner, hidden], [inner, hidden], [hidden, inner]]
                .map(|[rows, cols]| random.weights(format, stack, rows, cols))
        };
        let (shared, routed) = (matrices(random, shared, 1), matrices(random, routed, count));
        let router = random.weights(WeightFormat::F32, 1, count, hidden);
        fn run<B: Backend>(
            backend: &B,
            x: &[f32],
            hidden: usize,
            top_k: usize,
            [router, shared, routed]: [&[Weights]; 3],
        ) -> (Vec<u32>, Vec<f32>) {
            let matrix = |weights: &Weights| backend.matrix(weights.packed()).unwrap();
            let all: Vec<_> = shared.iter().chain(routed).map(matrix).collect();
            let [sg, su, sd, rg, ru, rd] = &all[..] else { unreachable!() };
            let weights = MixtureWeights {
                router: &matrix(&router[0]),
                top_k,
                shared: ExpertWeights { gate: sg, up: su, down: sd },
                routed: ExpertWeights { gate: rg, up: ru, down: rd },
            };
            let x = backend.upload(x, hidden).unwrap();
            let (mut gate, mut up) = (backend.empty(), backend.empty());
            let (mut router_logits, mut out) = (backend.empty(), backend.empty());
            let scratch = FeedForwardScratch {
                gate: &mut gate,
                up: &mut up,
                router_logits: &mut router_logits,
            };
            let routing = backend.mixture(&x, weights, scratch, &mut out).unwrap();
            (backend.routed_experts(&routing).unwrap(), backend.to_host(&out).unwrap())
        }
        let x = halves(random, tokens * hidden);
        let weights = [std::slice::from_ref(&router), &shared, &routed];
        let (chosen, expected) = run(cpu(), &x, hidden, top_k, weights);
        let (got_chosen, got) = run(cuda, &x, hidden, top_k, weights);
        assert_eq!(chosen, got_chosen);
        assert_close(&format!("{tokens} tokens"), &expected, &got, ROUNDED);
        for token in [0, tokens - 1] {
            let alone = run(cuda, &x[token * hidden..][..hidden], hidden, top_k, weights).1;
            assert_bits("a row alone", &got[token * hidden..][..hidden], &alone);
        }
    }
}

#[test]
fn attention_over_pages() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(5);
    for (dtype, kv_heads, group, head_dim, tokens, rows) in [
        (KvDtype::Bf16, 1, 5, 128, 1, 1),
        (KvDtype::Bf16, 2, 5, 128, 300, 20),
        (KvDtype::Bf16, 1, 12, 64, 64, 64),
        (KvDtype::Bf16, 1, 1, 64, 577, 3),
        (KvDtype::Int8, 1, 5, 128, 410, 18),
        (KvDtype::Int8, 2, 2, 64, 321, 1),
    ] {
        let geometry = geometry(dtype, kv_heads, head_dim);
        let (cols, width) = (kv_heads * head_dim, kv_heads * head_dim * group);
        let (keys, values) = (random.values(tokens * cols), random.values(tokens * cols));
        let queries = halves(random, (rows + 1) * width);
        let what = format!("{dtype:?} {kv_heads} x {group} x {head_dim}, {rows} of {tokens}");
        let first = tokens - rows + 1;
        // Page 0 stays exact, and those that some row does not see whole.
        let sealed = if dtype == KvDtype::Int8 { 1..(first - 1) / PAGE } else { 0..0 };
        let seen = |pages: &[PageId], spans: &[(std::ops::Range<usize>, usize)]| -> Vec<KvSpan> {
            let span = |(rows, visible): &(std::ops::Range<usize>, usize)| KvSpan {
                rows: rows.clone(),
                pages: pages.to_vec(),
                visible: *visible,
            };
            spans.iter().map(span).collect()
        };
        let (pool, pages) = filled(cpu(), geometry, &keys, &values, sealed.clone());
        let together = [(0..rows, first)];
        let expected = attend(cpu(), &pool, &queries, width, 0.1, &seen(&pages, &together));
        let (pool, pages) = filled(cuda, geometry, &keys, &values, sealed);
        let got = attend(cuda, &pool, &queries, width, 0.1, &seen(&pages, &together));
        assert_close(&what, &expected, &got, ROUNDED);
        let apart: Vec<_> = (0..rows).map(|i| (i..i + 1, first + i)).collect();
        assert_bits(&what, &got, &attend(cuda, &pool, &queries, width, 0.1, &seen(&pages, &apart)));
    }
}

#[test]
fn fused_steps_do_what_their_parts_do() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(6);
    for (rows, cols) in [(1, 4), (3, 5120), (2, 1028)] {
        let (x, y, weight) =
            (random.values(rows * cols), random.values(rows * cols), random.values(cols));
        let parts = {
            let (mut x, y) = (cpu().upload(&x, cols).unwrap(), cpu().upload(&y, cols).unwrap());
            let mut out = cpu().empty();
            cpu().add(&mut x, &y).unwrap();
            cpu().rms_norm(&x, &cpu().vector(&weight).unwrap(), 1e-5, &mut out).unwrap();
            [cpu().to_host(&x).unwrap(), cpu().to_host(&out).unwrap()]
        };
        let (mut x, y) = (cuda.upload(&x, cols).unwrap(), cuda.upload(&y, cols).unwrap());
        let (weight, mut out) = (cuda.vector(&weight).unwrap(), cuda.empty());
        cuda.add_norm(&mut x, &y, &weight, 1e-5, &mut out).unwrap();
        assert_bits("sum", &parts[0], &cuda.to_host(&x).unwrap());
        assert_close("norm", &parts[1], &cuda.to_host(&out).unwrap(), SUMS);
        let mut alone = cuda.empty();
        cuda.rms_norm(&x, &weight, 1e-5, &mut alone).unwrap();
        assert_bits("norm", &cuda.to_host(&out).unwrap(), &cuda.to_host(&alone).unwrap());
    }
}

#[test]
fn queries_and_keys_get_their_positions_in_one_launch() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(7);
    for (rows, kv_heads, group, head_dim, rotary) in [(3, 2, 5, 128, true), (2, 1, 4, 64, false)] {
        let (cols, width) = (kv_heads * head_dim, kv_heads * group * head_dim);
        let geometry = geometry(KvDtype::Bf16, kv_heads, head_dim);
        let (q, k, v) =
            (random.values(rows * width), random.values(rows * cols), random.values(rows * cols));
        let angles = random.values(rows * head_dim / 2);
        let rotations: Vec<f32> = angles.iter().flat_map(|a| [a.cos(), a.sin()]).collect();
        let scales: Vec<f32> = random.values(rows).iter().map(|x| x + 2.0).collect();
        let slots: Vec<Slot> = (0..rows)
            .map(|t| Slot { page: PageId::exact(2 - t as u32 % 2), offset: 61 + t as u32 })
            .collect();

        let mut pool = cpu().kv_pool(geometry).unwrap();
        cpu().kv_reserve(&mut pool, PageForm::Exact, 3).unwrap();
        let upload = |values: &[f32], cols| cpu().upload(values, cols).unwrap();
        let (mut q_cpu, mut k_cpu) = (upload(&q, width), upload(&k, cols));
        if rotary {
            let rotations = upload(&rotations, head_dim);
            for x in [&mut q_cpu, &mut k_cpu] {
                cpu().rope(x, &rotations, head_dim).unwrap();
                cpu().head_norm(x, head_dim, 1e-5).unwrap();
            }
        } else {
            cpu().scale_rows(&mut q_cpu, &upload(&scales, 1)).unwrap();
        }
        cpu().write_kv(&mut pool, 1, &slots, &k_cpu, &upload(&v, cols)).unwrap();

        let mut on_gpu = cuda.kv_pool(geometry).unwrap();
        cuda.kv_reserve(&mut on_gpu, PageForm::Exact, 3).unwrap();
        let upload = |values: &[f32], cols| cuda.upload(values, cols).unwrap();
        let (mut q, mut k, mut v) = (upload(&q, width), upload(&k, cols), upload(&v, cols));
        let (rotations, scales) = (upload(&rotations, head_dim), upload(&scales, 1));
        let placement = Placement {
            head_dim,
            rotations: rotary.then_some(&rotations),
            norm_eps: Some(1e-5),
            scales: (!rotary).then_some(&scales),
        };
        cuda.place([&mut q, &mut k, &mut v], &placement, &mut on_gpu, 1, &slots).unwrap();
        assert_close("queries", &cpu().to_host(&q_cpu).unwrap(), &cuda.to_host(&q).unwrap(), SUMS);
        for slot in &slots {
            let expected = cpu().kv_read(&pool, slot.page).unwrap();
            let got = cuda.kv_read(&on_gpu, slot.page).unwrap();
            for plane in 0..2 * kv_heads {
                let at = ((2 * kv_heads + plane) * PAGE + slot.offset as usize) * head_dim * 2;
                let floats = |bytes: &[u8]| -> Vec<f32> {
                    let pairs = bytes[at..at + head_dim * 2].chunks_exact(2);
                    pairs.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                };
                // One unit in the last place where the norm's last bit decides.
                assert_close("stored", &floats(&expected), &floats(&got), 1e-3);
            }
        }
    }
}

#[test]
fn tokens_are_those_of_the_sampler() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(8);
    for vocab in [1, 33, 3001] {
        let rows = 6;
        // Quarters: many ties, zeros of both signs.
        let mut logits: Vec<f32> =
            random.values(rows * vocab).iter().map(|x| (x * 24.0).round() / 4.0).collect();
        logits[..vocab].iter_mut().for_each(|x| *x *= 1.37);
        for (temperature, top_p, min_p, top_k) in [
            (0.0, 0.5, 0.0, 3),
            (1.0, 1.0, 0.0, 0),
            (0.7, 0.9, 0.0, 0),
            (1.3, 0.95, 0.02, 40),
            (1.0, 1.0, 0.0, 3),
            (0.5, 0.3, 0.1, 500),
            (9.0, 0.999, 0.0, 2999),
            (1e-40, 0.9, 0.0, 0),
        ] {
            let mut samplers: Vec<Sampler> = (0..rows)
                .map(|row| SamplingOptions {
                    // One row of a batch may be greedy.
                    temperature: if row == 4 { 0.0 } else { temperature },
                    top_p,
                    top_k,
                    min_p,
                    seed: random.bits(),
                    ..SamplingOptions::default()
                })
                .map(|options| Sampler::new(options, &[]))
                .collect();
            let draws: Vec<Draw> = samplers.iter().map(|s| s.draw().unwrap()).collect();
            let expected: Vec<u32> = logits
                .chunks_exact(vocab)
                .zip(&mut samplers)
                .map(|(row, sampler)| sampler.sample(row).unwrap().token)
                .collect();
            let tensor = cuda.upload(&logits, vocab).unwrap();
            let chosen = cuda.choose(&tensor, &draws).unwrap().unwrap();
            assert_eq!(cuda.tokens(&chosen).unwrap(), expected, "{vocab} {:?}", draws[0]);
        }
        for (bad, temperature) in
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().zip([0.0, 1.0, 1.0])
        {
            logits[2 * vocab - 1] = bad;
            let tensor = cuda.upload(&logits, vocab).unwrap();
            let draw = Draw { random: 5, temperature, top_p: 1.0, min_p: 0.0, top_k: 0 };
            let chosen = cuda.choose(&tensor, &vec![draw; rows]).unwrap().unwrap();
            let found = cuda.tokens(&chosen).unwrap();
            let none: Vec<bool> = found.iter().map(|&token| token == Draw::NO_TOKEN).collect();
            assert_eq!(none, [false, true, false, false, false, false], "{vocab} {bad}");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let Some(cuda) = tensor_cores() else { return };
    let refused = |text: &str, result: llama4rs_tensor::Result<()>| {
        let error = result.expect_err(text).to_string();
        assert!(error.contains(text), "{error:?} does not contain {text:?}");
    };
    let upload = |values: &[f32], cols: usize| Cuda::upload(cuda, values, cols).unwrap();
    let mut x = upload(&[1.0; 12], 6);
    let (y, mut out) = (upload(&[1.0; 12], 6), cuda.empty());
    let weight = cuda.vector(&[1.0; 6]).unwrap();
    refused("[2, 6]", cuda.add_norm(&mut x, &upload(&[1.0; 6], 6), &weight, 1e-5, &mut out));
    let (mut wide, narrow) = (upload(&[1.0; 16], 8), upload(&[1.0; 8], 4));
    refused("[2, 8]", cuda.add_norm(&mut wide, &narrow, &weight, 1e-5, &mut out));
    cuda.add_norm(&mut x, &y, &weight, 1e-5, &mut out).unwrap();
    let draw = Draw { random: 0, temperature: 1.0, top_p: 0.0, min_p: 0.0, top_k: 0 };
    refused("top_p in (0, 1]", cuda.choose(&x, &[draw; 2]).map(drop));
    refused("2 draws", cuda.choose(&x, &[draw; 1]).map(drop));
    let stack = Random(9).weights(WeightFormat::Int4 { group: 32 }, 1, 8, 24);
    let stack = cuda.matrix(stack.packed()).unwrap();
    refused("[2, 24]", cuda.matmul(&x, &[&stack], &mut [&mut out]));
}
