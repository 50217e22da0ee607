//! The one choice of backend, and the limits of its machine.

use std::path::PathBuf;
use std::sync::Arc;

use llama4rs_checkpoint::{TextConfig, VisionConfig};
use llama4rs_cpu::InstructionSet;
use llama4rs_cuda::{Cuda, PromptProducts};
use llama4rs_engine::{Engine, Event, Request, RequestOptions, Settings};
use llama4rs_kv_cache::store::BytesRead;
use llama4rs_tensor::{AlignedBytes, MappedFile, VisionBackend};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::guard::detached;

/// An engine on any device.
pub(crate) type SharedEngine = Arc<dyn AnyEngine>;

/// What Python asks of an engine, whatever it runs on; see [`Engine`].
pub(crate) trait AnyEngine: Send + Sync {
    fn config(&self) -> &TextConfig;
    fn vision_config(&self) -> Option<&VisionConfig>;
    fn settings(&self) -> Settings;
    fn device(&self) -> String;
    fn free_memory(&self) -> Option<usize>;
    fn kv_bytes_in_use(&self) -> Option<usize>;
    fn kv_bytes_read(&self) -> Option<BytesRead>;
    fn kv_memory(&self) -> Option<usize>;
    fn set_kv_memory(&self, bytes: usize);
    fn take_warning(&self) -> Option<String>;
    fn encode_image(
        &self,
        pixels: &[f32],
        interrupted: &mut dyn FnMut() -> bool,
    ) -> llama4rs_engine::Result<Vec<f32>>;
    fn submit(&self, options: RequestOptions) -> llama4rs_engine::Result<Request>;
    fn next(
        &self,
        request: &Request,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> llama4rs_engine::Result<Option<Event>>;
    fn cancel(&self, request: &Request, reason: &str);
}

impl<B: VisionBackend> AnyEngine for Engine<B> {
    fn config(&self) -> &TextConfig {
        self.model().config()
    }

    fn vision_config(&self) -> Option<&VisionConfig> {
        self.vision().map(|vision| vision.config())
    }

    fn settings(&self) -> Settings {
        Engine::settings(self)
    }

    fn device(&self) -> String {
        self.backend().description()
    }

    fn free_memory(&self) -> Option<usize> {
        self.backend().free_memory()
    }

    fn kv_bytes_in_use(&self) -> Option<usize> {
        Engine::kv_bytes_in_use(self)
    }

    fn kv_bytes_read(&self) -> Option<BytesRead> {
        Engine::kv_bytes_read(self)
    }

    fn kv_memory(&self) -> Option<usize> {
        Engine::kv_memory(self)
    }

    fn set_kv_memory(&self, bytes: usize) {
        Engine::set_kv_memory(self, bytes);
    }

    fn take_warning(&self) -> Option<String> {
        Engine::take_warning(self)
    }

    fn encode_image(
        &self,
        pixels: &[f32],
        interrupted: &mut dyn FnMut() -> bool,
    ) -> llama4rs_engine::Result<Vec<f32>> {
        Engine::encode_image(self, pixels, interrupted)
    }

    fn submit(&self, options: RequestOptions) -> llama4rs_engine::Result<Request> {
        Engine::submit(self, options)
    }

    fn next(
        &self,
        request: &Request,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> llama4rs_engine::Result<Option<Event>> {
        Engine::next(self, request, interrupted)
    }

    fn cancel(&self, request: &Request, reason: &str) {
        Engine::cancel(self, request, reason)
    }
}

/// What the user wants to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// The first GPU if there is one with room for the model, else the CPU.
    Auto,
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl Device {
    /// Reads `auto`, `cpu`, `cuda` or `cuda:1`.
    pub fn parse(name: &str) -> PyResult<Self> {
        let ordinal = |text: &str| text.strip_prefix("cuda:")?.parse().ok();
        match name {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => ordinal(name).map(Device::Cuda).ok_or_else(|| {
                PyValueError::new_err(format!(
                    "device must be \"auto\", \"cpu\", \"cuda\" or \"cuda:N\", got {name:?}"
                ))
            }),
        }
    }

    /// Opens the GPU, if it is to be used. Without one `Auto` is the CPU, with a warning
    /// where there is one that cannot be used; the stand-in for tests must be asked for.
    pub fn open_cuda(
        self,
        nvrtc_folders: &[PathBuf],
        warnings: &mut Vec<String>,
    ) -> llama4rs_tensor::Result<Option<Cuda>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Cuda(ordinal) => Cuda::open(ordinal, nvrtc_folders).map(Some),
            Device::Auto => {
                let devices = llama4rs_cuda::devices().unwrap_or_default();
                let Some(first) = devices.first().filter(|info| !info.is_simulated()) else {
                    return Ok(None);
                };
                let opened = Cuda::open(first.ordinal, nvrtc_folders).map_err(|error| {
                    warnings.push(format!("computing on the CPU, not on {}: {error}", first.name));
                });
                Ok(opened.ok())
            }
        }
    }
}

/// What the CUDA backend found: the driver, the compiler and the devices, or why there are none. Hopper's
/// devices are opened, to see what the products of prompts are made of.
#[pyfunction]
pub(crate) fn cuda_devices(
    py: Python<'_>,
    nvrtc_folders: Vec<PathBuf>,
) -> PyResult<Bound<'_, PyDict>> {
    let (driver, nvrtc, devices, prompt_products) = detached(py, || {
        let nvrtc = llama4rs_cuda::nvrtc::Nvrtc::load(&nvrtc_folders);
        let devices = llama4rs_cuda::devices();
        let found = devices.iter().flatten();
        let prompt_products: Vec<_> =
            found.map(|info| PromptProducts::of(info, &nvrtc_folders).to_string()).collect();
        (llama4rs_cuda::driver_version(), nvrtc, devices, prompt_products)
    })?;
    let dict = PyDict::new(py);
    let mut problems = Vec::new();
    let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    dict.set_item("driver", driver.map(version).ok())?;
    let list = PyList::empty(py);
    match devices {
        Ok(devices) => {
            for (info, prompt_products) in devices.into_iter().zip(prompt_products) {
                let device = PyDict::new(py);
                device.set_item("device", format!("cuda:{}", info.ordinal))?;
                device.set_item("name", &info.name)?;
                device.set_item("capability", version(info.capability))?;
                device.set_item("memory", info.memory)?;
                device.set_item("multiprocessors", info.multiprocessors)?;
                device.set_item("prompt_products", prompt_products)?;
                list.append(device)?;
            }
        }
        Err(error) => problems.push(error.to_string()),
    }
    dict.set_item("devices", list)?;
    match nvrtc {
        Ok(nvrtc) => {
            dict.set_item("nvrtc", version(nvrtc.version()))?;
            dict.set_item("nvrtc_path", nvrtc.path())?;
        }
        Err(error) => {
            dict.set_item("nvrtc", py.None())?;
            dict.set_item("nvrtc_path", py.None())?;
            problems.push(error.to_string());
        }
    }
    dict.set_item("problems", problems)?;
    Ok(dict)
}

/// What the CPU backend found on this machine.
#[pyfunction]
pub(crate) fn cpu_features(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    let name = |set: InstructionSet| set.to_string();
    dict.set_item("instruction_set", name(InstructionSet::detect()))?;
    let available: Vec<String> = InstructionSet::available().into_iter().map(name).collect();
    dict.set_item("available", available)?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    dict.set_item("threads", threads)?;
    Ok(dict)
}

/// Bytes per second that `threads` threads read from memory, or from what the page cache
/// holds of a file, once per round.
#[pyfunction]
#[pyo3(signature = (bytes, threads, rounds = 5, *, path = None))]
pub(crate) fn read_bandwidth(
    py: Python<'_>,
    bytes: usize,
    threads: usize,
    rounds: usize,
    path: Option<PathBuf>,
) -> PyResult<Vec<f64>> {
    detached(py, || match path {
        Some(path) => {
            let file = MappedFile::open(path)?;
            llama4rs_cpu::read_bandwidth(&file[..bytes.min(file.len())], threads, rounds)
        }
        None => {
            let mut memory = AlignedBytes::zeroed(bytes)?;
            memory.fill(1);
            llama4rs_cpu::read_bandwidth(&memory, threads, rounds)
        }
    })?
    .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Single-precision operations per second that `threads` threads reach, once per round.
#[pyfunction]
#[pyo3(signature = (threads, rounds = 5))]
pub(crate) fn multiply_add_peak(
    py: Python<'_>,
    threads: usize,
    rounds: usize,
) -> PyResult<Vec<f64>> {
    detached(py, || llama4rs_cpu::multiply_add_peak(InstructionSet::detect(), threads, rounds))?
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Operations per second of integer dot products that `threads` threads reach, once per round.
#[pyfunction]
#[pyo3(signature = (threads, rounds = 5))]
pub(crate) fn integer_dot_peak(
    py: Python<'_>,
    threads: usize,
    rounds: usize,
) -> PyResult<Vec<f64>> {
    detached(py, || llama4rs_cpu::integer_dot_peak(InstructionSet::detect(), threads, rounds))?
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Operations per second of products of pairs of bf16 numbers that `threads` threads reach, once per round.
#[pyfunction]
#[pyo3(signature = (threads, rounds = 5))]
pub(crate) fn pair_dot_peak(py: Python<'_>, threads: usize, rounds: usize) -> PyResult<Vec<f64>> {
    detached(py, || llama4rs_cpu::pair_dot_peak(InstructionSet::detect(), threads, rounds))?
        .map_err(|error| PyValueError::new_err(error.to_string()))
}
