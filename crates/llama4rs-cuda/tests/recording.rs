//! What a decode step costs the host: `cargo test --release --test recording -- --ignored --nocapture`.
//!
//! Layers of Scout's form, one sequence of 8192 tokens; the matrices are small, which the host does not notice.

mod support;

use std::time::Duration;

use llama4rs_cuda::{Cuda, KvPages, Matrix, Routing, Tensor, Vector};
use llama4rs_tensor::{
    Backend, Draw, Error, ExpertWeights, FeedForwardScratch, KvDtype, KvGeometry, KvSpan,
    MixtureWeights, Norm, PageForm, PageId, Placement, Residual, Result, Slot, WeightFormat,
};
use support::{cuda, nvrtc_folders, Random};

const LAYERS: usize = 48;
const HIDDEN: usize = 128;
const HEADS: usize = 5;
const HEAD_DIM: usize = 128;
const EXPERTS: usize = 16;
const TOKENS: usize = 8192;
const PAGE: usize = 64;
const INT4: WeightFormat = WeightFormat::Int4 { group: 128 };
const EPS: f32 = 1e-5;

struct SwiGlu {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl SwiGlu {
    fn weights(&self) -> ExpertWeights<'_, Matrix> {
        ExpertWeights { gate: &self.gate, up: &self.up, down: &self.down }
    }
}

struct Layer {
    qkv: [Matrix; 3],
    o: Matrix,
    norms: [Vector; 2],
    router: Matrix,
    shared: SwiGlu,
    routed: SwiGlu,
    is_rotary: bool,
    /// Among those of its pool.
    index: usize,
}

/// The buffers of a step.
#[derive(Default)]
struct Workspace {
    x: Tensor,
    h: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: Tensor,
    gate: Tensor,
    up: Tensor,
    logits: Tensor,
}

struct Model {
    table: Matrix,
    layers: Vec<Layer>,
    norm: Vector,
    lm_head: Matrix,
    /// Of chunked and of global layers.
    pools: [KvPages; 2],
    spans: [Vec<KvSpan>; 2],
    slots: [Vec<Slot>; 2],
    workspace: Workspace,
}

impl Model {
    fn new(cuda: &Cuda) -> Self {
        let random = &mut Random(1);
        let mut matrix = |format, stack, rows, cols| {
            cuda.matrix(random.weights(format, stack, rows, cols).packed()).unwrap()
        };
        let norm = || cuda.vector(&[1.0; HIDDEN]).unwrap();
        let mut layer = |layer: usize| {
            let is_rotary = layer % 4 != 3;
            let mut swiglu = |stack| SwiGlu {
                gate: matrix(INT4, stack, 128, HIDDEN),
                up: matrix(INT4, stack, 128, HIDDEN),
                down: matrix(INT4, stack, HIDDEN, 128),
            };
            let (shared, routed) = (swiglu(1), swiglu(EXPERTS));
            Layer {
                qkv: [HEADS, 1, 1].map(|heads| matrix(INT4, 1, heads * HEAD_DIM, HIDDEN)),
                o: matrix(INT4, 1, HIDDEN, HEADS * HEAD_DIM),
                norms: [norm(), norm()],
                router: matrix(WeightFormat::F32, 1, EXPERTS, HIDDEN),
                shared,
                routed,
                is_rotary,
                index: if is_rotary { layer - layer / 4 } else { layer / 4 },
            }
        };
        let layers: Vec<Layer> = (0..LAYERS).map(&mut layer).collect();
        let pages: Vec<PageId> = (0..TOKENS / PAGE).map(|i| PageId::exact(i as u32)).collect();
        let pool = |num_layers| {
            let geometry = KvGeometry {
                num_layers,
                num_kv_heads: 1,
                head_dim: HEAD_DIM,
                page_tokens: PAGE,
                dtype: KvDtype::Bf16,
            };
            let mut pool = cuda.kv_pool(geometry).unwrap();
            cuda.kv_reserve(&mut pool, PageForm::Exact, pages.len()).unwrap();
            pool
        };
        let span = || vec![KvSpan { rows: 0..1, pages: pages.clone(), visible: TOKENS }];
        let slot = || vec![Slot { page: pages[pages.len() - 1], offset: PAGE as u32 - 1 }];
        Self {
            table: matrix(WeightFormat::Bf16, 1, 256, HIDDEN),
            layers,
            norm: norm(),
            lm_head: matrix(WeightFormat::Int8 { group: 128 }, 1, 256, HIDDEN),
            pools: [pool(LAYERS - LAYERS / 4), pool(LAYERS / 4)],
            spans: [span(), span()],
            slots: [slot(), slot()],
            workspace: Workspace::default(),
        }
    }

    /// The operations of a step, as the model calls them.
    fn run(&mut self, cuda: &Cuda) -> Result<Vec<Routing>> {
        let Self { table, layers, norm, lm_head, pools, spans, slots, workspace } = self;
        let Workspace { x, h, delta, q, k, v, heads, gate, up, logits } = workspace;
        let rotations = cuda.upload(&[0.5; HEAD_DIM], HEAD_DIM)?;
        let scales = cuda.upload(&[1.0], 1)?;
        cuda.embed(table, &[7], x)?;
        cuda.rms_norm(x, &layers[0].norms[0], EPS, h)?;
        let mut routings = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            let [q_proj, k_proj, v_proj] = &layer.qkv;
            cuda.matmul(h, &[q_proj, k_proj, v_proj], &mut [q, k, v])?;
            let which = usize::from(!layer.is_rotary);
            let placement = Placement {
                head_dim: HEAD_DIM,
                rotations: layer.is_rotary.then_some(&rotations),
                norm_eps: layer.is_rotary.then_some(EPS),
                scales: (!layer.is_rotary).then_some(&scales),
            };
            cuda.place([q, k, v], &placement, &mut pools[which], layer.index, &slots[which])?;
            cuda.attend(&pools[which], layer.index, q, &spans[which], 0.088, heads)?;
            let norm = |weight| Some(Norm { weight, eps: EPS });
            let half = Residual { x, h, delta, norm: norm(&layer.norms[1]) };
            cuda.matmul_add(heads, &layer.o, half)?;
            let weights = MixtureWeights {
                router: &layer.router,
                top_k: 1,
                shared: layer.shared.weights(),
                routed: layer.routed.weights(),
            };
            let scratch = FeedForwardScratch { gate, up, router_logits: logits };
            let next = layers.get(i + 1).and_then(|next| norm(&next.norms[0]));
            let half = Residual { x, h, delta, norm: next };
            routings.push(cuda.mixture_add(weights, scratch, half)?);
        }
        cuda.rms_norm(x, norm, EPS, h)?;
        cuda.matmul(h, &[lm_head], &mut [logits])?;
        let draw = Draw { random: 0, temperature: 0.0, top_p: 1.0, min_p: 0.0, top_k: 0 };
        let tokens = cuda.choose(logits, &[draw])?;
        drop(tokens);
        Ok(routings)
    }
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Median and least of `rounds` calls, in microseconds.
fn timed(rounds: usize, mut call: impl FnMut()) -> (f64, f64) {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = thread_time();
            call();
            (thread_time() - start).as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[rounds / 2], times[0])
}

/// Whether launches do nothing from now on; `false` on a real device.
fn skip_kernels(skip: bool) -> bool {
    type Skip = unsafe extern "C" fn(i32);
    // SAFETY: the driver is loaded already; the function is the stand-in's, of this type.
    unsafe {
        let Ok(driver) = libloading::Library::new("libcuda.so.1") else { return false };
        let Ok(function) = driver.get::<Skip>(b"llama4rs_sim_skip_kernels") else { return false };
        function(skip.into());
    }
    true
}

#[test]
#[ignore = "a measurement"]
fn a_step_of_48_layers() {
    if cuda().is_none() || !skip_kernels(true) {
        return;
    }
    let cuda = Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).with_graphs(true);
    let mut model = Model::new(&cuda);
    for _ in 0..4 {
        cuda.step(1, || model.run(&cuda)).unwrap();
        cuda.synchronize().unwrap();
    }
    let rounds = 1000;
    let whole = timed(rounds, || {
        cuda.step(1, || model.run(&cuda)).unwrap();
        cuda.synchronize().unwrap();
    });
    let recorded = timed(rounds, || {
        let outcome: Result<()> = cuda.step(1, || {
            model.run(&cuda)?;
            Err(Error::shape("test", "a step", "no step"))
        });
        assert!(outcome.is_err());
    });
    let empty = timed(rounds, || {
        cuda.step(1, || Ok::<(), Error>(())).unwrap();
        cuda.synchronize().unwrap();
    });
    println!("recorded: {:.1} us (at best {:.1})", recorded.0, recorded.1);
    println!("and submitted: {:.1} us (at best {:.1})", whole.0, whole.1);
    println!("an empty step: {:.1} us", empty.0);
    skip_kernels(false);
}
