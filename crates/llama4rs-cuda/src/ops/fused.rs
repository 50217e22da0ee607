//! What lies between products, in one launch each: `residual_norm.cu`, `rope_cache.cu`, `route.cu`.

use llama4rs_tensor::{KvDtype, KvGeometry, Placement, Result, Slot};

use super::kv_pages::words;
use crate::cuda::{Cuda, Launch};
use crate::kernels::{RESIDUAL_NORM, ROPE_CACHE};
use crate::kv_pages::KvPages;
use crate::module::{arguments, Structure};
use crate::tensor::{Tensor, Vector};

/// The widest rows of `residual_norm.cu`.
const MOST_WIDTH: usize = 16384;
/// Heads of a block of `rope_cache`.
const HEADS: usize = 8;

/// A norm of the residual stream.
pub(crate) struct Norm<'a> {
    pub weight: &'a Vector,
    pub eps: f32,
    pub out: &'a mut Tensor,
}

/// Whether `residual_norm.cu` takes rows of this width.
pub(crate) fn is_wide_enough(width: usize) -> bool {
    width.is_multiple_of(4) && (1..=MOST_WIDTH).contains(&width)
}

impl Cuda {
    /// `x += dense + Σ routed`, then its norm in single precision and as bf16. `dense` is `[rows, cols]`,
    /// `routed` `[rows * choices, cols]` with the number of choices; the width
    /// [is one that the kernel takes](is_wide_enough).
    pub(crate) fn launch_residual(
        &self,
        x: &mut Tensor,
        dense: Option<u64>,
        routed: Option<(u64, usize)>,
        norm: Option<Norm<'_>>,
    ) -> Result<()> {
        let at = x.address_mut();
        self.launch_residual_at(at, x.shape(), dense, routed, norm)
    }

    /// The norm of `x` alone.
    pub(crate) fn run_norm(&self, x: &Tensor, norm: Norm<'_>) -> Result<()> {
        self.launch_residual_at(x.address(), x.shape(), None, None, Some(norm))
    }

    fn launch_residual_at(
        &self,
        x: u64,
        (rows, cols): (usize, usize),
        dense: Option<u64>,
        routed: Option<(u64, usize)>,
        norm: Option<Norm<'_>>,
    ) -> Result<()> {
        let (mut weight, mut eps, mut normed, mut halves) = (0, 0.0, 0, 0);
        if let Some(norm) = norm {
            norm.out.resize(&self.gpu, rows, cols)?;
            (weight, eps) = (norm.weight.0.address(), norm.eps);
            halves = norm.out.halves_mut(&self.gpu)?.address();
            normed = norm.out.address();
        }
        let (routed, choices) = routed.unwrap_or((0, 0));
        let launch = Launch {
            source: &RESIDUAL_NORM,
            kernel: "residual_norm",
            constants: &[("WIDTH", cols as u32)],
            shared: 0,
            blocks: [rows, 1, 1],
            threads: 256,
        };
        let all = arguments![x, dense.unwrap_or(0), routed, choices, weight, eps, normed, halves];
        self.launch(launch, &all)
    }

    /// [`llama4rs_tensor::Backend::place`] in one launch, for pools that [suit](suits_place).
    pub(crate) fn run_place(
        &self,
        [q, k, v]: [&mut Tensor; 3],
        placement: &Placement<'_, Tensor>,
        pool: &KvPages,
        layer: usize,
        slots: &[Slot],
    ) -> Result<()> {
        let (rows, kv_heads) = (q.rows(), pool.geometry().num_kv_heads);
        let head_dim = placement.head_dim;
        let pages = words(slots.iter().map(|slot| pool.address(slot.page)));
        let list: Vec<u32> = pages.chain(slots.iter().map(|slot| slot.offset)).collect();
        let list = self.list("slots", &list)?;
        let heads = q.cols() / head_dim;
        let halves = q.halves_mut(&self.gpu)?.address();
        let all = Structure::default()
            .long(q.address())
            .long(k.address())
            .long(v.address())
            .long(placement.rotations.map_or(0, Tensor::address))
            .long(placement.scales.map_or(0, Tensor::address))
            .long(q.address())
            .long(halves)
            .long(list.address())
            .long(list.offset(2 * rows))
            .size(heads)?
            .size(kv_heads)?
            .size(layer)?
            .word(placement.norm_eps.unwrap_or(-1.0).to_bits());
        let launch = Launch {
            source: &ROPE_CACHE,
            kernel: "rope_cache",
            constants: &[("HEAD_DIM", head_dim as u32)],
            shared: 0,
            blocks: [(heads + 2 * kv_heads).div_ceil(HEADS), rows, 1],
            threads: 256,
        };
        self.launch(launch, &arguments![all])
    }
}

/// Whether [`Cuda::run_place`] takes the pages of this pool.
pub(crate) fn suits_place(geometry: &KvGeometry, head_dim: usize) -> bool {
    geometry.dtype.exact() == KvDtype::Bf16
        && !geometry.dtype.rotates_values()
        && geometry.head_dim == head_dim
        && head_dim.is_multiple_of(64)
}
