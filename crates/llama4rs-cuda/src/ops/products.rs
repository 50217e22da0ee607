//! Products on tensor cores: `matmul_decode.cu` and `matmul_tile.cu`.
//!
//! Activations are rounded to bf16, sums are single precision, and every kernel
//! adds in the same order (`kernels/fragments.cuh`): which one runs is a question
//! of speed alone.

use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::{Error, ExpertWeights, MixtureWeights, Result, WeightFormat};

use crate::cuda::{Cuda, Launch};
use crate::fragments::Fragments;
use crate::kernels::{MATMUL_DECODE, MATMUL_TILE, RESIDUAL_NORM, ROUTE, ROWS};
use crate::memory::Buffer;
use crate::module::{arguments, Structure};
use crate::ops::fused::is_wide_enough;
use crate::tensor::{Matrix, Routing, Tensor};

/// Matrices of one launch.
const MOST_JOBS: usize = 4;
/// Bytes of a `MatmulJob`.
const JOB_BYTES: usize = 72;
/// Slices of the inputs that are summed up separately.
const SLICES: usize = 4;
/// Token tiles that share a pass over the rows in `matmul_tile.cu`.
const SPAN: usize = 8;
/// Experts that `route.cu` has room for.
pub(crate) const MOST_EXPERTS: usize = 256;
/// Inputs of a split of `router_parts`.
const ROUTER_INPUTS: usize = 256;

/// What becomes of a product; the numbers are those of `matmul.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// Stored in single precision.
    F32 = 0,
    /// `silu(x · gateᵀ) * (x · upᵀ)`, stored as bf16.
    SwiGlu = 2,
}

/// One matrix, or a stack for sorted rows, of a launch.
pub(crate) struct Job<'a> {
    pub weights: &'a Matrix,
    /// The second matrix of [`Finish::SwiGlu`], with the first one's shape and format.
    pub up: Option<&'a Matrix>,
    /// Where `[rows, outputs]` go.
    pub out: u64,
    /// Whether rows go to the experts of the stack that [`Input::routed`] says.
    pub routed: bool,
    /// The row of [`Input::x`] with which its rows begin.
    pub first_row: usize,
}

/// The rows of a launch.
pub(crate) struct Input<'a> {
    /// `[rows, cols]` bf16
    pub x: u64,
    pub rows: usize,
    pub cols: usize,
    pub routed: Option<Routed<'a>>,
}

/// Which rows go to which expert.
pub(crate) struct Routed<'a> {
    pub tiles: &'a TokenTiles,
    /// Assignments of a row of `x`.
    pub divisor: usize,
    /// `[assignments]`: factors of the products.
    pub weights: Option<&'a Buffer<f32>>,
}

/// Assignments sorted by expert, in tiles.
pub(crate) struct TokenTiles {
    table: Buffer<u32>,
    count: Buffer<u32>,
    order: Buffer<u32>,
    /// Tiles that there are at most.
    most: usize,
    shape: Shape,
}

/// One of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `matmul_decode_8`
    Decode8,
    /// `matmul_decode_16`
    Decode16,
    /// `matmul_tile_32`
    Tile32,
    /// `matmul_tile_128`
    Tile128,
    /// `matmul_split_64`, then `add_slices`
    Split64,
}

impl Shape {
    /// Tokens of a tile.
    fn tokens(self) -> usize {
        match self {
            Shape::Decode8 => 8,
            Shape::Decode16 => 16,
            Shape::Tile32 => 32,
            Shape::Split64 => 64,
            Shape::Tile128 => 128,
        }
    }

    fn is_decode(self) -> bool {
        matches!(self, Shape::Decode8 | Shape::Decode16)
    }

    /// Rows of each matrix that one block computes.
    fn rows(self, finish: Finish) -> usize {
        match (self.is_decode(), finish) {
            (true, _) => 16,
            (false, Finish::F32) => 128,
            (false, Finish::SwiGlu) => 64,
        }
    }

    fn span(self) -> usize {
        if self.is_decode() {
            1
        } else {
            SPAN
        }
    }

    /// Bytes of dynamic shared memory.
    fn shared(self, format: WeightFormat) -> usize {
        let (stages, block) = match format {
            WeightFormat::F32 | WeightFormat::Bf16 => (3, 2048),
            WeightFormat::Int8 { .. } => (4, 1024),
            WeightFormat::Int4 { .. } => (4, 512),
        };
        let ring = stages * (self.tokens() * 128 + 8 * block);
        match self {
            Shape::Decode8 | Shape::Decode16 => 0,
            Shape::Split64 => ring,
            Shape::Tile32 | Shape::Tile128 => ring + self.tokens() * 512,
        }
    }

    fn kernel(self) -> &'static str {
        match self {
            Shape::Decode8 => "matmul_decode_8",
            Shape::Decode16 => "matmul_decode_16",
            Shape::Tile32 => "matmul_tile_32",
            Shape::Tile128 => "matmul_tile_128",
            Shape::Split64 => "matmul_split_64",
        }
    }
}

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
    /// The kernel for `rows` rows and matrices of `outputs` outputs in total.
    fn shape_for(&self, rows: usize, outputs: usize, format: WeightFormat) -> Shape {
        let blocks = outputs.div_ceil(128) * rows.div_ceil(128);
        match rows {
            0..=8 => Shape::Decode8,
            9..=16 => Shape::Decode16,
            _ if rows > 64 && blocks >= self.info().multiprocessors as usize => {
                self.if_fits(Shape::Tile128, format)
            }
            _ => self.if_fits(Shape::Split64, format),
        }
    }

    /// The kernel for experts that get `rows` rows each, on average.
    fn expert_shape_for(
        &self,
        assignments: usize,
        experts: usize,
        formats: &[WeightFormat],
    ) -> Shape {
        let shape = match assignments / experts {
            _ if assignments <= 8 => Shape::Decode8,
            0..=4 => Shape::Decode8,
            5..=12 => Shape::Decode16,
            13..=48 => Shape::Tile32,
            _ => Shape::Tile128,
        };
        formats.iter().fold(shape, |shape, &format| self.if_fits(shape, format))
    }

    /// `shape`, or the one with the least shared memory.
    fn if_fits(&self, shape: Shape, format: WeightFormat) -> Shape {
        match shape.shared(format) <= self.info().shared_memory {
            true => shape,
            false => Shape::Tile32,
        }
    }

    /// The rows of `x` as bf16: what is written down already, or `scratch`.
    pub(crate) fn halves_of<'a>(
        &self,
        x: &'a Tensor,
        scratch: &'a mut Option<Buffer<u16>>,
    ) -> Result<&'a Buffer<u16>> {
        if let Some(halves) = x.halves() {
            return Ok(halves);
        }
        let halves =
            scratch.insert(Buffer::new(&self.gpu, x.len().next_multiple_of(4), "activations")?);
        let quads = x.len() / 4;
        let launch = Launch {
            source: &RESIDUAL_NORM,
            kernel: "to_bf16",
            constants: &[("WIDTH", 4)],
            shared: 0,
            blocks: [quads.div_ceil(256), 1, 1],
            threads: 256,
        };
        self.launch(launch, &arguments![&*halves, x.address(), quads as u64])?;
        Ok(halves)
    }

    /// `outs[i] = x · weights[i]ᵀ` for matrices in fragment order.
    pub(crate) fn run_products(
        &self,
        x: &Tensor,
        weights: &[&Matrix],
        outs: &mut [&mut Tensor],
    ) -> Result<()> {
        let mut scratch = None;
        let halves = self.halves_of(x, &mut scratch)?;
        let input = Input { x: halves.address(), rows: x.rows(), cols: x.cols(), routed: None };
        for (weights, out) in weights.iter().zip(outs.iter_mut()) {
            out.resize(&self.gpu, x.rows(), weights.rows)?;
        }
        // Neighbours of one format share a launch.
        let mut first = 0;
        while first < weights.len() {
            let same = weights[first..].iter().take_while(|m| m.format == weights[first].format);
            let count = same.count().min(MOST_JOBS);
            let part = first..first + count;
            let outputs = weights[part.clone()].iter().map(|m| m.rows).sum();
            let shape = self.shape_for(x.rows(), outputs, weights[first].format);
            let jobs: Vec<Job> = weights[part.clone()]
                .iter()
                .zip(&outs[part])
                .map(|(weights, out)| Job {
                    weights,
                    up: None,
                    out: out.address(),
                    routed: false,
                    first_row: 0,
                })
                .collect();
            self.launch_products(shape, &input, &jobs, Finish::F32)?;
            first += count;
        }
        Ok(())
    }

    /// One launch (two with slices of their own) of at most [`MOST_JOBS`] jobs of one format.
    pub(crate) fn launch_products(
        &self,
        shape: Shape,
        input: &Input<'_>,
        jobs: &[Job<'_>],
        finish: Finish,
    ) -> Result<()> {
        let split = shape == Shape::Split64;
        let slices = jobs
            .iter()
            .filter(|_| split)
            .map(|job| {
                Buffer::new(&self.gpu, SLICES * input.rows * job.weights.rows, "sums of products")
            })
            .collect::<Result<Vec<Buffer<f32>>>>()?;
        let format = jobs[0].weights.format;
        let mut arguments = Structure::default();
        let mut blocks = 0;
        for (i, job) in jobs.iter().enumerate() {
            debug_assert!(job.weights.format == format && job.weights.cols == input.cols);
            let out = slices.get(i).map_or(job.out, Buffer::address);
            arguments = job_fields(arguments, job, out, blocks)?;
            let tiles = match (&input.routed, job.routed) {
                (Some(routed), true) => routed.tiles.most,
                _ => input.rows.div_ceil(shape.tokens()),
            };
            blocks += job.weights.rows.div_ceil(shape.rows(finish))
                * tiles.next_multiple_of(shape.span());
        }
        arguments = arguments.zeros((MOST_JOBS - jobs.len()) * JOB_BYTES).long(input.x);
        let routed = input.routed.as_ref();
        let tiles = routed.map(|routed| routed.tiles);
        for buffer in [tiles.map(|t| &t.table), tiles.map(|t| &t.count), tiles.map(|t| &t.order)] {
            arguments = arguments.long(buffer.map_or(0, Buffer::address));
        }
        let arguments = arguments
            .long(routed.and_then(|r| r.weights).map_or(0, Buffer::address))
            .size(jobs.len())?
            .size(input.cols)?
            .size(input.rows)?
            .size(routed.map_or(1, |r| r.divisor))?;

        let [format_constant, group] = jobs[0].weights.constants();
        let panels = if finish == Finish::SwiGlu { 2 } else { 1 };
        let constants = [format_constant, group, ("FINISH", finish as u32), ("ROW_PANELS", panels)];
        let decode = shape.is_decode();
        let launch = Launch {
            source: if decode { &MATMUL_DECODE } else { &MATMUL_TILE },
            kernel: shape.kernel(),
            constants: if decode { &constants } else { &constants[..3] },
            shared: shape.shared(format),
            blocks: [blocks, if split { SLICES } else { 1 }, 1],
            threads: if decode { 128 } else { 256 },
        };
        self.launch(launch, &arguments![arguments])?;
        for (job, slices) in jobs.iter().zip(&slices) {
            let count = input.rows * job.weights.rows;
            let launch = Launch {
                source: &MATMUL_TILE,
                kernel: "add_slices",
                constants: &constants[..3],
                shared: 0,
                blocks: [count.div_ceil(256), 1, 1],
                threads: 256,
            };
            self.launch(launch, &arguments![slices, job.out, count as u64])?;
        }
        Ok(())
    }

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
        let halves = self.halves_of(x, &mut scratch)?.address();
        let room = (rows + assignments) * inner;
        let inners = Buffer::<u16>::new(&self.gpu, room, "rows of experts")?;
        let by_expert = |divisor, weights| Some(Routed { tiles: &tiles, divisor, weights });
        let input = Input {
            x: halves,
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
        let input = Input { x: inners.address(), rows, cols: inner, routed: by_expert(1, None) };
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
        let halves = self.halves_of(x, &mut scratch)?.address();
        let inners = Buffer::<u16>::new(&self.gpu, rows * inner, "inner activations")?;
        let input = Input { x: halves, rows, cols: hidden, routed: None };
        let shape = self.gated_shape_for(rows, inner, weights.gate.format);
        let job = gated(weights, inners.address(), false);
        self.launch_products(shape, &input, &[job], Finish::SwiGlu)?;

        out.resize(&self.gpu, rows, hidden)?;
        let input = Input { x: inners.address(), rows, cols: inner, routed: None };
        let shape = self.shape_for(rows, hidden, weights.down.format);
        let out = out.address_mut();
        let job = Job { weights: weights.down, up: None, out, routed: false, first_row: 0 };
        self.launch_products(shape, &input, &[job], Finish::F32)
    }

    /// The kernel for gate and up of `inner` outputs each.
    fn gated_shape_for(&self, rows: usize, inner: usize, format: WeightFormat) -> Shape {
        match self.shape_for(rows, 2 * inner, format) {
            // Slices of their own have no SwiGLU.
            Shape::Split64 => Shape::Tile32,
            shape => shape,
        }
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

    /// Logits, choices and tiles of a router in f32 panels.
    fn run_router(
        &self,
        x: &Tensor,
        router: &Matrix,
        top_k: usize,
        formats: &[WeightFormat],
    ) -> Result<(Routing, TokenTiles)> {
        let (rows, num_experts) = (x.rows(), router.rows);
        let assignments = rows * top_k;
        let splits = router.cols.div_ceil(ROUTER_INPUTS);
        let parts = Buffer::<f32>::new(&self.gpu, splits * rows * num_experts, "routing")?;
        let logits = Buffer::<f32>::new(&self.gpu, rows * num_experts, "routing")?;
        let experts = Buffer::result(&self.gpu, assignments, "routing")?;
        let weights = Buffer::new(&self.gpu, assignments, "routing")?;
        let tiles = self.room_for_tiles(assignments, num_experts, formats)?;
        let launch = |kernel, blocks, threads| Launch {
            source: &ROUTE,
            kernel,
            constants: &[],
            shared: 0,
            blocks,
            threads,
        };
        let panel_floats = router.panel_bytes() / 4;
        let all = arguments![
            x.address(),
            &router.panels,
            &parts,
            rows,
            router.cols,
            num_experts,
            panel_floats
        ];
        let blocks = [num_experts.div_ceil(PANEL_ROWS), splits, rows.div_ceil(4)];
        self.launch(launch("router_parts", blocks, 128), &all)?;
        let all = arguments![
            &parts,
            &logits,
            splits,
            &experts,
            &weights,
            &tiles.order,
            &tiles.table,
            &tiles.count,
            rows,
            num_experts,
            top_k,
            tiles.shape.tokens()
        ];
        self.launch(launch("route", [1, 1, 1], 1024), &all)?;
        Ok((Routing { rows, top_k, num_experts, experts, weights }, tiles))
    }

    fn room_for_tiles(
        &self,
        assignments: usize,
        num_experts: usize,
        formats: &[WeightFormat],
    ) -> Result<TokenTiles> {
        let shape = self.expert_shape_for(assignments, num_experts, formats);
        let most = num_experts.min(assignments) + assignments / shape.tokens();
        let table = Buffer::new(&self.gpu, 4 * most, "routing")?;
        let count = Buffer::new(&self.gpu, 1, "routing")?;
        let order = Buffer::new(&self.gpu, assignments, "routing")?;
        Ok(TokenTiles { table, count, order, most, shape })
    }

    /// Sorts a routing's assignments into tiles for the kernel that suits them.
    fn token_tiles(&self, routing: &Routing, formats: &[WeightFormat]) -> Result<TokenTiles> {
        let Routing { rows, top_k, num_experts, ref experts, .. } = *routing;
        if num_experts > MOST_EXPERTS {
            let most = format!("at most {MOST_EXPERTS} experts");
            return Err(Error::shape("experts", most, num_experts));
        }
        let assignments = rows * top_k;
        let tiles = self.room_for_tiles(assignments, num_experts, formats)?;
        let TokenTiles { table, count, order, shape, .. } = &tiles;
        let launch = Launch {
            source: &ROUTE,
            kernel: "token_tiles",
            constants: &[],
            shared: 0,
            blocks: [1, 1, 1],
            threads: 1024,
        };
        let tokens = shape.tokens();
        let all = arguments![experts, order, table, count, assignments, num_experts, tokens];
        self.launch(launch, &all)?;
        Ok(tiles)
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
        let halves = self.halves_of(x, &mut scratch)?;
        let routed =
            Routed { tiles: &tiles, divisor: routing.top_k, weights: Some(&routing.weights) };
        let input =
            Input { x: halves.address(), rows: x.rows(), cols: hidden, routed: Some(routed) };
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
        let input =
            Input { x: inner.address(), rows: assignments, cols: down.cols, routed: Some(routed) };
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

/// The fields of a `MatmulJob` whose first block is `first_block`.
fn job_fields(fields: Structure, job: &Job<'_>, out: u64, first_block: usize) -> Result<Structure> {
    let of = |matrix: &Matrix| -> [u64; 2] {
        let parts = |f: &Fragments| [f.codes.address(), f.scales.address()];
        matrix.fragments.as_ref().map_or([0; 2], parts)
    };
    let [codes, scales] = of(job.weights);
    let [up_codes, up_scales] = job.up.map_or([0; 2], of);
    let strides =
        job.weights.fragments.as_ref().map_or([0; 2], |f| [f.code_stride, f.scale_stride]);
    fields
        .long(codes)
        .long(scales)
        .long(up_codes)
        .long(up_scales)
        .long(out)
        .long(strides[0] as u64)
        .long(strides[1] as u64)
        .size(job.weights.rows)?
        .size(first_block)?
        .size(job.routed as usize)?
        .size(job.first_row)
}
