//! Timings of single operations on a GPU, for `benches/gpu.py`.

use std::path::PathBuf;

use llama4rs_cuda::measure::Work;
use llama4rs_cuda::Cuda;
use llama4rs_tensor::Result;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::checkpoint::parse_format;
use crate::engine::parse_kv_dtype;
use crate::errors;
use crate::guard::detached;

/// A GPU to measure.
#[pyclass(frozen)]
pub(crate) struct GpuProbe(Cuda);

#[pymethods]
impl GpuProbe {
    #[new]
    fn new(py: Python<'_>, ordinal: usize, nvrtc_folders: Vec<PathBuf>) -> PyResult<Self> {
        let open = move || Cuda::open(ordinal, &nvrtc_folders)?.with_tensor_cores(true);
        Ok(Self(device(py, open)?))
    }

    /// The device's name.
    #[getter]
    fn name(&self) -> String {
        self.0.info().name.clone()
    }

    /// What the products of prompts are made of, and why.
    #[getter]
    fn prompt_products(&self) -> String {
        self.0.prompt_products().to_string()
    }

    /// Free and total bytes of memory.
    fn memory(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        device(py, || self.0.memory())
    }

    #[pyo3(signature = (bytes, *, rounds))]
    fn copy<'py>(
        &self,
        py: Python<'py>,
        bytes: usize,
        rounds: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.measure(py, Work::Copy { bytes }, rounds)
    }

    #[pyo3(signature = (weights, rows, cols, tokens, *, rounds))]
    fn matmul<'py>(
        &self,
        py: Python<'py>,
        weights: &str,
        rows: Vec<usize>,
        cols: usize,
        tokens: usize,
        rounds: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        check_sizes(rows.iter().chain(&[cols, tokens]))?;
        let format = parse_fragments(weights, cols)?;
        self.measure(py, Work::Matmul { format, rows, cols, tokens }, rounds)
    }

    #[pyo3(signature = (weights, experts, tokens, hidden, inner, *, rounds))]
    fn experts<'py>(
        &self,
        py: Python<'py>,
        weights: &str,
        experts: usize,
        tokens: usize,
        hidden: usize,
        inner: usize,
        rounds: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        check_sizes(&[experts, tokens, hidden, inner])?;
        parse_fragments(weights, hidden)?;
        let format = parse_fragments(weights, inner)?;
        self.measure(py, Work::Experts { format, experts, tokens, hidden, inner }, rounds)
    }

    #[pyo3(signature = (kv_cache, heads, kv_heads, head_dim, sequences, context, rows, *, rounds))]
    fn attend<'py>(
        &self,
        py: Python<'py>,
        kv_cache: &str,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        sequences: usize,
        context: usize,
        rows: usize,
        rounds: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        check_sizes(&[heads, kv_heads, head_dim, sequences, context, rows])?;
        if !heads.is_multiple_of(kv_heads) || rows > context {
            let message = "heads must be a multiple of kv_heads, and rows at most context";
            return Err(PyValueError::new_err(message));
        }
        let dtype = parse_kv_dtype(Some(kv_cache))?.unwrap_or(llama4rs_tensor::KvDtype::Bf16);
        let work = Work::Attend { dtype, heads, kv_heads, head_dim, sequences, context, rows };
        self.measure(py, work, rounds)
    }

    #[pyo3(signature = (rows, cols, *, rounds))]
    fn add_norm<'py>(
        &self,
        py: Python<'py>,
        rows: usize,
        cols: usize,
        rounds: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        check_sizes(&[rows, cols])?;
        self.measure(py, Work::AddNorm { rows, cols }, rounds)
    }

    #[pyo3(signature = (rows, vocab, draw, *, rounds))]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        rows: usize,
        vocab: usize,
        draw: bool,
        rounds: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        check_sizes(&[rows, vocab])?;
        self.measure(py, Work::Sample { rows, vocab, draw }, rounds)
    }

    /// Values of a product that differ in a bit between all rows at once and one by one.
    fn differing_products(
        &self,
        py: Python<'_>,
        weights: &str,
        rows: usize,
        cols: usize,
        tokens: usize,
    ) -> PyResult<usize> {
        check_sizes(&[rows, cols, tokens])?;
        let format = parse_fragments(weights, cols)?;
        device(py, || self.0.differing_products(format, rows, cols, tokens))
    }
}

impl GpuProbe {
    fn measure<'py>(
        &self,
        py: Python<'py>,
        work: Work,
        rounds: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        let measured = device(py, || self.0.measure(&work, rounds))?;
        let dict = PyDict::new(py);
        dict.set_item("seconds", measured.seconds)?;
        dict.set_item("bytes", measured.bytes)?;
        dict.set_item("operations", measured.operations)?;
        Ok(dict)
    }
}

/// Runs `work` without the interpreter.
fn device<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    detached(py, work)?.map_err(|error| errors::engine(py, error.into()))
}

fn check_sizes<'a>(sizes: impl IntoIterator<Item = &'a usize>) -> PyResult<()> {
    match sizes.into_iter().all(|size| (1..1 << 31).contains(size)) {
        true => Ok(()),
        false => Err(PyValueError::new_err("sizes must be from 1 to 2^31 - 1")),
    }
}

/// A format that tensor cores take.
fn parse_fragments(weights: &str, cols: usize) -> PyResult<llama4rs_tensor::WeightFormat> {
    let format = parse_format(weights)?;
    match format != llama4rs_tensor::WeightFormat::F32 && cols.is_multiple_of(8) {
        true => Ok(format),
        false => Err(PyValueError::new_err(
            "tensor cores take bf16, int8 and int4 weights of a multiple of 8 inputs",
        )),
    }
}
