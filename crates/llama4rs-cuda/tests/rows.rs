//! Operations on rows, products and experts, beside the CPU.

mod support;

use llama4rs_tensor::{Backend, ExpertWeights, VisionBackend, WeightFormat};
use support::{assert_bits, assert_close, cpu, cuda, Random, FORMATS};

/// Single precision in another order of additions.
const TOLERANCE: f64 = 2e-6;
/// Rows and columns that divide nothing, and some that do.
const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 7), (2, 256), (5, 300), (17, 64), (1, 1030)];

/// Runs one operation on both devices and compares.
fn same(what: &str, run: impl Fn(&dyn Device) -> Vec<f32>) {
    let Some(cuda) = cuda() else { return };
    assert_close(what, &run(cpu()), &run(cuda), TOLERANCE);
}

/// Operations on host values, so that one closure can run on any backend.
trait Device {
    fn values(&self, op: Op<'_>, x: &[f32], cols: usize) -> Vec<f32>;
}

enum Op<'a> {
    Add(&'a [f32]),
    Swiglu(&'a [f32]),
    ScaleRows(&'a [f32]),
    SelectRows(&'a [u32]),
    ReplaceRows(&'a [u32], &'a [f32]),
    AddBias(&'a [f32]),
    Gelu(Option<&'a [f32]>),
    RmsNorm(&'a [f32]),
    LayerNorm(&'a [f32], &'a [f32]),
    HeadNorm(usize),
    Rope(&'a [f32], usize),
}

impl<B: VisionBackend> Device for B {
    fn values(&self, op: Op<'_>, x: &[f32], cols: usize) -> Vec<f32> {
        let mut x = self.upload(x, cols).unwrap();
        // An output of another shape: it takes the right one.
        let mut out = self.upload(&[f32::NAN; 6], 3).unwrap();
        let tensor = |values: &[f32], cols: usize| self.upload(values, cols).unwrap();
        let vector = |values: &[f32]| self.vector(values).unwrap();
        let in_place = match op {
            Op::Add(y) => self.add(&mut x, &tensor(y, cols)),
            Op::Swiglu(up) => self.swiglu(&mut x, &tensor(up, cols)),
            Op::ScaleRows(scales) => self.scale_rows(&mut x, &tensor(scales, 1)),
            Op::ReplaceRows(rows, with) => self.replace_rows(&mut x, rows, &tensor(with, cols)),
            Op::AddBias(bias) => self.add_bias(&mut x, &vector(bias)),
            Op::Gelu(bias) => self.gelu(&mut x, bias.map(vector).as_ref()),
            Op::HeadNorm(head_dim) => self.head_norm(&mut x, head_dim, 1e-5),
            Op::Rope(angles, head_dim) => self.rope(&mut x, &tensor(angles, head_dim), head_dim),
            Op::SelectRows(rows) => {
                self.select_rows(&x, rows, &mut out).unwrap();
                return self.to_host(&out).unwrap();
            }
            Op::RmsNorm(weight) => {
                self.rms_norm(&x, &vector(weight), 1e-5, &mut out).unwrap();
                return self.to_host(&out).unwrap();
            }
            Op::LayerNorm(weight, bias) => {
                self.layer_norm(&x, &vector(weight), &vector(bias), 1e-5, &mut out).unwrap();
                return self.to_host(&out).unwrap();
            }
        };
        in_place.unwrap();
        self.to_host(&x).unwrap()
    }
}

#[test]
fn elementwise_operations() {
    let random = &mut Random(1);
    for (rows, cols) in SHAPES {
        let x: Vec<f32> = random.values(rows * cols).iter().map(|x| x * 8.0).collect();
        let (y, row, scales) =
            (random.values(rows * cols), random.values(cols), random.values(rows));
        same("add", |device| device.values(Op::Add(&y), &x, cols));
        same("swiglu", |device| device.values(Op::Swiglu(&y), &x, cols));
        same("gelu", |device| device.values(Op::Gelu(None), &x, cols));
        same("gelu", |device| device.values(Op::Gelu(Some(&row)), &x, cols));
        same("scale_rows", |device| device.values(Op::ScaleRows(&scales), &x, cols));
        same("add_bias", |device| device.values(Op::AddBias(&row), &x, cols));
        same("rms_norm", |device| device.values(Op::RmsNorm(&row), &x, cols));
        same("layer_norm", |device| device.values(Op::LayerNorm(&row, &row), &y, cols));
    }
}

#[test]
fn moves_of_rows() {
    let random = &mut Random(2);
    let (x, with) = (random.values(9 * 70), random.values(5 * 70));
    for rows in [&[8u32, 0, 3, 3, 1][..], &[4, 4, 4, 4, 4], &[0, 1, 2, 3, 4]] {
        same("select_rows", |device| device.values(Op::SelectRows(rows), &x, 70));
        same("replace_rows", |device| device.values(Op::ReplaceRows(rows, &with), &x, 70));
    }
    same("no rows", |device| device.values(Op::SelectRows(&[]), &x, 70));
}

#[test]
fn heads() {
    let random = &mut Random(3);
    for (rows, heads, head_dim) in [(1, 1, 2), (5, 3, 6), (3, 5, 64), (2, 2, 128)] {
        let x = random.values(rows * heads * head_dim);
        let angles: Vec<f32> =
            random.values(rows * head_dim / 2).iter().flat_map(|a| [a.cos(), a.sin()]).collect();
        let cols = heads * head_dim;
        same("rope", |device| device.values(Op::Rope(&angles, head_dim), &x, cols));
        same("head_norm", |device| device.values(Op::HeadNorm(head_dim), &x, cols));
    }
}

#[test]
fn embedding_is_exact() {
    let Some(cuda) = cuda() else { return };
    let random = &mut Random(4);
    for format in FORMATS {
        for (rows, cols) in [(1, 1), (50, 33), (17, 200)] {
            let table = random.weights(format, 1, rows, cols);
            let ids: Vec<u32> = (0..9).map(|_| random.below(rows) as u32).collect();
            let plain = table.packed().decode(0);
            let expected: Vec<f32> =
                ids.iter().flat_map(|&id| plain[id as usize * cols..][..cols].to_vec()).collect();
            let mut out = cuda.empty();
            cuda.embed(&cuda.matrix(table.packed()).unwrap(), &ids, &mut out).unwrap();
            assert_bits(&format.to_string(), &expected, &cuda.to_host(&out).unwrap());
        }
    }
}

fn matmul<B: Backend>(
    backend: &B,
    x: &[f32],
    cols: usize,
    weights: &[&support::Weights],
) -> Vec<Vec<f32>> {
    let x = backend.upload(x, cols).unwrap();
    let weights: Vec<_> =
        weights.iter().map(|weights| backend.matrix(weights.packed()).unwrap()).collect();
    let mut outs: Vec<_> = weights.iter().map(|_| backend.empty()).collect();
    let (weights, mut slots): (Vec<_>, Vec<_>) =
        (weights.iter().collect(), outs.iter_mut().collect());
    backend.matmul(&x, &weights, &mut slots).unwrap();
    outs.iter().map(|out| backend.to_host(out).unwrap()).collect()
}

#[test]
fn products_of_every_format() {
    let Some(cuda) = cuda() else { return };
    let random = &mut Random(5);
    for format in FORMATS {
        for (tokens, rows, cols) in
            [(1, 17, 40), (3, 33, 129), (9, 16, 200), (2, 5, 1), (1, 48, 640)]
        {
            let (first, second) =
                (random.weights(format, 1, rows, cols), random.weights(format, 1, 2 * rows, cols));
            let x = random.values(tokens * cols);
            let expected = matmul(cpu(), &x, cols, &[&first, &second]);
            let got = matmul(cuda, &x, cols, &[&first, &second]);
            for (expected, got) in expected.iter().zip(&got) {
                assert_close(&format!("{format} {tokens} {rows} {cols}"), expected, got, TOLERANCE);
            }
            for (t, row) in x.chunks_exact(cols).enumerate() {
                let alone = matmul(cuda, row, cols, &[&first]);
                assert_bits("a row alone", &got[0][t * rows..][..rows], &alone[0]);
            }
        }
    }
}

fn experts<B: Backend>(
    backend: &B,
    case: &Case,
    x: &[f32],
    logits: &[f32],
    out: &[f32],
) -> (Vec<u32>, Vec<f32>) {
    let x = backend.upload(x, case.hidden).unwrap();
    let logits = backend.upload(logits, case.experts).unwrap();
    let routing = backend.route(&logits, case.top_k).unwrap();
    let [gate, up, down] =
        [&case.gate, &case.up, &case.down].map(|w| backend.matrix(w.packed()).unwrap());
    let mut out = backend.upload(out, case.hidden).unwrap();
    let weights = ExpertWeights { gate: &gate, up: &up, down: &down };
    backend.experts(&x, &routing, weights, &mut out).unwrap();
    (backend.routed_experts(&routing).unwrap(), backend.to_host(&out).unwrap())
}

struct Case {
    hidden: usize,
    experts: usize,
    top_k: usize,
    gate: support::Weights,
    up: support::Weights,
    down: support::Weights,
}

#[test]
fn experts_as_on_the_cpu() {
    let Some(cuda) = cuda() else { return };
    let random = &mut Random(6);
    for (format, tokens, experts_count, top_k, hidden, intermediate) in [
        (WeightFormat::F32, 1, 1, 1, 8, 16),
        (WeightFormat::Int4 { group: 64 }, 7, 16, 1, 64, 48),
        (WeightFormat::Int8 { group: 32 }, 40, 5, 2, 33, 17),
        (WeightFormat::Bf16, 3, 40, 3, 20, 7),
    ] {
        let stack = experts_count;
        let case = Case {
            hidden,
            experts: stack,
            top_k,
            gate: random.weights(format, stack, intermediate, hidden),
            up: random.weights(format, stack, intermediate, hidden),
            down: random.weights(format, stack, hidden, intermediate),
        };
        let (x, out) = (random.values(tokens * hidden), random.values(tokens * hidden));
        let mut logits = random.values(tokens * stack);
        // Ties, what is not a number, and one expert that takes many rows.
        for row in logits.chunks_exact_mut(stack).step_by(2) {
            row[stack / 2] = 3.0;
            row[stack - 1] = 3.0;
            row[0] = if stack > 3 { f32::NAN } else { row[0] };
        }
        let (chosen, expected) = experts(cpu(), &case, &x, &logits, &out);
        let (got_chosen, got) = experts(cuda, &case, &x, &logits, &out);
        assert_eq!(chosen, got_chosen, "{format}");
        assert_close(&format!("experts {format}"), &expected, &got, TOLERANCE);
        for t in 0..tokens {
            let row = |values: &[f32], width: usize| values[t * width..][..width].to_vec();
            let (x, out) = (row(&x, hidden), row(&out, hidden));
            let (_, alone) = experts(cuda, &case, &x, &row(&logits, stack), &out);
            assert_bits("a row alone", &row(&got, hidden), &alone);
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let Some(cuda) = cuda() else { return };
    let random = &mut Random(7);
    let mut out = cuda.empty();
    let mut x = cuda.upload(&random.values(60), 20).unwrap();
    let matrix = |random: &mut Random, stack| {
        cuda.matrix(random.weights(WeightFormat::F32, stack, 8, 24).packed()).unwrap()
    };
    let (weights, stack) = (matrix(random, 1), matrix(random, 2));
    let refused = |text: &str, result: llama4rs_tensor::Result<()>| {
        let error = result.expect_err(text).to_string();
        assert!(error.contains(text), "{error:?} does not contain {text:?}");
    };
    refused("multiple of 3", cuda.upload(&[0.0; 7], 3).map(drop));
    refused("ids below 8", cuda.embed(&weights, &[8], &mut out));
    refused("a stack of 2", cuda.embed(&stack, &[0], &mut out));
    refused("rows below 3", cuda.select_rows(&x, &[3], &mut out));
    refused("[3, 24]", cuda.matmul(&x, &[&weights], &mut [&mut out]));
    refused("1 outputs", cuda.matmul(&x, &[&weights], &mut []));
    refused("1 to 20 experts", cuda.route(&x, 21).map(drop));
    refused("heads of 8", cuda.head_norm(&mut x, 8, 1e-5));
    refused("a multiple of 7", cuda.reshape(&mut x, 7));
    assert_eq!(cuda.shape(&x), (3, 20));
}
