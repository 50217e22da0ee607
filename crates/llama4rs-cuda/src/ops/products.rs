//! Products on tensor cores: `matmul_decode.cu`, `matmul_tile.cu` and `matmul_wgmma.cu`.
//!
//! Activations are rounded to bf16, sums are single precision, and every kernel
//! adds in the same order (`kernels/fragments.cuh`): which one runs is a question
//! of speed alone.

use llama4rs_tensor::Result;

use super::residual::{Mixture, ResidualEnd};
use super::router::TokenTiles;
use super::shapes::Shape;
use crate::arguments::{arguments, Structure};
use crate::cuda::{Cuda, Launch};
use crate::fragments::Fragments;
use crate::kernels::{MATMUL_TILE, RESIDUAL_NORM};
use crate::memory::Buffer;
use crate::tensor::{Matrix, NormRoom, RowNorm, Tensor};

/// Matrices of one launch.
const MOST_JOBS: usize = 4;
/// Bytes of a `MatmulJob`.
const JOB_BYTES: usize = 72;
/// Slices of the inputs that are summed up separately.
const SLICES: usize = 4;

/// What becomes of a product; the numbers are those of `matmul.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// Stored in single precision.
    F32,
    /// `silu(x · gateᵀ) * (x · upᵀ)`, stored as bf16.
    SwiGlu,
    /// Added to the residual stream, at the end of a half of a block; only by kernels that
    /// [take](Shape::is_decode) all rows of a matrix in one tile.
    Residual(ResidualEnd),
}

impl Finish {
    fn number(self) -> u32 {
        match self {
            Finish::F32 => 0,
            Finish::SwiGlu => 2,
            Finish::Residual(_) => 3,
        }
    }
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
    /// What is left of their norm.
    pub norm: Option<RowNorm>,
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

impl Cuda {
    /// The rows of `x` as bf16, and what is left of their norm.
    pub(crate) fn product_rows(
        &self,
        x: &Tensor,
        scratch: &mut Option<Buffer<u16>>,
    ) -> Result<(u64, Option<RowNorm>)> {
        match x.scaled() {
            Some((_, halves, norm)) => Ok((halves, Some(norm))),
            None => Ok((self.halves_of(x, scratch)?.address(), None)),
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
        let (halves, norm) = self.product_rows(x, &mut scratch)?;
        let input = Input { x: halves, norm, rows: x.rows(), cols: x.cols(), routed: None };
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
        let mut slices = Vec::new();
        for job in jobs.iter().filter(|_| split) {
            let len = SLICES * input.rows * job.weights.rows;
            slices.push(Buffer::<f32>::new(&self.gpu, len, "sums of products")?);
        }
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
        let ordered = match shape {
            Shape::Wgmma128 => Some(self.in_step_order(input, jobs)?),
            _ => None,
        };
        let x = ordered.as_ref().map_or(input.x, Buffer::address);
        arguments = arguments.zeros((MOST_JOBS - jobs.len()) * JOB_BYTES).long(x);
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
            .size(routed.map_or(1, |r| r.divisor))?
            .row_norm(input.norm)?;
        let arguments = end_fields(arguments, finish)?;

        let [format_constant, group] = jobs[0].weights.constants();
        let panels = if finish == Finish::SwiGlu { 2 } else { 1 };
        let constants =
            [format_constant, group, ("FINISH", finish.number()), ("ROW_PANELS", panels)];
        let decode = shape.is_decode();
        debug_assert!(decode || input.norm.is_none_or(|norm| norm.parts == 1));
        let launch = Launch {
            source: shape.source(),
            kernel: shape.kernel(),
            constants: if decode { &constants } else { &constants[..3] },
            shared: shape.shared(format),
            blocks: [blocks, if split { SLICES } else { 1 }, 1],
            threads: if decode { 128 } else { 256 },
        };
        self.launch(launch, &arguments![arguments])?;
        for (job, slices) in jobs.iter().zip(&slices) {
            let outputs = job.weights.rows;
            let launch = Launch {
                source: &MATMUL_TILE,
                kernel: "add_slices",
                constants: &constants[..3],
                shared: 0,
                blocks: [outputs.div_ceil(256), input.rows, 1],
                threads: 256,
            };
            let all = arguments![slices, job.out, outputs, input.norm, input.cols];
            self.launch(launch, &all)?;
        }
        Ok(())
    }
}

/// The fields of a `ResidualEnd`.
fn end_fields(fields: Structure, finish: Finish) -> Result<Structure> {
    let end = match finish {
        Finish::Residual(end) => end,
        _ => ResidualEnd::default(),
    };
    let NormRoom { scaled, halves, squares } = end.norm;
    let fields = fields.long(end.x).long(end.weight).long(scaled).long(halves).long(squares);
    let Mixture { shared, routed, tickets, top_k } = end.mixture;
    fields.long(shared).long(routed).long(tickets).size(top_k)
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
