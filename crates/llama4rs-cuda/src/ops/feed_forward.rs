//! Feed-forward layers, dense and of experts: products with SwiGLU between them.

use llama4rs_tensor::{Error, ExpertWeights, MixtureWeights, Result, WeightFormat};

use super::products::{Finish, Input, Job, Routed};
use super::residual::is_wide_enough;
use super::router::{TokenTiles, MOST_EXPERTS};
use super::shapes::Shape;
use crate::cuda::{Cuda, Launch};
use crate::kernels::{RESIDUAL_NORM, ROWS};
use crate::memory::Buffer;
use crate::module::arguments;
use crate::tensor::{Matrix, Routing, Tensor};

/// Whether [`Cuda::run_mixture`] takes these weights.
pub(crate) fn fits_mixture(weights: &MixtureWeights<'_, Matrix>) -> bool {
    let MixtureWeights { router, shared, routed, .. } = weights;
    router.format == WeightFormat::F32
        && router.rows <= MOST_EXPERTS
        && is_wide_enough(routed.gate.cols)
        && fits_feed_forward(shared)
        && fits_feed_forward(routed)
        && (shared.gate.rows, shared.gate.cols) == (routed.gate.rows, routed.gate.cols)
}

/// Whether [`Cuda::run_feed_forward`] takes these weights: in fragment order, gate and up alike.
pub(crate) fn fits_feed_forward(weights: &ExpertWeights<'_, Matrix>) -> bool {
    weights.gate.format == weights.up.format
        && [weights.gate, weights.up, weights.down].iter().all(|matrix| matrix.fragments.is_some())
}

impl Cuda {
    /// [`llama4rs_tensor::Backend::mixture`] in five launches or a few more, where [it can](fits_mixture).
    pub(crate) fn run_mixture(
        &self,
        x: &Tensor,
        weights: &MixtureWeights<'_, Matrix>,
        out: &mut Tensor,
    ) -> Result<Routing> {
        let MixtureWeights { router, top_k, ref shared, ref routed } = *weights;
        let (rows, hidden, inner) = (x.rows(), routed.gate.cols, routed.gate.rows);
        let formats = [routed.gate.format, routed.down.format];
        let (routing, tiles) = self.run_router(x, router, top_k, &formats)?;
        let assignments = rows * top_k;
        let mut scratch = None;
        let (halves, norm) = self.product_rows(x, &mut scratch)?;
        let room = (rows + assignments) * inner;
        let inners = Buffer::<u16>::new(&self.gpu, room, "rows of experts")?;
        let by_expert = |divisor, weights| Some(Routed { tiles: &tiles, divisor, weights });
        let input = Input {
            x: halves,
            norm,
            rows,
            cols: hidden,
            routed: by_expert(top_k, Some(&routing.weights)),
        };
        let jobs = [
            gated(shared, inners.address(), false),
            gated(routed, inners.offset(rows * inner), true),
        ];
        self.launch_together(tiles.shape, &input, jobs, Finish::SwiGlu)?;

        out.resize(&self.gpu, rows, hidden)?;
        let expert_rows = Buffer::<f32>::new(&self.gpu, assignments * hidden, "rows of experts")?;
        let routed_inners = by_expert(1, None);
        let input =
            Input { x: inners.address(), norm: None, rows, cols: inner, routed: routed_inners };
        let down =
            |weights, out, first_row, routed| Job { weights, up: None, out, routed, first_row };
        let jobs = [
            down(shared.down, out.address(), 0, false),
            down(routed.down, expert_rows.address(), rows, true),
        ];
        self.launch_together(tiles.shape, &input, jobs, Finish::F32)?;
        self.launch_residual(out, None, Some((expert_rows.address(), top_k)), None)?;
        Ok(routing)
    }

    /// [`llama4rs_tensor::Backend::feed_forward`] in two launches, where [it can](fits_feed_forward).
    pub(crate) fn run_feed_forward(
        &self,
        x: &Tensor,
        weights: &ExpertWeights<'_, Matrix>,
        out: &mut Tensor,
    ) -> Result<()> {
        let (rows, hidden, inner) = (x.rows(), weights.gate.cols, weights.gate.rows);
        let mut scratch = None;
        let (halves, norm) = self.product_rows(x, &mut scratch)?;
        let inners = Buffer::<u16>::new(&self.gpu, rows * inner, "inner activations")?;
        let input = Input { x: halves, norm, rows, cols: hidden, routed: None };
        let shape = self.gated_shape_for(rows, inner, weights.gate.format);
        let job = gated(weights, inners.address(), false);
        self.launch_products(shape, &input, &[job], Finish::SwiGlu)?;

        out.resize(&self.gpu, rows, hidden)?;
        let input = Input { x: inners.address(), norm: None, rows, cols: inner, routed: None };
        let shape = self.shape_for(rows, hidden, weights.down.format);
        let out = out.address_mut();
        let job = Job { weights: weights.down, up: None, out, routed: false, first_row: 0 };
        self.launch_products(shape, &input, &[job], Finish::F32)
    }

    /// A dense and a routed job, in one launch where they have a format and a kernel in common.
    fn launch_together(
        &self,
        routed_shape: Shape,
        input: &Input<'_>,
        [dense, routed]: [Job<'_>; 2],
        finish: Finish,
    ) -> Result<()> {
        let (outputs, format) = (dense.weights.rows, dense.weights.format);
        let shape = match finish {
            Finish::SwiGlu => self.gated_shape_for(input.rows, outputs, format),
            Finish::F32 => self.shape_for(input.rows, outputs, format),
        };
        if shape == routed_shape && dense.weights.format == routed.weights.format {
            return self.launch_products(shape, input, &[dense, routed], finish);
        }
        self.launch_products(shape, input, &[dense], finish)?;
        self.launch_products(routed_shape, input, &[routed], finish)
    }

    /// `out += Σ experts`, as [`llama4rs_tensor::Backend::experts`] says, for stacks in fragment order.
    pub(crate) fn run_expert_products(
        &self,
        x: &Tensor,
        routing: &Routing,
        [gate, up, down]: [&Matrix; 3],
        out: &mut Tensor,
    ) -> Result<()> {
        let hidden = gate.cols;
        if !is_wide_enough(hidden) {
            return Err(Error::shape("experts", "at most 16384 inputs", hidden));
        }
        let assignments = routing.rows * routing.top_k;
        let tiles = self.token_tiles(routing, &[gate.format, up.format, down.format])?;
        let mut scratch = None;
        let (halves, norm) = self.product_rows(x, &mut scratch)?;
        let routed =
            Routed { tiles: &tiles, divisor: routing.top_k, weights: Some(&routing.weights) };
        let input = Input { x: halves, norm, rows: x.rows(), cols: hidden, routed: Some(routed) };
        let inner = Buffer::<u16>::new(
            &self.gpu,
            (assignments * gate.rows).next_multiple_of(4),
            "rows of experts",
        )?;
        if gate.format == up.format {
            let job = Job {
                weights: gate,
                up: Some(up),
                out: inner.address(),
                routed: true,
                first_row: 0,
            };
            self.launch_products(tiles.shape, &input, &[job], Finish::SwiGlu)?;
        } else {
            self.swiglu_apart(&tiles, &input, [gate, up], &inner)?;
        }
        let routed = Routed { tiles: &tiles, divisor: 1, weights: None };
        let input = Input {
            x: inner.address(),
            norm: None,
            rows: assignments,
            cols: down.cols,
            routed: Some(routed),
        };
        let rows = Buffer::<f32>::new(&self.gpu, assignments * hidden, "rows of experts")?;
        let job = Job { weights: down, up: None, out: rows.address(), routed: true, first_row: 0 };
        self.launch_products(tiles.shape, &input, &[job], Finish::F32)?;
        let routed = Some((rows.address(), routing.top_k));
        self.launch_residual(out, None, routed, None)
    }

    /// Gate and up of different formats: two launches, then the rest of SwiGLU.
    fn swiglu_apart(
        &self,
        tiles: &TokenTiles,
        input: &Input<'_>,
        matrices: [&Matrix; 2],
        inner: &Buffer<u16>,
    ) -> Result<()> {
        let count = matrices[0].rows * tiles.order.len();
        let room = || Buffer::<f32>::new(&self.gpu, count, "rows of experts");
        let rows = [room()?, room()?];
        for (weights, out) in matrices.into_iter().zip(&rows) {
            let job = Job { weights, up: None, out: out.address(), routed: true, first_row: 0 };
            self.launch_products(tiles.shape, input, &[job], Finish::F32)?;
        }
        let launch = |source, kernel, constants, blocks: usize| Launch {
            source,
            kernel,
            constants,
            shared: 0,
            blocks: [blocks.div_ceil(256), 1, 1],
            threads: 256,
        };
        let all = arguments![&rows[0], &rows[1], count as u64];
        self.launch(launch(&ROWS, "swiglu", &[], count), &all)?;
        let all = arguments![inner, &rows[0], (count / 4) as u64];
        self.launch(launch(&RESIDUAL_NORM, "to_bf16", &[("WIDTH", 4)], count / 4), &all)
    }
}

/// Gate and up of experts, as one job.
fn gated<'a>(weights: &ExpertWeights<'a, Matrix>, out: u64, routed: bool) -> Job<'a> {
    Job { weights: weights.gate, up: Some(weights.up), out, routed, first_row: 0 }
}
