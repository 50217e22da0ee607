//! Halves of a block that end in the residual stream, and norms whose factors come last: near plain single precision,
//! the same bits for a row in any company, and read by everybody as what they mean.

mod support;

use llama4rs_cuda::{Cuda, Tensor};
use llama4rs_tensor::{
    Backend, Draw, Error, ExpertWeights, FeedForwardScratch, KvDtype, KvGeometry, KvSpan,
    MixtureWeights, Norm, PageForm, PageId, Placement, Residual, Result, Slot, VisionBackend,
    WeightFormat,
};
use proptest::prelude::*;
use support::operations::{halves, PAGE, ROUNDED};
use support::{assert_bits, assert_close, cpu, nvrtc_folders, tensor_cores, Random, Weights};

const EPS: f32 = 1e-5;

/// What a half does before its end.
enum Half {
    Attention {
        width: usize,
        o_proj: Weights,
    },
    Dense([Weights; 3]),
    /// The shared expert and the routed ones.
    Experts {
        router: Weights,
        top_k: usize,
        experts: Box<[[Weights; 3]; 2]>,
    },
}

/// A half of a block, the norms around it, and a matrix of the half behind.
struct Case {
    hidden: usize,
    half: Half,
    /// Of the norm before, and of that behind if there is one.
    norms: [Option<Vec<f32>>; 2],
    next: Weights,
}

/// The residual stream, its norm, that norm's products, and the experts.
#[derive(Debug)]
struct Ended {
    x: Vec<f32>,
    h: Vec<f32>,
    products: Vec<f32>,
    experts: Vec<u32>,
}

/// A case on one device.
struct Loaded<'a, B: Backend> {
    case: &'a Case,
    /// Those of the half, and the next one.
    matrices: Vec<B::Matrix>,
    norms: [Option<B::Vector>; 2],
}

/// The residual stream, its norm, that norm's products, and the experts, on one device.
struct Tensors<B: Backend>([B::Tensor; 3], Option<B::Routing>);

impl<B: Backend> Tensors<B> {
    fn read(&self, backend: &B) -> Ended {
        let [x, h, products] = self.0.each_ref().map(|x| backend.to_host(x).unwrap());
        let experts = self.1.as_ref().map(|routing| backend.routed_experts(routing).unwrap());
        Ended { x, h, products, experts: experts.unwrap_or_default() }
    }
}

impl<B: Backend> Loaded<'_, B> {
    fn run(&self, backend: &B, x: &[f32], inputs: &[f32]) -> Result<Tensors<B>> {
        let Case { hidden, half, .. } = self.case;
        let mut x = backend.upload(x, *hidden)?;
        let (mut h, mut delta) = (backend.empty(), backend.empty());
        let [first, second] = self.norms.each_ref().map(Option::as_ref);
        backend.rms_norm(&x, first.unwrap(), EPS, &mut h)?;
        let norm = second.map(|weight| Norm { weight, eps: EPS });
        let residual = Residual { x: &mut x, h: &mut h, delta: &mut delta, norm };
        let mut room = [backend.empty(), backend.empty(), backend.empty()];
        let [gate, up, router_logits] = &mut room;
        let expert = |first: usize| ExpertWeights {
            gate: &self.matrices[first],
            up: &self.matrices[first + 1],
            down: &self.matrices[first + 2],
        };
        let mut routing = None;
        match half {
            Half::Attention { width, .. } => {
                let inputs = backend.upload(inputs, *width)?;
                backend.matmul_add(&inputs, &self.matrices[0], residual)?;
            }
            Half::Dense(_) => backend.feed_forward_add(&expert(0), [gate, up], residual)?,
            &Half::Experts { top_k, .. } => {
                let (shared, routed, router) = (expert(0), expert(3), &self.matrices[6]);
                let weights = MixtureWeights { router, top_k, shared, routed };
                let scratch = FeedForwardScratch { gate, up, router_logits };
                routing = Some(backend.mixture_add(weights, scratch, residual)?);
            }
        }
        let mut products = backend.empty();
        backend.matmul(&h, &[&self.matrices[self.matrices.len() - 1]], &mut [&mut products])?;
        Ok(Tensors([x, h, products], routing))
    }
}

impl Case {
    fn random(
        random: &mut Random,
        [hidden, inner]: [usize; 2],
        formats: [WeightFormat; 2],
        (kind, count, top_k): (usize, usize, usize),
        follows: bool,
    ) -> Self {
        let [gated, down] = formats;
        let mut layer = |stack, gated, down| {
            [(inner, hidden, gated), (inner, hidden, gated), (hidden, inner, down)]
                .map(|(rows, cols, format)| random.weights(format, stack, rows, cols))
        };
        let half = match kind {
            0 => Half::Dense(layer(1, gated, down)),
            1 => Half::Attention { width: inner, o_proj: random.weights(down, 1, hidden, inner) },
            _ => Half::Experts {
                experts: Box::new([layer(1, gated, down), layer(count, gated, gated)]),
                router: random.weights(WeightFormat::F32, 1, count, hidden),
                top_k,
            },
        };
        let mut norm = || Some(random.values(hidden).iter().map(|w| w + 1.5).collect());
        let norms = [norm(), norm().filter(|_| follows)];
        Self { hidden, half, norms, next: random.weights(gated, 1, 24, hidden) }
    }

    fn load<B: Backend>(&self, backend: &B) -> Loaded<'_, B> {
        let matrices = match &self.half {
            Half::Attention { o_proj, .. } => vec![o_proj],
            Half::Dense(weights) => weights.iter().collect(),
            Half::Experts { router, experts, .. } => {
                experts.iter().flatten().chain([router]).collect()
            }
        };
        let vector = |weight: &Vec<f32>| backend.vector(weight).unwrap();
        Loaded {
            case: self,
            matrices: matrices
                .into_iter()
                .chain([&self.next])
                .map(|weights| backend.matrix(weights.packed()).unwrap())
                .collect(),
            norms: self.norms.each_ref().map(|weight| weight.as_ref().map(vector)),
        }
    }

    /// The end of the half for rows of `x`; `inputs` are those of the last matrix of attention.
    fn run<B: Backend>(&self, backend: &B, x: &[f32], inputs: &[f32]) -> Ended {
        let loaded = self.load(backend);
        let tensors = loaded.run(backend, x, inputs).unwrap();
        tensors.read(backend)
    }

    /// Compares all rows with the CPU, and rows in other company with all.
    fn check(&self, cuda: &Cuda, random: &mut Random, rows: usize, parts: &[usize]) {
        let (hidden, width) = match &self.half {
            Half::Attention { width, .. } => (self.hidden, *width),
            _ => (self.hidden, 1),
        };
        let (x, inputs) = (halves(random, rows * hidden), halves(random, rows * width));
        let expected = self.run(cpu(), &x, &inputs);
        let all = self.run(cuda, &x, &inputs);
        assert_eq!(expected.experts, all.experts);
        for (what, expected, got) in [
            ("sum", &expected.x, &all.x),
            ("norm", &expected.h, &all.h),
            ("products", &expected.products, &all.products),
        ] {
            assert_close(what, expected, got, 2.0 * ROUNDED);
        }
        for &count in parts.iter().filter(|&&count| count <= rows) {
            let from = (rows - count) * (count % 2);
            let range = |width: usize| from * width..(from + count) * width;
            let some = self.run(cuda, &x[range(hidden)], &inputs[range(width)]);
            let what = format!("{count} of {rows} rows");
            assert_bits(&what, &all.x[range(hidden)], &some.x);
            assert_bits(&what, &all.h[range(hidden)], &some.h);
            assert_bits(&what, &all.products[range(24)], &some.products);
            assert_eq!(all.experts[range(all.experts.len() / rows)], some.experts);
        }
    }
}

fn format() -> impl Strategy<Value = WeightFormat> {
    prop::sample::select(vec![
        WeightFormat::Int4 { group: 64 },
        WeightFormat::Int4 { group: 128 },
        WeightFormat::Int8 { group: 32 },
        WeightFormat::Bf16,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24, failure_persistence: None, max_shrink_iters: 8, ..Default::default()
    })]
    #[test]
    fn halves_end_as_on_the_cpu(
        hidden in (1usize..40).prop_map(|n| n * 8),
        inner in (1usize..30).prop_map(|n| n * 8),
        formats in [format(), format()],
        alike in prop::bool::weighted(0.7),
        kind in 0usize..4,
        (count, top_k) in (1usize..6).prop_flat_map(|count| (Just(count), 1..=count.min(2))),
        follows in prop::bool::weighted(0.8),
        rows in 1usize..=20,
        part in 1usize..=16,
        seed in any::<u64>(),
    ) {
        let Some(cuda) = tensor_cores() else { return Ok(()) };
        let random = &mut Random(seed);
        let formats = if alike { [formats[0]; 2] } else { formats };
        let case = Case::random(random, [hidden, inner], formats, (kind, count, top_k), follows);
        case.check(cuda, random, rows, &[1, part]);
    }
}

/// Rows on both sides of every change of kernels.
#[test]
fn a_row_ends_with_the_same_bits_in_any_company() {
    let Some(cuda) = tensor_cores() else { return };
    let random = &mut Random(20);
    let int4 = WeightFormat::Int4 { group: 64 };
    for (kind, hidden, count, top_k) in
        [(0, 72, 1, 1), (1, 264, 1, 1), (2, 328, 3, 1), (2, 136, 1, 1), (2, 64, 17, 2)]
    {
        let case = Case::random(random, [hidden, 48], [int4; 2], (kind, count, top_k), true);
        case.check(cuda, random, 70, &[1, 7, 8, 9, 16, 17, 33]);
    }
}

/// Blocks of a launch count themselves on the device: however a step ends, the next one is right.
#[test]
fn a_step_that_fails_leaves_no_counts_behind() {
    if tensor_cores().is_none() {
        return;
    }
    let random = &mut Random(26);
    let int4 = WeightFormat::Int4 { group: 128 };
    for graphs in [true, false] {
        let cuda = Cuda::open(0, &nvrtc_folders()).unwrap();
        let cuda = cuda.with_tensor_cores(true).unwrap().with_graphs(graphs);
        let case = Case::random(random, [104, 40], [int4; 2], (2, 5, 2), true);
        let loaded = case.load(&cuda);
        for rows in [3, 3, 12, 3, 3, 40, 12, 12] {
            let x = halves(random, rows * 104);
            let expected = loaded.run(&cuda, &x, &[]).unwrap().read(&cuda);
            let refused = cuda.step(rows, || {
                loaded.run(&cuda, &x, &[])?;
                Err::<(), Error>(Error::shape("test", "another", "one"))
            });
            assert!(refused.is_err());
            let step = cuda.step(rows, || loaded.run(&cuda, &x, &[])).unwrap();
            let got = step.read(&cuda);
            assert_eq!(expected.experts, got.experts);
            assert_bits("sum", &expected.x, &got.x);
            assert_bits("products", &expected.products, &got.products);
        }
    }
}

/// A norm of five rows, and its values.
fn norm(cuda: &Cuda, cols: usize) -> (Tensor, Tensor) {
    let random = &mut Random(21);
    let x = Cuda::upload(cuda, &random.values(5 * cols), cols).unwrap();
    let weight = cuda.vector(&random.values(cols)).unwrap();
    let mut out = cuda.empty();
    cuda.rms_norm(&x, &weight, EPS, &mut out).unwrap();
    let plain = cuda.upload(&cuda.to_host(&out).unwrap(), cols).unwrap();
    (out, plain)
}

#[test]
fn everybody_reads_a_norm_as_its_values() {
    let Some(cuda) = tensor_cores() else { return };
    const COLS: usize = 64;
    let other = || Cuda::upload(cuda, &Random(22).values(5 * COLS), COLS).unwrap();
    let vector = || cuda.vector(&Random(23).values(COLS)).unwrap();
    let f32s = |stack, rows| {
        let weights = Random(24).weights(WeightFormat::F32, stack, rows, COLS);
        cuda.matrix(weights.packed()).unwrap()
    };
    let host = |x: &Tensor| cuda.to_host(x).unwrap();
    let words = |words: Vec<u32>| words.into_iter().map(|word| word as f32).collect();
    let into = |run: &dyn Fn(&mut Tensor)| {
        let mut out = cuda.empty();
        run(&mut out);
        host(&out)
    };
    let on = |mut x: Tensor, run: &dyn Fn(&mut Tensor)| {
        run(&mut x);
        host(&x)
    };
    let geometry = KvGeometry {
        num_layers: 1,
        num_kv_heads: 1,
        head_dim: COLS,
        page_tokens: PAGE,
        dtype: KvDtype::Bf16,
    };
    let slots: Vec<Slot> = (0..5).map(|offset| Slot { page: PageId::exact(0), offset }).collect();
    let pool = |keys: &Tensor, values: &Tensor| {
        let mut pool = cuda.kv_pool(geometry).unwrap();
        cuda.kv_reserve(&mut pool, PageForm::Exact, 1).unwrap();
        cuda.write_kv(&mut pool, 0, &slots, keys, values).unwrap();
        pool
    };
    let attended = |pool: &llama4rs_cuda::KvPages, queries: &Tensor| {
        let span = KvSpan { rows: 0..5, pages: vec![PageId::exact(0)], visible: 1 };
        into(&|out| cuda.attend(pool, 0, queries, std::slice::from_ref(&span), 0.2, out).unwrap())
    };
    let stack = f32s(3, COLS);
    let expert = || ExpertWeights { gate: &stack, up: &stack, down: &stack };
    let routing = |logits: &Tensor| cuda.route(logits, 2).unwrap();
    let three = || cuda.upload(&Random(25).values(15), 3).unwrap();
    let placed = |mut q: Tensor, rotations: &Tensor| {
        let (mut k, mut v) = (other(), other());
        let placement = Placement {
            head_dim: COLS,
            rotations: Some(rotations),
            norm_eps: Some(EPS),
            scales: None,
        };
        let mut pool = pool(&k, &v);
        cuda.place([&mut q, &mut k, &mut v], &placement, &mut pool, 0, &slots).unwrap();
        host(&q)
    };
    let square = Random(27).weights(WeightFormat::Int4 { group: 64 }, 1, COLS, COLS);
    let square = cuda.matrix(square.packed()).unwrap();
    let added = |mut x: Tensor, inputs: &Tensor| {
        let (mut h, mut delta, weight) = (cuda.empty(), cuda.empty(), vector());
        let norm = Some(Norm { weight: &weight, eps: EPS });
        let residual = Residual { x: &mut x, h: &mut h, delta: &mut delta, norm };
        cuda.matmul_add(inputs, &square, residual).unwrap();
        [host(&x), host(&h)].concat()
    };
    type Reader<'a> = (&'a str, Box<dyn Fn(Tensor) -> Vec<f32> + 'a>);
    let readers: Vec<Reader<'_>> = vec![
        ("to_host", Box::new(|x| host(&x))),
        ("rows_to_host", Box::new(|x| cuda.rows_to_host(&x, 1..3).unwrap())),
        ("select_rows", Box::new(|x| into(&|out| cuda.select_rows(&x, &[4, 0, 4], out).unwrap()))),
        ("add to", Box::new(|x| on(x, &|x| cuda.add(x, &other()).unwrap()))),
        ("add", Box::new(|x| on(other(), &|to| cuda.add(to, &x).unwrap()))),
        ("rms_norm", Box::new(|x| into(&|out| cuda.rms_norm(&x, &vector(), EPS, out).unwrap()))),
        ("matmul", Box::new(|x| into(&|out| cuda.matmul(&x, &[&f32s(1, 9)], &mut [out]).unwrap()))),
        ("swiglu of", Box::new(|x| on(x, &|x| cuda.swiglu(x, &other()).unwrap()))),
        ("swiglu", Box::new(|x| on(other(), &|gate| cuda.swiglu(gate, &x).unwrap()))),
        ("rope of", Box::new(|x| on(x, &|x| cuda.rope(x, &other(), COLS).unwrap()))),
        ("rope", Box::new(|x| on(other(), &|to| cuda.rope(to, &x, COLS).unwrap()))),
        ("head_norm", Box::new(|x| on(x, &|x| cuda.head_norm(x, 16, EPS).unwrap()))),
        (
            "scale_rows",
            Box::new(|x| {
                let scales = cuda.upload(&[2.0, 0.5, 3.0, 1.0, -1.0], 1).unwrap();
                on(x, &|x| cuda.scale_rows(x, &scales).unwrap())
            }),
        ),
        ("keys", Box::new(|x| attended(&pool(&x, &other()), &other()))),
        ("values", Box::new(|x| attended(&pool(&other(), &x), &other()))),
        ("queries", Box::new(|x| attended(&pool(&other(), &other()), &x))),
        ("route", Box::new(|x| words(cuda.routed_experts(&routing(&x)).unwrap()))),
        (
            "experts of",
            Box::new(|x| {
                on(other(), &|out| cuda.experts(&x, &routing(&three()), expert(), out).unwrap())
            }),
        ),
        (
            "experts to",
            Box::new(|x| {
                on(x, &|out| cuda.experts(&other(), &routing(&three()), expert(), out).unwrap())
            }),
        ),
        ("queries to place", Box::new(|x| placed(x, &other()))),
        ("rotations", Box::new(|x| placed(other(), &x))),
        ("matmul_add to", Box::new(|x| added(x, &other()))),
        ("matmul_add", Box::new(|x| added(other(), &x))),
        (
            "choose",
            Box::new(|x| {
                let draw = Draw { random: 9, temperature: 1.0, top_p: 1.0, min_p: 0.0, top_k: 0 };
                let chosen = cuda.choose(&x, &[draw; 5]).unwrap().unwrap();
                words(cuda.tokens(&chosen).unwrap())
            }),
        ),
        (
            "add_norm to",
            Box::new(|mut x| {
                let mut out = cuda.empty();
                cuda.add_norm(&mut x, &other(), &vector(), EPS, &mut out).unwrap();
                [host(&x), host(&out)].concat()
            }),
        ),
        (
            "add_norm",
            Box::new(|x| {
                let (mut to, mut out) = (other(), cuda.empty());
                cuda.add_norm(&mut to, &x, &vector(), EPS, &mut out).unwrap();
                [host(&to), host(&out)].concat()
            }),
        ),
        (
            "layer_norm",
            Box::new(|x| into(&|out| cuda.layer_norm(&x, &vector(), &vector(), EPS, out).unwrap())),
        ),
        ("add_bias", Box::new(|x| on(x, &|x| cuda.add_bias(x, &vector()).unwrap()))),
        ("gelu", Box::new(|x| on(x, &|x| cuda.gelu(x, None).unwrap()))),
        ("reshape", Box::new(|x| on(x, &|x| cuda.reshape(x, 16).unwrap()))),
        (
            "replace_rows of",
            Box::new(|x| on(x, &|x| cuda.replace_rows(x, &[3, 0, 1, 2, 3], &other()).unwrap())),
        ),
        (
            "replace_rows",
            Box::new(|x| on(other(), &|to| cuda.replace_rows(to, &[3, 0, 1, 2, 3], &x).unwrap())),
        ),
        (
            "attend_all",
            Box::new(|x| {
                let next = f32s(1, 8);
                into(&|out| {
                    cuda.attend_all(&x, &x, &x, 5, 16, 0.2, &next, out).unwrap();
                })
            }),
        ),
    ];
    for (what, read) in &readers {
        let (normed, plain) = norm(cuda, COLS);
        assert_bits(what, &read(plain), &read(normed));
    }
}
