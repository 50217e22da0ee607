//! Feed-forward layers, dense and of experts: products with SwiGLU between them.

use llama4rs_tensor::{Error, ExpertWeights, MixtureWeights, Residual, Result, WeightFormat};

use super::products::{Finish, Input, Job, Routed};
use super::residual::{is_wide_enough, Mixture};
use super::router::{TokenTiles, MOST_EXPERTS};
use super::shapes::{Shape, MOST_DECODE_ROWS};
use crate::arguments::arguments;
use crate::cuda::{Cuda, Launch};
use crate::kernels::{RESIDUAL_NORM, ROWS};
use crate::memory::Buffer;
use crate::tensor::{Matrix, Routing, Tensor};

/// Whether [`Cuda::run_mixture_add`] takes these weights.
pub(crate) fn fits_mixture(weights: &MixtureWeights<'_, Matrix>) -> bool {
    let MixtureWeights { router, shared, routed, .. } = weights;
    router.format == WeightFormat::F32
        && router.rows <= MOST_EXPERTS
        && fits_feed_forward(shared)
        && fits_feed_forward(routed)
        && (shared.gate.rows, shared.gate.cols) == (routed.gate.rows, routed.gate.cols)
}

/// Whether [`Cuda::run_feed_forward_add`] takes these weights: in fragment order, gate and up alike.
pub(crate) fn fits_feed_forward(weights: &ExpertWeights<'_, Matrix>) -> bool {
    weights.gate.format == weights.up.format
        && is_wide_enough(weights.gate.cols)
        && [weights.gate, weights.up, weights.down].iter().all(|matrix| matrix.fragments.is_some())
}

impl Cuda {
    /// [`llama4rs_tensor::Backend::mixture_add`], where [it can](fits_mixture): in three launches, or six for
    /// more rows than [`MOST_DECODE_ROWS`].
    pub(crate) fn run_mixture_add(
        &self,
        weights: &MixtureWeights<'_, Matrix>,
        residual: Residual<'_, Self>,
    ) -> Result<Routing> {
        let MixtureWeights { router, top_k, ref shared, ref routed } = *weights;
        let Residual { x, h, delta, norm } = residual;
        let (rows, hidden, inner) = (h.rows(), routed.gate.cols, routed.gate.rows);
        let formats = [routed.gate.format, routed.down.format];
        let (routing, tiles) = self.run_router(h, router, top_k, &formats)?;
        let assignments = rows * top_k;
        let mut scratch = None;
        let (halves, of_norm) = self.product_rows(h, &mut scratch)?;
        let inners =
            Buffer::<u16>::new(&self.gpu, (rows + assignments) * inner, "rows of experts")?;
        let by_expert = |divisor, weights| Some(Routed { tiles: &tiles, divisor, weights });
        let by_weight = by_expert(top_k, Some(&routing.weights));
        let input = Input { x: halves, norm: of_norm, rows, cols: hidden, routed: by_weight };
        let jobs = [
            gated(shared, inners.address(), false),
            gated(routed, inners.offset(rows * inner), true),
        ];
        self.launch_together(tiles.shape, &input, jobs, Finish::SwiGlu)?;

        delta.resize(&self.gpu, rows, hidden)?;
        let expert_rows = Buffer::<f32>::new(&self.gpu, assignments * hidden, "rows of experts")?;
        let routed_inners = by_expert(1, None);
        let input =
            Input { x: inners.address(), norm: None, rows, cols: inner, routed: routed_inners };
        let down =
            |weights, out, first_row, routed| Job { weights, up: None, out, routed, first_row };
        let jobs = [
            down(shared.down, delta.address(), 0, false),
            down(routed.down, expert_rows.address(), rows, true),
        ];
        let norm = norm.map(|norm| (norm, h));
        // Tickets count the blocks of one launch.
        if rows <= MOST_DECODE_ROWS && shared.down.format == routed.down.format {
            let mut end = self.residual_end(x, norm)?;
            end.mixture = Mixture {
                shared: delta.address(),
                routed: expert_rows.address(),
                tickets: self.tickets.address(),
                top_k,
            };
            self.launch_products(tiles.shape, &input, &jobs, Finish::Residual(end))?;
            return Ok(routing);
        }
        self.launch_together(tiles.shape, &input, jobs, Finish::F32)?;
        let routed_rows = Some((expert_rows.address(), top_k));
        self.launch_residual(x, Some(delta.address()), routed_rows, norm)?;
        Ok(routing)
    }

    /// [`llama4rs_tensor::Backend::feed_forward_add`], where [it can](fits_feed_forward): in two launches, or
    /// a few more.
    pub(crate) fn run_feed_forward_add(
        &self,
        weights: &ExpertWeights<'_, Matrix>,
        residual: Residual<'_, Self>,
    ) -> Result<()> {
        let h = &*residual.h;
        let (rows, hidden, inner) = (h.rows(), weights.gate.cols, weights.gate.rows);
        let mut scratch = None;
        let (halves, norm) = self.product_rows(h, &mut scratch)?;
        let inners = Buffer::<u16>::new(&self.gpu, rows * inner, "inner activations")?;
        let input = Input { x: halves, norm, rows, cols: hidden, routed: None };
        let shape = self.gated_shape_for(rows, inner, weights.gate.format);
        let job = gated(weights, inners.address(), false);
        self.launch_products(shape, &input, &[job], Finish::SwiGlu)?;
        let input = Input { x: inners.address(), norm: None, rows, cols: inner, routed: None };
        self.run_last_product(&input, weights.down, residual)
    }

    /// [`llama4rs_tensor::Backend::matmul_add`] for a matrix in fragment order, with as many outputs as
    /// [the norm takes](is_wide_enough): in one launch, or a few for more rows than [`MOST_DECODE_ROWS`].
    pub(crate) fn run_matmul_add(
        &self,
        x: &Tensor,
        weights: &Matrix,
        residual: Residual<'_, Self>,
    ) -> Result<()> {
        let x = self.plain(x)?;
        let mut scratch = None;
        let halves = self.halves_of(&x, &mut scratch)?.address();
        let input = Input { x: halves, norm: None, rows: x.rows(), cols: x.cols(), routed: None };
        self.run_last_product(&input, weights, residual)
    }

    /// The products with which a half ends, where nothing else is added.
    fn run_last_product(
        &self,
        input: &Input<'_>,
        weights: &Matrix,
        residual: Residual<'_, Self>,
    ) -> Result<()> {
        let Residual { x, h, delta, norm } = residual;
        let norm = norm.map(|norm| (norm, h));
        let shape = self.shape_for(input.rows, weights.rows, weights.format);
        let job = |out| Job { weights, up: None, out, routed: false, first_row: 0 };
        if shape.is_decode() {
            let end = self.residual_end(x, norm)?;
            return self.launch_products(shape, input, &[job(0)], Finish::Residual(end));
        }
        delta.resize(&self.gpu, input.rows, weights.rows)?;
        self.launch_products(shape, input, &[job(delta.address_mut())], Finish::F32)?;
        self.launch_residual(x, Some(delta.address()), None, norm)
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
            // Weights that two tiles of tokens read come from the cache the second time.
            _ if input.rows <= MOST_DECODE_ROWS => routed_shape,
            Finish::SwiGlu => self.gated_shape_for(input.rows, outputs, format),
            _ => self.shape_for(input.rows, outputs, format),
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
