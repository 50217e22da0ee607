//! What a device offers to the model: the narrow trait between floors 1 and 2.
//!
//! Activations are `[rows, cols]` tensors, one row per token of the step,
//! with single-precision meaning (a device may keep fewer bits and must say so).
//! Every operation writes into a tensor that the caller keeps, so that a decode
//! step allocates nothing once its buffers have grown.
//!
//! **Batch invariance** is part of the contract: what an operation writes for
//! one row is the same, bit for bit, whatever other rows the call has and
//! however many threads run.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};

use crate::check::require;
use crate::kv::{KvGeometry, KvSpan, PageForm, PageId, Slot};
use crate::{Bytes, Draw, Error, PackedMatrix, Result};

/// The routed part of a mixture-of-experts layer: stacks of `num_experts` matrices.
pub struct ExpertWeights<'a, M> {
    /// `[expert][intermediate, hidden]`.
    pub gate: &'a M,
    /// `[expert][intermediate, hidden]`.
    pub up: &'a M,
    /// `[expert][hidden, intermediate]`.
    pub down: &'a M,
}

/// What a model does with a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixUse {
    /// [`Backend::embed`].
    Lookup,
    /// [`Backend::matmul`], or a router.
    Product,
    /// Gate or up of a feed-forward layer.
    Gated,
    /// The last one of a half of a block.
    EndOfHalf,
}

/// Where queries and keys stand in their text; see [`Backend::place`].
pub struct Placement<'a, T> {
    /// Width of a head.
    pub head_dim: usize,
    /// `[rows, head_dim]`: cos, sin of each pair. `None`: no rotation, and no norm.
    pub rotations: Option<&'a T>,
    /// The eps of a norm of queries and keys behind the rotation; `None`: no norm.
    pub norm_eps: Option<f32>,
    /// `[rows, 1]`: factors of queries.
    pub scales: Option<&'a T>,
}

/// A mixture of experts: one shared expert for every row, and routed ones.
pub struct MixtureWeights<'a, M> {
    /// `[experts, hidden]`: the logits of the routing.
    pub router: &'a M,
    /// Experts of a row.
    pub top_k: usize,
    /// One matrix each.
    pub shared: ExpertWeights<'a, M>,
    /// A stack each.
    pub routed: ExpertWeights<'a, M>,
}

/// Buffers of a feed-forward layer.
pub struct FeedForwardScratch<'a, T> {
    /// `[rows, intermediate]`
    pub gate: &'a mut T,
    /// `[rows, intermediate]`
    pub up: &'a mut T,
    /// `[rows, experts]`
    pub router_logits: &'a mut T,
}

/// A norm's weight, and what is added to the mean square.
pub struct Norm<'a, V> {
    /// `[hidden]`
    pub weight: &'a V,
    /// Added to the mean square.
    pub eps: f32,
}

/// The end of a half of a block: `x += result`, then `h` the norm of the sum, with which the next half begins.
pub struct Residual<'a, B: Backend> {
    /// The residual stream, `[rows, hidden]`.
    pub x: &'a mut B::Tensor,
    /// What the half began with, and then what the next one does, `[rows, hidden]`.
    pub h: &'a mut B::Tensor,
    /// Room for what is added, `[rows, hidden]`.
    pub delta: &'a mut B::Tensor,
    /// Of the next half; `None`: nothing follows, and `h` stays.
    pub norm: Option<Norm<'a, B::Vector>>,
}

impl<B: Backend> Residual<'_, B> {
    /// Adds what is in `delta`.
    pub fn end(self, backend: &B) -> Result<()> {
        let Self { x, h, delta, norm } = self;
        match norm {
            Some(Norm { weight, eps }) => backend.add_norm(x, delta, weight, eps, h),
            None => backend.add(x, delta),
        }
    }
}

/// A device that can run the model.
///
/// Operations return an error on shapes that do not fit and on device failures;
/// they do not panic on them.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Activations `[rows, cols]`.
    type Tensor: Send + Sync;
    /// A constant vector: the weights of a norm.
    type Vector: Send + Sync;
    /// One weight matrix or a stack of them.
    type Matrix: Send + Sync;
    /// Key/value pages.
    type KvPool: Send + Sync;
    /// Which experts each row goes to, and with which weight.
    type Routing: Send + Sync;
    /// Tokens that the device chose; [`Infallible`](std::convert::Infallible) when it never does.
    type Tokens: Send + Sync;

    /// A short name for reports, such as `cpu (avx512, 8 threads)`.
    fn description(&self) -> String;
    /// Free bytes of the device's own memory; `None` when it is the system's.
    fn free_memory(&self) -> Option<usize> {
        None
    }

    /// What a user should know that is no error, once.
    fn take_warning(&self) -> Option<String> {
        None
    }

    /// Runs the operations of one step of `rows` rows. A device may queue them until `run` returns,
    /// and submit them as one. What is [uploaded](Self::upload) and [routed](Self::route) meanwhile lasts
    /// until the next step begins; [spans](Self::attend) and [slots](Self::place) that come again with the same
    /// address are the same. After an error nothing of it needs to have been computed.
    fn step<T, E: From<Error>>(
        &self,
        rows: usize,
        run: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let _ = rows;
        run()
    }

    /// An empty tensor, to be used as an output.
    fn empty(&self) -> Self::Tensor;
    /// A tensor from host values, row-major, `values.len()` a multiple of `cols`.
    fn upload(&self, values: &[f32], cols: usize) -> Result<Self::Tensor>;
    /// All values of `x`, row-major.
    fn to_host(&self, x: &Self::Tensor) -> Result<Vec<f32>>;
    /// Some rows of `x`.
    fn rows_to_host(&self, x: &Self::Tensor, rows: Range<usize>) -> Result<Vec<f32>> {
        let (count, cols) = self.shape(x);
        let fits = rows.start <= rows.end && rows.end <= count;
        require(fits, "rows_to_host", || format!("some of {count} rows"), || format!("{rows:?}"))?;
        Ok(self.to_host(x)?[rows.start * cols..rows.end * cols].to_vec())
    }
    /// `(rows, cols)` of `x`.
    fn shape(&self, x: &Self::Tensor) -> (usize, usize);
    /// Brings a norm's weights to the device.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;
    /// Brings packed weights to the device; on the CPU mapped bytes stay mapped.
    fn matrix(&self, packed: PackedMatrix) -> Result<Self::Matrix>;

    /// Says what a matrix will be used for. A device may get ready for it while other weights are on their way.
    fn expect(&self, weights: &Self::Matrix, usage: MatrixUse) {
        let _ = (weights, usage);
    }

    /// Waits until the device is ready for what is [expected](Self::expect), and for the pages of its pools.
    /// `progress` is told how much of how much is done, and may break off: what is missing is done when it
    /// is needed.
    fn get_ready(&self, progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) {
        let _ = progress;
    }

    /// `out[t] = table[ids[t]]`.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Tensor) -> Result<()>;
    /// `out[i] = x[rows[i]]`.
    fn select_rows(&self, x: &Self::Tensor, rows: &[u32], out: &mut Self::Tensor) -> Result<()>;
    /// `x += y`.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor) -> Result<()>;
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, per row.
    fn rms_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// `outs[i] = x · weights[i]ᵀ` for several matrices (`stack == 1`) of the same input.
    fn matmul(
        &self,
        x: &Self::Tensor,
        weights: &[&Self::Matrix],
        outs: &mut [&mut Self::Tensor],
    ) -> Result<()>;
    /// `gate = silu(gate) * up`.
    fn swiglu(&self, gate: &mut Self::Tensor, up: &Self::Tensor) -> Result<()>;

    /// Rotates the pairs `(2j, 2j+1)` of every head of every row by the row's
    /// angles: `rotations` is `[rows, head_dim]`, `cos, sin` for each pair.
    fn rope(&self, x: &mut Self::Tensor, rotations: &Self::Tensor, head_dim: usize) -> Result<()>;
    /// `x / sqrt(mean(x^2) + eps)` for each head of each row, without weights.
    fn head_norm(&self, x: &mut Self::Tensor, head_dim: usize, eps: f32) -> Result<()>;
    /// Multiplies row `t` by `scales[t]`; `scales` is `[rows, 1]`.
    fn scale_rows(&self, x: &mut Self::Tensor, scales: &Self::Tensor) -> Result<()>;

    /// An empty pool of pages.
    fn kv_pool(&self, geometry: KvGeometry) -> Result<Self::KvPool>;
    /// Makes the first `num_pages` pages of a form usable; keeps what is stored.
    fn kv_reserve(&self, pool: &mut Self::KvPool, form: PageForm, num_pages: usize) -> Result<()>;
    /// Stores row `t` of `keys` and `values` (`[rows, kv_heads * head_dim]`) at `slots[t]`.
    fn write_kv(
        &self,
        pool: &mut Self::KvPool,
        layer: usize,
        slots: &[Slot],
        keys: &Self::Tensor,
        values: &Self::Tensor,
    ) -> Result<()>;
    /// Quantises `layer` of full exact pages into sealed ones: `(exact, sealed)`.
    fn kv_seal(
        &self,
        pool: &mut Self::KvPool,
        layer: usize,
        pages: &[(PageId, PageId)],
    ) -> Result<()>;
    /// All bytes of a page, the same on every device.
    fn kv_read<'a>(&self, pool: &'a Self::KvPool, page: PageId) -> Result<Cow<'a, [u8]>>;
    /// Makes `bytes` the content of a page. A device that can read them where they
    /// are keeps them instead of a copy, until the page is written or discarded.
    fn kv_adopt(&self, pool: &mut Self::KvPool, page: PageId, bytes: Bytes) -> Result<()>;
    /// Whether [`kv_adopt`](Self::kv_adopt) keeps bytes of mapped files where they are.
    fn kv_keeps_mapped(&self) -> bool {
        false
    }
    /// The content of these pages is no longer needed: adopted bytes are dropped,
    /// memory goes back to the system where that is possible.
    fn kv_discard(&self, pool: &mut Self::KvPool, pages: &[PageId]);
    /// `out = softmax(scale · q kᵀ) v` per query head over the keys that each
    /// row's span shows; query head `h` of `H` uses key/value head `h / (H / kv_heads)`.
    /// Every row of a span sees its sealed pages whole.
    fn attend(
        &self,
        pool: &Self::KvPool,
        layer: usize,
        queries: &Self::Tensor,
        spans: &[KvSpan],
        scale: f32,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Chooses the `top_k` largest of each row of `logits` `[rows, experts]`
    /// (ties: lowest index) and weighs them by `sigmoid(logit)`.
    fn route(&self, logits: &Self::Tensor, top_k: usize) -> Result<Self::Routing>;
    /// The experts of each row, `[rows * top_k]`, for statistics.
    fn routed_experts(&self, routing: &Self::Routing) -> Result<Vec<u32>>;
    /// `out[t] += Σ_e down_e(silu(gate_e(w x)) * up_e(w x))` with `x = x[t]` and
    /// `w` the weight of expert `e` for row `t`: the weight scales the *input*.
    fn experts(
        &self,
        x: &Self::Tensor,
        routing: &Self::Routing,
        weights: ExpertWeights<'_, Self::Matrix>,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Chooses a token from each row of `logits`; `None`: the device leaves that to the host, with the
    /// same tokens. Those of a [`step`](Self::step) are there until the next one begins.
    fn choose(&self, logits: &Self::Tensor, draws: &[Draw]) -> Result<Option<Self::Tokens>> {
        let _ = (logits, draws);
        Ok(None)
    }
    /// The tokens, [`Draw::NO_TOKEN`] for a row with a logit that is no finite number.
    fn tokens(&self, chosen: &Self::Tokens) -> Result<Vec<u32>>;

    // What follows is made of the operations above. A device may do it in fewer steps.

    /// `x += delta`, then `out` the norm of `x`.
    fn add_norm(
        &self,
        x: &mut Self::Tensor,
        delta: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.add(x, delta)?;
        self.rms_norm(x, weight, eps, out)
    }

    /// Rotates, normalises and scales queries and keys, then stores keys and values at `slots`.
    fn place(
        &self,
        [q, k, v]: [&mut Self::Tensor; 3],
        placement: &Placement<'_, Self::Tensor>,
        pool: &mut Self::KvPool,
        layer: usize,
        slots: &[Slot],
    ) -> Result<()> {
        self.place_in_parts([q, k, v], placement, pool, layer, slots)
    }

    /// What [`Backend::place`] is made of, for devices that take only some sizes in fewer steps.
    fn place_in_parts(
        &self,
        [q, k, v]: [&mut Self::Tensor; 3],
        placement: &Placement<'_, Self::Tensor>,
        pool: &mut Self::KvPool,
        layer: usize,
        slots: &[Slot],
    ) -> Result<()> {
        if let Some(rotations) = placement.rotations {
            for x in [&mut *q, &mut *k] {
                self.rope(x, rotations, placement.head_dim)?;
                if let Some(eps) = placement.norm_eps {
                    self.head_norm(x, placement.head_dim, eps)?;
                }
            }
        }
        if let Some(scales) = placement.scales {
            self.scale_rows(q, scales)?;
        }
        self.write_kv(pool, layer, slots, k, v)
    }

    /// `out = down(silu(gate(x)) * up(x))` with one matrix each; `gate` and `up` are room for
    /// `[rows, intermediate]`.
    fn feed_forward(
        &self,
        x: &Self::Tensor,
        weights: &ExpertWeights<'_, Self::Matrix>,
        [gate, up]: [&mut Self::Tensor; 2],
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.matmul(x, &[weights.gate, weights.up], &mut [gate, up])?;
        self.swiglu(gate, up)?;
        self.matmul(gate, &[weights.down], &mut [out])
    }

    /// `out` the shared expert and the routed ones, as [`Backend::experts`] says.
    fn mixture(
        &self,
        x: &Self::Tensor,
        weights: MixtureWeights<'_, Self::Matrix>,
        scratch: FeedForwardScratch<'_, Self::Tensor>,
        out: &mut Self::Tensor,
    ) -> Result<Self::Routing> {
        let MixtureWeights { router, top_k, shared, routed } = weights;
        let FeedForwardScratch { gate, up, router_logits } = scratch;
        self.matmul(x, &[router], &mut [router_logits])?;
        let routing = self.route(router_logits, top_k)?;
        self.feed_forward(x, &shared, [gate, up], out)?;
        self.experts(x, &routing, routed, out)?;
        Ok(routing)
    }

    /// [`Backend::matmul`] with one matrix at the end of a half.
    fn matmul_add(
        &self,
        x: &Self::Tensor,
        weights: &Self::Matrix,
        residual: Residual<'_, Self>,
    ) -> Result<()> {
        self.matmul_add_in_parts(x, weights, residual)
    }

    /// What [`Backend::matmul_add`] is made of.
    fn matmul_add_in_parts(
        &self,
        x: &Self::Tensor,
        weights: &Self::Matrix,
        residual: Residual<'_, Self>,
    ) -> Result<()> {
        self.matmul(x, &[weights], &mut [&mut *residual.delta])?;
        residual.end(self)
    }

    /// [`Backend::feed_forward`] of `residual.h` at the end of a half.
    fn feed_forward_add(
        &self,
        weights: &ExpertWeights<'_, Self::Matrix>,
        room: [&mut Self::Tensor; 2],
        residual: Residual<'_, Self>,
    ) -> Result<()> {
        self.feed_forward_add_in_parts(weights, room, residual)
    }

    /// What [`Backend::feed_forward_add`] is made of.
    fn feed_forward_add_in_parts(
        &self,
        weights: &ExpertWeights<'_, Self::Matrix>,
        room: [&mut Self::Tensor; 2],
        residual: Residual<'_, Self>,
    ) -> Result<()> {
        self.feed_forward(residual.h, weights, room, residual.delta)?;
        residual.end(self)
    }

    /// [`Backend::mixture`] of `residual.h` at the end of a half.
    fn mixture_add(
        &self,
        weights: MixtureWeights<'_, Self::Matrix>,
        scratch: FeedForwardScratch<'_, Self::Tensor>,
        residual: Residual<'_, Self>,
    ) -> Result<Self::Routing> {
        self.mixture_add_in_parts(weights, scratch, residual)
    }

    /// What [`Backend::mixture_add`] is made of.
    fn mixture_add_in_parts(
        &self,
        weights: MixtureWeights<'_, Self::Matrix>,
        scratch: FeedForwardScratch<'_, Self::Tensor>,
        residual: Residual<'_, Self>,
    ) -> Result<Self::Routing> {
        let routing = self.mixture(residual.h, weights, scratch, residual.delta)?;
        residual.end(self)?;
        Ok(routing)
    }
}
