//! `Engine`: one opened model.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use llama4rs_checkpoint::{OpenOptions, SynthOptions, SyntheticSource, TensorReport, WeightSource};
use llama4rs_cpu::{Arithmetic, Cpu};
use llama4rs_cuda::{Cuda, MOST_STEP_ROWS};
use llama4rs_engine::{ImageFeatures, RequestOptions, SamplingOptions, Settings};
use llama4rs_kv_cache::store::{self, BytesRead, ReadMode, StoreOptions};
use llama4rs_kv_cache::{PoolKind, PAGE_TOKENS};
use llama4rs_model::{kv_layout, Llama4, VisionModel};
use llama4rs_tensor::{KvDtype, PageForm, VisionBackend, WeightFormat};
use numpy::{PyArray2, PyReadonlyArray2, PyReadonlyArray4, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays;
use crate::checkpoint::{parse_format, parse_rules, tensor_list};
use crate::device::{Device, SharedEngine};
use crate::errors;
use crate::guard::{detached, Signals};
use crate::progress;
use crate::request::Request;
use crate::token_ids::{some_token_ids, token_ids};

/// Prompt tokens per step on the CPU: enough to fill the matrix kernels, short enough to interrupt.
const STEP_TOKENS: usize = 512;
/// On a GPU: enough rows for each of 16 experts to fill tiles of 128.
const GPU_STEP_TOKENS: usize = 4096;
/// A path that begins so is a shape: random weights, nowhere on disk.
const SYNTHETIC: &str = "synth:";
/// Key/value pages that stay for later requests: a conversation of some thousand
/// tokens with Scout.
const PREFIX_CACHE_BYTES: usize = 1 << 30;
/// Sequences that share a step.
const MAX_SEQUENCES: usize = 256;

/// One opened model and the requests that run on it.
#[pyclass(frozen, module = "llama4rs._llama4rs")]
pub(crate) struct Engine {
    engine: SharedEngine,
    config_json: String,
    weights: WeightFormat,
    tensors: Vec<TensorReport>,
    warnings: Vec<String>,
    /// The token that image features replace.
    patch_token: Option<u32>,
}

/// What the caller wants, checked.
struct Wanted<'a> {
    path: &'a str,
    device: Device,
    /// Where NVRTC may be.
    nvrtc_folders: Vec<PathBuf>,
    open: OpenOptions,
    max_context: Option<usize>,
    step_tokens: Option<usize>,
    kv_dtype: Option<KvDtype>,
    prefix_cache_bytes: Option<usize>,
    arithmetic: Arithmetic,
    kv_store: Option<KvStore>,
}

/// Where keys and values are kept on disk.
struct KvStore {
    dir: PathBuf,
    budget: Option<u64>,
    read: ReadMode,
}

/// Why a model could not be opened.
enum OpenError {
    /// A setting that the device does not allow.
    Setting(String),
    Model(llama4rs_model::Error),
    Store(store::Error),
}

impl<E: Into<llama4rs_model::Error>> From<E> for OpenError {
    fn from(error: E) -> Self {
        Self::Model(error.into())
    }
}

impl OpenError {
    fn raise(self, py: Python<'_>) -> PyErr {
        match self {
            Self::Setting(message) => PyValueError::new_err(message),
            Self::Model(error) => errors::model(py, error),
            Self::Store(error) => errors::store(py, error),
        }
    }
}

fn open(
    wanted: &Wanted<'_>,
    progress: &dyn llama4rs_checkpoint::Progress,
) -> Result<Engine, OpenError> {
    let mut warnings = Vec::new();
    let cuda = wanted.device.open_cuda(&wanted.nvrtc_folders, &mut warnings)?;
    let fast = wanted.arithmetic == Arithmetic::Fast;
    let cuda = match cuda.map(|cuda| cuda.with_tensor_cores(fast)).transpose() {
        Err(error) if wanted.device == Device::Auto => {
            warnings.push(format!("{error}: computing on the CPU"));
            None
        }
        cuda => cuda.map_err(llama4rs_model::Error::from)?,
    };
    warnings.extend(cuda.as_ref().filter(|_| fast).and_then(Cuda::prompt_warning));
    let source = open_source(wanted, progress)?;
    let tensors = source.report();
    warnings.extend_from_slice(source.warnings());
    let cuda = cuda.map(|cuda| with_room(cuda, wanted.device, &tensors, &mut warnings));
    let engine = match cuda.transpose()?.flatten() {
        Some(cuda) => {
            check_step_tokens(&cuda, wanted.step_tokens)?;
            let numerics = cuda.numerics();
            open_on(cuda, &numerics, GPU_STEP_TOKENS, &*source, wanted, progress)?
        }
        None => {
            let cpu = Cpu::new(wanted.open.threads)?.with_arithmetic(wanted.arithmetic);
            let numerics = cpu.numerics();
            open_on(cpu, &numerics, STEP_TOKENS, &*source, wanted, progress)?
        }
    };
    Ok(Engine {
        config_json: source.config().raw.to_string(),
        weights: source.weights(),
        tensors,
        warnings,
        patch_token: source.config().image_token_id,
        engine,
    })
}

/// The directory, or the model that is made up as it is read.
fn open_source<'p>(
    wanted: &Wanted<'_>,
    progress: &'p dyn llama4rs_checkpoint::Progress,
) -> llama4rs_checkpoint::Result<Box<dyn WeightSource + Send + Sync + 'p>> {
    let Some(shape) = wanted.path.strip_prefix(SYNTHETIC) else {
        return llama4rs_checkpoint::open(wanted.path, &wanted.open, progress);
    };
    let OpenOptions { weights, rules, threads } = &wanted.open;
    let weights = weights.unwrap_or(SynthOptions::default().weights);
    Ok(Box::new(SyntheticSource::new(shape.parse()?, weights, rules, 0, *threads)?))
}

/// The GPU if the weights fit; if not, none where the user leaves the choice to us, else an error.
fn with_room(
    cuda: Cuda,
    device: Device,
    tensors: &[TensorReport],
    warnings: &mut Vec<String>,
) -> Result<Option<Cuda>, llama4rs_model::Error> {
    let needed: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    let (free, _) = cuda.memory()?;
    if needed <= free as u64 {
        return Ok(Some(cuda));
    }
    let name = &cuda.info().name;
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let (needed, free) = (gib(needed), gib(free as u64));
    let message = format!("the weights need {needed:.1} GiB, and {name} has {free:.1} GiB free");
    if device == Device::Auto {
        warnings.push(format!("{message}: computing on the CPU"));
        return Ok(None);
    }
    Err(llama4rs_tensor::Error::Device(format!(
        "{message}: use smaller weights (weights=\"int4\") or device=\"cpu\""
    ))
    .into())
}

/// Refuses steps of more rows than launches have blocks for.
fn check_step_tokens(cuda: &Cuda, step_tokens: Option<usize>) -> Result<(), OpenError> {
    match step_tokens {
        Some(tokens) if tokens > MOST_STEP_ROWS => Err(OpenError::Setting(format!(
            "step_tokens must be at most {MOST_STEP_ROWS} on {}, got {tokens}: leave it out for \
             {GPU_STEP_TOKENS}, or use device=\"cpu\"",
            cuda.info().name
        ))),
        _ => Ok(()),
    }
}

/// Brings the model to a device, whose steps have `step_tokens` prompt tokens unless the caller says.
fn open_on<B: VisionBackend>(
    backend: B,
    numerics: &str,
    step_tokens: usize,
    source: &dyn WeightSource,
    wanted: &Wanted<'_>,
    progress: &dyn llama4rs_checkpoint::Progress,
) -> Result<SharedEngine, OpenError> {
    let model = Llama4::load(&backend, source)?;
    let vision = VisionModel::load(&backend, source)?;
    let exact = if source.weights() == WeightFormat::F32 { KvDtype::F32 } else { KvDtype::Bf16 };
    let settings = Settings {
        max_context: wanted.max_context.unwrap_or(model.config().max_position_embeddings),
        step_tokens: wanted.step_tokens.unwrap_or(step_tokens),
        max_sequences: MAX_SEQUENCES,
        kv_dtype: wanted.kv_dtype.unwrap_or(exact),
        prefix_cache_bytes: wanted.prefix_cache_bytes.unwrap_or(PREFIX_CACHE_BYTES),
        keep_last_text: wanted.prefix_cache_bytes.is_none(),
    };
    let mut engine = llama4rs_engine::Engine::new(backend, model, vision, settings)?;
    let mut advance = |done, all| progress.advance("compiling kernels", done, all);
    engine.backend().get_ready(&mut advance);
    if let Some(wanted_store) = &wanted.kv_store {
        open_store(&mut engine, wanted, wanted_store, numerics, progress)?;
    }
    Ok(Arc::new(engine))
}

fn open_store<B: VisionBackend>(
    engine: &mut llama4rs_engine::Engine<B>,
    wanted: &Wanted<'_>,
    KvStore { dir, budget, read }: &KvStore,
    numerics: &str,
    progress: &dyn llama4rs_checkpoint::Progress,
) -> Result<(), OpenError> {
    store::make_directory(dir).map_err(OpenError::Store)?;
    let memo = dir.join(".weights.json");
    let weights =
        llama4rs_checkpoint::weights_digest(wanted.path, &wanted.open, Some(&memo), progress)?;
    let fingerprint = store::fingerprint(&weights, engine.settings().kv_dtype, numerics);
    let threads = NonZeroUsize::new(wanted.open.threads.unwrap_or(0))
        .map_or_else(std::thread::available_parallelism, Ok)
        .unwrap_or(NonZeroUsize::MIN);
    let (dir, budget, read) = (dir.clone(), *budget, *read);
    let options = StoreOptions { dir, fingerprint, budget, read, threads };
    engine.open_store(options).map_err(OpenError::Store)
}

fn parse_kv_store(
    dir: Option<PathBuf>,
    budget: Option<u64>,
    read: Option<&str>,
) -> PyResult<Option<KvStore>> {
    let read_mode = match read {
        None | Some("map") => ReadMode::Map,
        Some("copy") => ReadMode::Copy,
        Some(other) => {
            return Err(PyValueError::new_err(format!(
                "kv_read must be \"map\" or \"copy\", got {other:?}"
            )))
        }
    };
    if dir.is_none() && (budget.is_some() || read.is_some()) {
        return Err(PyValueError::new_err(
            "kv_budget and kv_read are about a directory: set kv_dir, too",
        ));
    }
    Ok(dir.map(|dir| KvStore { dir, budget, read: read_mode }))
}

pub(crate) fn parse_kv_dtype(name: Option<&str>) -> PyResult<Option<KvDtype>> {
    match name {
        None | Some("auto") => Ok(None),
        Some(name) => KvDtype::from_name(name).map(Some).ok_or_else(|| {
            PyValueError::new_err(format!(
                "kv_cache must be \"auto\", \"f32\", \"bf16\", \"int8\" or \"int4\", got {name:?}"
            ))
        }),
    }
}

fn parse_arithmetic(name: Option<&str>) -> PyResult<Arithmetic> {
    name.map_or(Ok(Arithmetic::default()), |name| {
        name.parse().map_err(|_| {
            PyValueError::new_err(format!("arithmetic must be \"fast\" or \"exact\", got {name:?}"))
        })
    })
}

fn positive(name: &str, value: Option<usize>) -> PyResult<()> {
    match value {
        Some(0) => Err(PyValueError::new_err(format!("{name} must be at least 1, got 0"))),
        _ => Ok(()),
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (path, *, device = "auto", nvrtc_folders = Vec::new(), weights = None, policy = None, threads = None, max_context = None, kv_cache = None, step_tokens = None, prefix_cache_bytes = None, arithmetic = None, kv_dir = None, kv_budget = None, kv_read = None, progress = None))]
    fn new(
        py: Python<'_>,
        path: &str,
        device: &str,
        nvrtc_folders: Vec<PathBuf>,
        weights: Option<&str>,
        policy: Option<Vec<(String, String)>>,
        threads: Option<usize>,
        max_context: Option<usize>,
        kv_cache: Option<&str>,
        step_tokens: Option<usize>,
        prefix_cache_bytes: Option<usize>,
        arithmetic: Option<&str>,
        kv_dir: Option<PathBuf>,
        kv_budget: Option<u64>,
        kv_read: Option<&str>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        positive("threads", threads)?;
        positive("max_context", max_context)?;
        positive("step_tokens", step_tokens)?;
        let wanted = Wanted {
            path,
            device: Device::parse(device)?,
            nvrtc_folders,
            open: OpenOptions {
                weights: weights.map(parse_format).transpose()?,
                rules: parse_rules(policy)?,
                threads,
            },
            max_context,
            step_tokens,
            kv_dtype: parse_kv_dtype(kv_cache)?,
            prefix_cache_bytes,
            arithmetic: parse_arithmetic(arithmetic)?,
            kv_store: parse_kv_store(kv_dir, kv_budget, kv_read)?,
        };
        progress::run(py, progress, |progress| open(&wanted, progress))?
            .map_err(|error| error.raise(py))
    }

    #[getter]
    fn config_json(&self) -> &str {
        &self.config_json
    }

    #[getter]
    fn weights(&self) -> String {
        self.weights.to_string()
    }

    #[getter]
    fn max_context(&self) -> usize {
        self.engine.settings().max_context
    }

    /// Most prompt tokens of a step.
    #[getter]
    fn step_tokens(&self) -> usize {
        self.engine.settings().step_tokens
    }

    #[getter]
    fn device(&self) -> String {
        self.engine.device()
    }

    /// Free bytes of the device's own memory; `None` on the CPU.
    #[getter]
    fn device_free_bytes(&self) -> Option<usize> {
        self.engine.free_memory()
    }

    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// Bytes that key/value pages may take; `None`: no limit.
    #[getter]
    fn kv_memory(&self) -> Option<usize> {
        self.engine.kv_memory()
    }

    /// Sets the limit of `kv_memory` for requests to come.
    fn set_kv_memory(&self, bytes: usize) {
        self.engine.set_kv_memory(bytes);
    }

    /// Bytes of key/value pages in use; `None` while a step is being computed.
    fn kv_bytes_in_use(&self) -> Option<usize> {
        self.engine.kv_bytes_in_use()
    }

    /// Bytes read from `kv_dir` to find texts and to check their pages; `None` while a step
    /// is being computed.
    fn kv_bytes_read<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(BytesRead { pages, meta }) = self.engine.kv_bytes_read() else { return Ok(None) };
        let dict = PyDict::new(py);
        dict.set_item("pages", pages)?;
        dict.set_item("meta", meta)?;
        Ok(Some(dict))
    }

    /// Sizes of the model and where its bytes go.
    fn summary<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let config = self.engine.config();
        let dict = PyDict::new(py);
        let numbers = |tensor: &TensorReport| tensor.shape.iter().product::<usize>() as f64;
        let routed = |tensor: &&TensorReport| tensor.name.contains(".experts.");
        let total: f64 = self.tensors.iter().map(numbers).sum();
        let experts: f64 = self.tensors.iter().filter(routed).map(numbers).sum();
        let share = config.experts_per_token as f64 / config.num_experts.max(1) as f64;
        dict.set_item("parameters", total as u64)?;
        dict.set_item("active_parameters", (total - experts + experts * share) as u64)?;
        dict.set_item("weight_bytes", self.tensors.iter().map(|t| t.bytes).sum::<u64>())?;
        dict.set_item("tensors", tensor_list(py, &self.tensors)?)?;
        let kv_dtype = self.engine.settings().kv_dtype;
        let layout = kv_layout(config, kv_dtype);
        let form = if kv_dtype.is_quantised() { PageForm::Sealed } else { PageForm::Exact };
        let bytes = |kind, form| layout.geometry(kind).page_bytes(form) / PAGE_TOKENS;
        let global = bytes(PoolKind::Global, form);
        dict.set_item("kv_cache", kv_dtype.name())?;
        let chunked = bytes(PoolKind::Chunked, PageForm::Exact);
        dict.set_item("kv_bytes_per_token", chunked + global)?;
        dict.set_item("kv_bytes_per_token_beyond_chunk", global)?;
        Ok(dict)
    }

    /// Queues a prompt.
    #[pyo3(signature = (prompt, *, max_tokens, temperature = 0.0, top_p = 1.0, top_k = 0, min_p = 0.0, repetition_penalty = 1.0, stop_token_ids = None, seed = 0, logprobs = None, image_features = None, filled_to = 0))]
    fn submit(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = token_ids)] prompt: Vec<u32>,
        max_tokens: usize,
        temperature: f32,
        top_p: f32,
        top_k: usize,
        min_p: f32,
        repetition_penalty: f32,
        #[pyo3(from_py_with = some_token_ids)] stop_token_ids: Option<Vec<u32>>,
        seed: u64,
        logprobs: Option<usize>,
        image_features: Option<PyReadonlyArray2<'_, f32>>,
        filled_to: usize,
    ) -> PyResult<Request> {
        let sampling = SamplingOptions {
            temperature,
            top_p,
            top_k,
            min_p,
            repetition_penalty,
            seed,
            logprobs,
        };
        let options = RequestOptions {
            prompt,
            max_tokens,
            stop_token_ids: stop_token_ids.unwrap_or_default(),
            sampling,
            keep_logits: false,
            images: self.images(image_features)?,
            filled_to,
        };
        self.submit_options(py, options)
    }

    /// Encodes normalised tiles `[tiles, channels, size, size]` into
    /// `[tiles * tokens_per_tile, hidden]`.
    fn encode_image<'py>(
        &self,
        py: Python<'py>,
        pixels: PyReadonlyArray4<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        if let Some(vision) = self.engine.vision_config() {
            let (size, channels) = (vision.image_size, vision.num_channels);
            if pixels.shape()[1..] != [channels, size, size] {
                return Err(PyValueError::new_err(format!(
                    "expected tiles [n, {channels}, {size}, {size}], got {:?}",
                    pixels.shape()
                )));
            }
        }
        let pixels = arrays::row_major("pixels", &pixels)?;
        let mut signals = Signals::new();
        let outcome = detached(py, || self.engine.encode_image(pixels, &mut || signals.pending()))?;
        let features =
            outcome.map_err(|error| signals.raised.unwrap_or_else(|| errors::engine(py, error)))?;
        let hidden = self.engine.config().hidden_size;
        let rows = features.len() / hidden;
        arrays::matrix(py, features, rows, hidden)
    }

    /// Logits `[tokens, vocab]` of a fresh sequence, all positions.
    #[pyo3(signature = (token_ids, *, image_features = None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = token_ids)] token_ids: Vec<u32>,
        image_features: Option<PyReadonlyArray2<'_, f32>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let tokens = token_ids.len();
        let options = RequestOptions {
            prompt: token_ids,
            max_tokens: 0,
            stop_token_ids: Vec::new(),
            sampling: SamplingOptions::default(),
            keep_logits: true,
            images: self.images(image_features)?,
            filled_to: 0,
        };
        let request = self.submit_options(py, options)?;
        while request.next(py)?.is_some() {}
        let logits = request.request.take_logits();
        let vocab = self.engine.config().vocab_size;
        arrays::matrix(py, logits, tokens, vocab)
    }
}

impl Engine {
    /// Image features as the engine wants them.
    fn images(
        &self,
        features: Option<PyReadonlyArray2<'_, f32>>,
    ) -> PyResult<Option<ImageFeatures>> {
        let Some(features) = features else { return Ok(None) };
        let patch_token = self.patch_token.ok_or_else(|| {
            PyValueError::new_err("this checkpoint's config.json has no image_token_index")
        })?;
        let hidden = self.engine.config().hidden_size;
        if features.shape()[1] != hidden {
            return Err(PyValueError::new_err(format!(
                "expected image_features [n, {hidden}], got {:?}",
                features.shape()
            )));
        }
        let features = arrays::row_major("image_features", &features)?.to_vec();
        Ok(Some(ImageFeatures { patch_token, features }))
    }

    fn submit_options(&self, py: Python<'_>, options: RequestOptions) -> PyResult<Request> {
        let request = detached(py, || self.engine.submit(options))?
            .map_err(|error| errors::engine(py, error))?;
        Ok(Request { engine: self.engine.clone(), request })
    }
}
