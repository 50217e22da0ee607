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
    rows: usize,
    cols: usize,
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

    /// Where the values are, to be read; 0 when there are none.
    pub(crate) fn address(&self) -> u64 {
        self.values.as_ref().map_or(0, Buffer::address)
    }

    /// Where the values are, to be changed.
    pub(crate) fn address_mut(&mut self) -> u64 {
        self.halves_are_current = false;
        self.address()
    }

    /// Where the values are as bf16, if somebody wrote them down.
    pub(crate) fn halves(&self) -> Option<&Buffer<u16>> {
        self.halves.as_ref().filter(|_| self.halves_are_current)
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
        self.halves_are_current = false;
        let refused = Error::OutOfMemory { what: "activations", bytes: usize::MAX };
        let len = rows.checked_mul(cols).ok_or(refused)?;
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
        self.halves_are_current = false;
        self.values.as_mut().map_or(Ok(()), Buffer::clear)
    }

    /// Takes a new shape for the same values.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize) {
        debug_assert_eq!(rows * cols, self.len());
        (self.rows, self.cols) = (rows, cols);
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
