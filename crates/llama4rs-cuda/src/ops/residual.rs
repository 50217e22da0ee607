//! The residual stream between two halves of a block, and norms: `residual_norm.cu`.
//!
//! A norm of rows that [are narrow enough](is_wide_enough) is written but for its factors (`kernels/norm.cuh`), with which
//! products multiply their results. Others get [plain](Cuda::plain) values.

use std::ops::Deref;

use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::{Norm, Result};

use crate::arguments::{arguments, Arguments};
use crate::cuda::{Cuda, Launch};
use crate::kernels::RESIDUAL_NORM;
use crate::tensor::{NormRoom, Tensor, Vector};

/// The widest rows of `residual_norm.cu`.
pub(crate) const MOST_WIDTH: usize = 16384;

/// Whether `residual_norm.cu` takes rows of this width.
pub(crate) fn is_wide_enough(width: usize) -> bool {
    width.is_multiple_of(4) && (1..=MOST_WIDTH).contains(&width)
}

/// What products at the end of a half are told: `kernels/residual.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResidualEnd {
    /// The residual stream.
    pub x: u64,
    /// Of the norm behind; 0: nothing follows.
    pub weight: u64,
    pub norm: NormRoom,
    pub mixture: Mixture,
}

/// What the blocks of a mixture share; zeros: the products are all that is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mixture {
    /// `[rows, hidden]`
    pub shared: u64,
    /// `[rows * top_k, hidden]`
    pub routed: u64,
    /// [`Cuda::tickets`]
    pub tickets: u64,
    pub top_k: usize,
}

/// A norm, and where it goes.
pub(crate) type NormInto<'a> = (Norm<'a, Vector>, &'a mut Tensor);

/// A tensor whose values are plain.
pub(crate) enum Plain<'a> {
    /// They were.
    As(&'a Tensor),
    /// They are now.
    Finished(Tensor),
}

impl Deref for Plain<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Plain::As(x) => x,
            Plain::Finished(x) => x,
        }
    }
}

impl Cuda {
    /// `x` for those who know nothing of norms that are left to finish.
    pub(crate) fn plain<'a>(&self, x: &'a Tensor) -> Result<Plain<'a>> {
        let Some((scaled, _, norm)) = x.scaled() else { return Ok(Plain::As(x)) };
        let mut out = Tensor::scratch(&self.gpu, x.rows(), x.cols())?;
        let all = arguments![out.address_mut(), scaled, Some(norm), x.cols()];
        self.launch_norm_kernel("finish_norm", 4, x.rows(), &all)?;
        Ok(Plain::Finished(out))
    }

    /// The same in place.
    pub(crate) fn make_plain(&self, x: &mut Tensor) -> Result<()> {
        let Some((scaled, _, norm)) = x.scaled() else { return Ok(()) };
        let all = arguments![scaled, scaled, Some(norm), x.cols()];
        self.launch_norm_kernel("finish_norm", 4, x.rows(), &all)?;
        x.end_norm();
        Ok(())
    }

    /// `x += dense + Σ routed`, then its norm but for the factors, into `h`. `dense` is `[rows, cols]`,
    /// `routed` `[rows * choices, cols]` with the number of choices; the width
    /// [is one that the kernel takes](is_wide_enough).
    pub(crate) fn launch_residual(
        &self,
        x: &mut Tensor,
        dense: Option<u64>,
        routed: Option<(u64, usize)>,
        norm: Option<NormInto<'_>>,
    ) -> Result<()> {
        let at = x.address_mut();
        self.launch_residual_at(at, x.shape(), dense, routed, norm)
    }

    /// The end of a half for products that add to `x` themselves.
    pub(crate) fn residual_end(
        &self,
        x: &mut Tensor,
        norm: Option<NormInto<'_>>,
    ) -> Result<ResidualEnd> {
        let mut end = ResidualEnd { x: x.address_mut(), ..ResidualEnd::default() };
        if let Some((norm, h)) = norm {
            let panels = x.cols().div_ceil(PANEL_ROWS);
            end.weight = norm.weight.0.address();
            end.norm = h.start_norm(&self.gpu, x.shape(), (panels, norm.eps))?;
        }
        Ok(end)
    }

    /// The norm of `x` alone.
    pub(crate) fn run_norm(
        &self,
        x: &Tensor,
        norm: Norm<'_, Vector>,
        h: &mut Tensor,
    ) -> Result<()> {
        self.launch_residual_at(x.address(), x.shape(), None, None, Some((norm, h)))
    }

    fn launch_residual_at(
        &self,
        x: u64,
        (rows, cols): (usize, usize),
        dense: Option<u64>,
        routed: Option<(u64, usize)>,
        norm: Option<NormInto<'_>>,
    ) -> Result<()> {
        let (mut weight, mut room) = (0, NormRoom::default());
        if let Some((norm, h)) = norm {
            weight = norm.weight.0.address();
            room = h.start_norm(&self.gpu, (rows, cols), (1, norm.eps))?;
        }
        let NormRoom { scaled, halves, squares } = room;
        let (routed, choices) = routed.unwrap_or((0, 0));
        let all =
            arguments![x, dense.unwrap_or(0), routed, choices, weight, scaled, halves, squares];
        self.launch_norm_kernel("residual_norm", cols, rows, &all)
    }

    /// A block for each of `rows` rows; compiled for rows of `width`.
    fn launch_norm_kernel(
        &self,
        kernel: &'static str,
        width: usize,
        rows: usize,
        arguments: &impl Arguments,
    ) -> Result<()> {
        let launch = Launch {
            source: &RESIDUAL_NORM,
            kernel,
            constants: &[("WIDTH", width as u32)],
            shared: 0,
            blocks: [rows, 1, 1],
            threads: 256,
        };
        self.launch(launch, arguments)
    }
}
