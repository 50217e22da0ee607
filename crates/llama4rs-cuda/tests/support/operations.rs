//! Operations that several files of tests run on both backends.

use half::bf16;
use llama4rs_tensor::{
    Backend, ExpertWeights, FeedForwardScratch, KvDtype, KvGeometry, KvSpan, MixtureWeights,
    PageForm, PageId, Slot, WeightFormat,
};
use proptest::prelude::*;

use super::{Random, Weights};

/// Tokens of a page.
pub const PAGE: usize = 64;
/// Single precision in another order of additions.
pub const SUMS: f64 = 3e-6;
/// Something was rounded to bf16 on the way.
pub const ROUNDED: f64 = 4e-3;

/// Pages of two layers.
pub fn geometry(dtype: KvDtype, num_kv_heads: usize, head_dim: usize) -> KvGeometry {
    KvGeometry { num_layers: 2, num_kv_heads, head_dim, page_tokens: PAGE, dtype }
}

/// Values that bf16 holds, so that products round nothing else than their sums.
pub fn halves(random: &mut Random, count: usize) -> Vec<f32> {
    random.values(count).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

/// The products of `x` with each matrix.
pub fn matmul<B: Backend>(
    backend: &B,
    x: &[f32],
    cols: usize,
    weights: &[&Weights],
) -> Vec<Vec<f32>> {
    let x = backend.upload(x, cols).unwrap();
    let weights: Vec<_> = weights.iter().map(|w| backend.matrix(w.packed()).unwrap()).collect();
    let mut outs: Vec<_> = weights.iter().map(|_| backend.empty()).collect();
    let (weights, mut slots): (Vec<_>, Vec<_>) =
        (weights.iter().collect(), outs.iter_mut().collect());
    backend.matmul(&x, &weights, &mut slots).unwrap();
    outs.iter().map(|out| backend.to_host(out).unwrap()).collect()
}

/// A pool whose layer 1 holds `keys` and `values`, the pages `sealed` of them sealed.
pub fn filled<B: Backend>(
    backend: &B,
    geometry: KvGeometry,
    keys: &[f32],
    values: &[f32],
    sealed: std::ops::Range<usize>,
) -> (B::KvPool, Vec<PageId>) {
    let cols = geometry.num_kv_heads * geometry.head_dim;
    let tokens = keys.len() / cols;
    let count = tokens.div_ceil(PAGE);
    let mut pool = backend.kv_pool(geometry).unwrap();
    backend.kv_reserve(&mut pool, PageForm::Exact, count + 2).unwrap();
    let exact = |index: usize| PageId::exact((count + 1 - index) as u32);
    let slots: Vec<Slot> =
        (0..tokens).map(|t| Slot { page: exact(t / PAGE), offset: (t % PAGE) as u32 }).collect();
    let (keys, values) =
        (backend.upload(keys, cols).unwrap(), backend.upload(values, cols).unwrap());
    backend.write_kv(&mut pool, 1, &slots, &keys, &values).unwrap();
    if !sealed.is_empty() {
        backend.kv_reserve(&mut pool, PageForm::Sealed, count).unwrap();
    }
    let pairs: Vec<_> =
        sealed.clone().map(|i| (exact(i), PageId::sealed((count - 1 - i) as u32))).collect();
    backend.kv_seal(&mut pool, 1, &pairs).unwrap();
    let page = |i| if sealed.contains(&i) { pairs[i - sealed.start].1 } else { exact(i) };
    (pool, (0..count).map(page).collect())
}

/// Attention of `queries` `[rows, cols]` over layer 1 of a pool.
pub fn attend<B: Backend>(
    backend: &B,
    pool: &B::KvPool,
    queries: &[f32],
    cols: usize,
    scale: f32,
    spans: &[KvSpan],
) -> Vec<f32> {
    let queries = backend.upload(queries, cols).unwrap();
    let mut out = backend.empty();
    backend.attend(pool, 1, &queries, spans, scale, &mut out).unwrap();
    backend.to_host(&out).unwrap()
}

/// One of the formats that tensor cores take.
pub fn format() -> impl Strategy<Value = WeightFormat> {
    let group = prop::sample::select(vec![32, 64, 128]);
    let integer = |(group, int4)| match int4 {
        true => WeightFormat::Int4 { group },
        false => WeightFormat::Int8 { group },
    };
    prop_oneof![4 => (group, any::<bool>()).prop_map(integer), 1 => Just(WeightFormat::Bf16)]
}

/// One matrix of each kind of a feed-forward layer, or a stack of them.
pub fn layer(
    random: &mut Random,
    stack: usize,
    formats: [WeightFormat; 2],
    sizes: [usize; 2],
) -> [Weights; 3] {
    let ([gated, down], [hidden, inner]) = (formats, sizes);
    [
        random.weights(gated, stack, inner, hidden),
        random.weights(gated, stack, inner, hidden),
        random.weights(down, stack, hidden, inner),
    ]
}

/// A dense layer.
pub fn feed_forward<B: Backend>(
    backend: &B,
    x: &[f32],
    hidden: usize,
    weights: &[Weights; 3],
) -> Vec<f32> {
    let x = backend.upload(x, hidden).unwrap();
    let [gate, up, down] = weights.each_ref().map(|w| backend.matrix(w.packed()).unwrap());
    let weights = ExpertWeights { gate: &gate, up: &up, down: &down };
    let (mut gate, mut up, mut out) = (backend.empty(), backend.empty(), backend.empty());
    backend.feed_forward(&x, &weights, [&mut gate, &mut up], &mut out).unwrap();
    backend.to_host(&out).unwrap()
}

/// Chosen experts, and the sum of shared and routed ones.
pub fn mixture<B: Backend>(
    backend: &B,
    x: &[f32],
    hidden: usize,
    top_k: usize,
    router: &Weights,
    [shared, routed]: [&[Weights; 3]; 2],
) -> (Vec<u32>, Vec<f32>) {
    let router = backend.matrix(router.packed()).unwrap();
    let [shared, routed] =
        [shared, routed].map(|all| all.each_ref().map(|w| backend.matrix(w.packed()).unwrap()));
    let weights = MixtureWeights {
        router: &router,
        top_k,
        shared: ExpertWeights { gate: &shared[0], up: &shared[1], down: &shared[2] },
        routed: ExpertWeights { gate: &routed[0], up: &routed[1], down: &routed[2] },
    };
    let x = backend.upload(x, hidden).unwrap();
    let (mut gate, mut up, mut router_logits, mut out) =
        (backend.empty(), backend.empty(), backend.empty(), backend.empty());
    let scratch =
        FeedForwardScratch { gate: &mut gate, up: &mut up, router_logits: &mut router_logits };
    let routing = backend.mixture(&x, weights, scratch, &mut out).unwrap();
    (backend.routed_experts(&routing).unwrap(), backend.to_host(&out).unwrap())
}
