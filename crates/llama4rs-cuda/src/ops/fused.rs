//! What lies between products, in one launch each: `residual_norm.cu`, `rope_cache.cu`, `route.cu`.

use llama4rs_tensor::check::{require, require_heads, require_layer, require_shape};
use llama4rs_tensor::{PageForm, Result, Slot};

use super::kv_pages::words;
use crate::cuda::{Cuda, Launch};
use crate::kernels::{RESIDUAL_NORM, ROPE_CACHE};
use crate::kv_pages::{KvPages, PAGE_TOKENS};
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

/// What happens to queries and keys before attention.
pub struct Positions<'a> {
    /// `[rows, head_dim]`: cos, sin of each pair; `None`: no rotation, no norm.
    pub rotations: Option<&'a Tensor>,
    /// The norm's eps; `None`: no norm.
    pub norm_eps: Option<f32>,
    /// `[rows, 1]`: factors of queries.
    pub scales: Option<&'a Tensor>,
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

    /// `x += y`, and `out` its norm, in one launch.
    ///
    /// # Errors
    /// On shapes that do not fit, widths that are no multiple of 4 or above 16384, and device failures.
    pub fn add_norm(
        &self,
        x: &mut Tensor,
        y: &Tensor,
        weight: &Vector,
        eps: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        require_shape("add_norm", y.shape(), x.rows(), x.cols())?;
        let expected = || format!("a multiple of 4 columns, at most {MOST_WIDTH}");
        require(is_wide_enough(x.cols()), "add_norm", expected, || x.cols().to_string())?;
        require_shape("add_norm", (1, weight.0.len()), 1, x.cols())?;
        self.launch_residual(x, Some(y.address()), None, Some(Norm { weight, eps, out }))
    }

    /// Rotates, normalises and scales queries and keys as `positions` says, rounds them to bf16, and stores
    /// keys and values at `slots`: what comes between the projections and [`attend`], in one launch.
    /// Queries are left in `queries` as bf16 and in single precision.
    ///
    /// [`attend`]: llama4rs_tensor::Backend::attend
    ///
    /// # Errors
    /// On shapes that do not fit, heads that are no multiple of 64 wide, pools whose exact pages are not
    /// plain bf16, and device failures.
    pub fn rope_cache(
        &self,
        [q, k, v]: [&Tensor; 3],
        positions: &Positions<'_>,
        pool: &mut KvPages,
        layer: usize,
        slots: &[Slot],
        queries: &mut Tensor,
    ) -> Result<()> {
        let geometry = *pool.geometry();
        let (rows, head_dim, kv_heads) = (q.rows(), geometry.head_dim, geometry.num_kv_heads);
        require_layer("rope_cache", &geometry, layer)?;
        require_heads("rope_cache", q.cols(), head_dim * kv_heads)?;
        for x in [k, v] {
            require_shape("rope_cache", x.shape(), rows, kv_heads * head_dim)?;
        }
        if let Some(rotations) = positions.rotations {
            require_shape("rope_cache", rotations.shape(), rows, head_dim)?;
        }
        if let Some(scales) = positions.scales {
            require_shape("rope_cache", scales.shape(), rows, 1)?;
        }
        let plain = geometry.dtype.exact_bytes() == 2 && !geometry.dtype.rotates_values();
        require(
            plain && head_dim.is_multiple_of(64) && slots.len() == rows,
            "rope_cache",
            || format!("{rows} slots in bf16 pages of heads that are a multiple of 64 wide"),
            || format!("{} slots, {geometry:?}", slots.len()),
        )?;
        let stored = |slot: &Slot| {
            slot.page.form() == PageForm::Exact
                && pool.has(slot.page)
                && (slot.offset as usize) < PAGE_TOKENS
        };
        let beyond = slots.iter().find(|slot| !stored(slot));
        let reserved = || "slots in reserved exact pages".to_owned();
        require(beyond.is_none(), "rope_cache", reserved, || format!("{beyond:?}"))?;

        let pages = words(slots.iter().map(|slot| pool.address(slot.page)));
        let list: Vec<u32> = pages.chain(slots.iter().map(|slot| slot.offset)).collect();
        let list = self.list(&list)?;
        queries.resize(&self.gpu, rows, q.cols())?;
        let heads = q.cols() / head_dim;
        let halves = queries.halves_mut(&self.gpu)?.address();
        let all = Structure::default()
            .long(q.address())
            .long(k.address())
            .long(v.address())
            .long(positions.rotations.map_or(0, Tensor::address))
            .long(positions.scales.map_or(0, Tensor::address))
            .long(queries.address())
            .long(halves)
            .long(list.address())
            .long(list.offset(2 * rows))
            .size(heads)?
            .size(kv_heads)?
            .size(layer)?
            .word(positions.norm_eps.unwrap_or(-1.0).to_bits());
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
