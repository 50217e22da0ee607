//! Layers of Scout's form with small matrices: what the host does for them does not depend on sizes.

use llama4rs_cuda::{Cuda, KvPages, Matrix, Routing, Tensor, Vector};
use llama4rs_tensor::{
    Backend, Draw, ExpertWeights, FeedForwardScratch, KvDtype, KvGeometry, KvSpan, MatrixUse,
    MixtureWeights, Norm, PageForm, PageId, Placement, Residual, Result, Slot, WeightFormat,
};

use super::Random;

const HIDDEN: usize = 128;
const HEADS: usize = 5;
const HEAD_DIM: usize = 128;
const EXPERTS: usize = 16;
/// That there is room for.
pub const TOKENS: usize = 8192;
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

/// The model, its pages, and the buffers of a step.
pub struct Model {
    table: Matrix,
    layers: Vec<Layer>,
    norm: Vector,
    lm_head: Matrix,
    /// Of chunked and of global layers.
    pools: [KvPages; 2],
    pages: Vec<PageId>,
    /// How many tokens came already.
    pub tokens: usize,
    workspace: Workspace,
}

impl Model {
    /// `num_layers` layers, and pages of `dtype` for sequences of 8192 tokens.
    pub fn new(cuda: &Cuda, num_layers: usize, dtype: KvDtype) -> Self {
        use MatrixUse::{EndOfHalf, Gated, Lookup, Product};
        let random = &mut Random(1);
        let mut matrix = |usage, format, stack, rows, cols| {
            let matrix = cuda.matrix(random.weights(format, stack, rows, cols).packed()).unwrap();
            cuda.expect(&matrix, usage);
            matrix
        };
        let norm = || cuda.vector(&[1.0; HIDDEN]).unwrap();
        let mut layer = |layer: usize| {
            let is_rotary = layer % 4 != 3;
            let mut swiglu = |stack| SwiGlu {
                gate: matrix(Gated, INT4, stack, 128, HIDDEN),
                up: matrix(Gated, INT4, stack, 128, HIDDEN),
                down: matrix(EndOfHalf, INT4, stack, HIDDEN, 128),
            };
            let (shared, routed) = (swiglu(1), swiglu(EXPERTS));
            Layer {
                qkv: [HEADS, 1, 1].map(|heads| matrix(Product, INT4, 1, heads * HEAD_DIM, HIDDEN)),
                o: matrix(EndOfHalf, INT4, 1, HIDDEN, HEADS * HEAD_DIM),
                norms: [norm(), norm()],
                router: matrix(Product, WeightFormat::F32, 1, EXPERTS, HIDDEN),
                shared,
                routed,
                is_rotary,
                index: if is_rotary { layer - layer / 4 } else { layer / 4 },
            }
        };
        let layers: Vec<Layer> = (0..num_layers).map(&mut layer).collect();
        let pages: Vec<PageId> = (0..TOKENS / PAGE).map(|i| PageId::exact(i as u32)).collect();
        let pool = |num_layers| {
            let geometry = KvGeometry {
                num_layers,
                num_kv_heads: 1,
                head_dim: HEAD_DIM,
                page_tokens: PAGE,
                dtype,
            };
            let mut pool = cuda.kv_pool(geometry).unwrap();
            cuda.kv_reserve(&mut pool, PageForm::Exact, pages.len()).unwrap();
            pool
        };
        Self {
            table: matrix(Lookup, WeightFormat::Bf16, 1, 256, HIDDEN),
            layers,
            norm: norm(),
            lm_head: matrix(Product, WeightFormat::Int8 { group: 128 }, 1, 256, HIDDEN),
            pools: [pool(num_layers - num_layers / 4), pool(num_layers / 4)],
            pages,
            tokens: 0,
            workspace: Workspace::default(),
        }
    }

    /// The operations of a step of `rows` tokens more, as the model calls them.
    pub fn run(&mut self, cuda: &Cuda, rows: usize) -> Result<Vec<Routing>> {
        let Self { table, layers, norm, lm_head, pools, pages, tokens, workspace } = self;
        let first = *tokens;
        *tokens += rows;
        let slot = |token| Slot { page: pages[token / PAGE], offset: (token % PAGE) as u32 };
        let slots: Vec<Slot> = (first..*tokens).map(slot).collect();
        let pages = pages[..tokens.div_ceil(PAGE)].to_vec();
        let spans = [KvSpan { rows: 0..rows, pages, visible: first + 1 }];
        let Workspace { x, h, delta, q, k, v, heads, gate, up, logits } = workspace;
        let rotations = cuda.upload(&vec![0.5; rows * HEAD_DIM], HEAD_DIM)?;
        let scales = cuda.upload(&vec![1.0; rows], 1)?;
        cuda.embed(table, &vec![7; rows], x)?;
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
            cuda.place([q, k, v], &placement, &mut pools[which], layer.index, &slots)?;
            cuda.attend(&pools[which], layer.index, q, &spans, 0.088, heads)?;
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
        let tokens = cuda.choose(logits, &vec![draw; rows])?;
        drop(tokens);
        Ok(routings)
    }

    /// The logits of the last step.
    pub fn logits(&self, cuda: &Cuda) -> Vec<f32> {
        cuda.to_host(&self.workspace.logits).unwrap()
    }
}
