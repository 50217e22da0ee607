//! What the model holds on the device: activations, vectors, weights, routings.

use std::sync::Arc;

use llama4rs_tensor::{Error, PackedMatrix, Result, WeightFormat};

use crate::fragments::Fragments;
use crate::gpu::Gpu;
use crate::memory::Buffer;
use crate::upload::upload;

/// Activations `[rows, cols]`, row-major single precision.
///
/// As an output a tensor takes the shape that the operation needs; its memory
/// only grows.
#[derive(Default)]
pub struct Tensor {
    values: Option<Buffer<f32>>,
    /// The same values rounded to bf16, by whoever wrote them last.
    halves: Option<Buffer<u16>>,
    halves_are_current: bool,
    /// Room for sums of squares.
    squares: Option<Buffer<f32>>,
    /// The values, and the halves, are still to be multiplied by the factors of this norm.
    norm: Option<RowNorm>,
    rows: usize,
    cols: usize,
}

/// What is left of a norm of rows: their factors, `kernels/norm.cuh`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowNorm {
    /// Where `[rows, parts]` sums of squares are.
    pub squares: u64,
    /// Panels of a row, or one sum.
    pub parts: usize,
    pub eps: f32,
}

/// Where a norm but for its factors is written; zeros: nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NormRoom {
    /// `[rows, cols]`
    pub scaled: u64,
    /// `[rows, cols]` bf16
    pub halves: u64,
    /// `[rows, parts]`
    pub squares: u64,
}

impl Tensor {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Where the values are, to be read; 0 when there are none, or none that are plain: a norm has to be
    /// [finished](crate::Cuda::plain) first, or read by those who [know](Self::scaled) what is left of it.
    pub(crate) fn address(&self) -> u64 {
        match self.norm {
            None => self.values.as_ref().map_or(0, Buffer::address),
            Some(_) => 0,
        }
    }

    /// Where the values and their halves are that factors still have to multiply, and which.
    pub(crate) fn scaled(&self) -> Option<(u64, u64, RowNorm)> {
        let (values, halves) = (self.values.as_ref()?, self.halves.as_ref()?);
        self.norm.map(|norm| (values.address(), halves.address(), norm))
    }

    /// Takes the shape `[rows, cols]` for a norm but for its factors, which the caller writes: `parts` sums
    /// of squares a row.
    pub(crate) fn start_norm(
        &mut self,
        gpu: &Arc<Gpu>,
        (rows, cols): (usize, usize),
        (parts, eps): (usize, f32),
    ) -> Result<NormRoom> {
        self.resize(gpu, rows, cols)?;
        let (scaled, halves) = (self.address(), self.halves_mut(gpu)?.address());
        let len = rows * parts;
        if self.squares.as_ref().is_none_or(|squares| squares.len() < len) {
            if self.squares.take().is_some() {
                gpu.forget_graphs()?;
            }
            self.squares = Some(Buffer::lasting(gpu, len, "activations")?);
        }
        let squares = self.squares.as_ref().map_or(0, Buffer::address);
        self.norm = Some(RowNorm { squares, parts, eps });
        Ok(NormRoom { scaled, halves, squares })
    }

    /// The factors were multiplied, in place.
    pub(crate) fn end_norm(&mut self) {
        (self.norm, self.halves_are_current) = (None, false);
    }

    /// Where the values are, to be changed.
    pub(crate) fn address_mut(&mut self) -> u64 {
        self.halves_are_current = false;
        self.address()
    }

    /// Where the values are as bf16, if somebody wrote them down.
    pub(crate) fn halves(&self) -> Option<&Buffer<u16>> {
        self.halves.as_ref().filter(|_| self.halves_are_current && self.norm.is_none())
    }

    /// Room for all values as bf16, which the caller writes together with the values.
    pub(crate) fn halves_mut(&mut self, gpu: &Arc<Gpu>) -> Result<&Buffer<u16>> {
        let len = self.len();
        if self.halves.as_ref().is_some_and(|halves| halves.len() < len) {
            gpu.forget_graphs()?;
            self.halves = None;
        }
        self.halves_are_current = true;
        match &mut self.halves {
            Some(halves) => Ok(halves),
            empty => Ok(empty.insert(Buffer::lasting(gpu, len, "activations")?)),
        }
    }

    pub(crate) fn values(&self) -> Option<&Buffer<f32>> {
        self.values.as_ref()
    }

    /// Whether what was written as bf16 is all of the values.
    pub(crate) fn keep_halves(&mut self, all: bool) {
        self.halves_are_current &= all;
    }

    /// Takes a new shape; the values are then anything.
    pub(crate) fn resize(&mut self, gpu: &Arc<Gpu>, rows: usize, cols: usize) -> Result<()> {
        self.end_norm();
        let refused = || Error::OutOfMemory { what: "activations", bytes: usize::MAX };
        let len = rows.checked_mul(cols).ok_or_else(refused)?;
        if self.values.as_ref().map_or(0, Buffer::len) < len {
            // The old memory is free for the new.
            if self.values.take().is_some() {
                gpu.forget_graphs()?;
            }
            (self.rows, self.cols) = (0, 0);
            self.values = Some(Buffer::lasting(gpu, len, "activations")?);
        }
        (self.rows, self.cols) = (rows, cols);
        Ok(())
    }

    /// Makes all values zero.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.end_norm();
        self.values.as_mut().map_or(Ok(()), Buffer::clear)
    }

    /// Takes a new shape for the same values.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize) {
        debug_assert_eq!(rows * cols, self.len());
        (self.rows, self.cols) = (rows, cols);
    }

    /// Room for values of this shape; within a step it goes with that.
    pub(crate) fn scratch(gpu: &Arc<Gpu>, rows: usize, cols: usize) -> Result<Self> {
        let values = Some(Buffer::new(gpu, rows * cols, "activations")?);
        Ok(Self { values, rows, cols, ..Self::default() })
    }

    /// A tensor of given values; `values.len()` is `rows * cols`. Within a step it lasts until the next one.
    pub(crate) fn of(gpu: &Arc<Gpu>, values: &[f32], rows: usize, cols: usize) -> Result<Self> {
        if let Some(values) = Buffer::input(gpu, "activations", values, 0, false) {
            return Ok(Self { values: Some(values), rows, cols, ..Self::default() });
        }
        let mut tensor = Self::default();
        tensor.resize(gpu, rows, cols)?;
        if let Some(buffer) = &mut tensor.values {
            buffer.write(values)?;
        }
        Ok(tensor)
    }
}

/// A constant vector.
pub struct Vector(pub(crate) Buffer<f32>);

/// One weight matrix or a stack of them.
pub struct Matrix {
    pub(crate) format: WeightFormat,
    pub(crate) stack: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// As they are packed; nothing when there are fragments.
    pub(crate) panels: Buffer<u8>,
    /// For tensor cores.
    pub(crate) fragments: Option<Fragments>,
}

impl Matrix {
    pub(crate) fn upload(gpu: &Arc<Gpu>, packed: &PackedMatrix) -> Result<Self> {
        let mut panels = Buffer::new(gpu, packed.bytes().len(), "weights")?;
        upload(gpu, packed.bytes(), &mut panels)?;
        Ok(Self {
            format: packed.format(),
            stack: packed.stack(),
            rows: packed.rows(),
            cols: packed.cols(),
            panels,
            fragments: None,
        })
    }

    /// The constants that a kernel of this format is compiled with.
    pub(crate) fn constants(&self) -> [(&'static str, u32); 2] {
        let format = match self.format {
            WeightFormat::F32 => 0,
            WeightFormat::Bf16 => 1,
            WeightFormat::Int8 { .. } => 2,
            WeightFormat::Int4 { .. } => 3,
        };
        [("FORMAT", format), ("GROUP", self.format.group().unwrap_or(0) as u32)]
    }

    /// Bytes from one panel to the next.
    pub(crate) fn panel_bytes(&self) -> u64 {
        self.format.panel_bytes(self.cols) as u64
    }

    /// Bytes of a panel before its scales.
    pub(crate) fn code_bytes(&self) -> u64 {
        self.format.panel_code_bytes(self.cols) as u64
    }
}

/// Which experts each row goes to.
pub struct Routing {
    pub(crate) rows: usize,
    pub(crate) top_k: usize,
    pub(crate) num_experts: usize,
    /// `[rows, top_k]`
    pub(crate) experts: Buffer<u32>,
    /// `[rows, top_k]`
    pub(crate) weights: Buffer<f32>,
}
