//! The CUDA side of llama4rs: [`Cuda`] implements [`llama4rs_tensor::Backend`] on one NVIDIA GPU.
//!
//! Nothing of CUDA is needed to build this crate, or to run it without a GPU:
//! the driver and NVRTC, the run-time compiler, are looked for when a device is
//! opened, and what is missing becomes an error that says so.
//!
//! - `driver` looks for the driver and its devices; `gpu` is an opened one;
//! - `memory`, `upload` and `module` are thin owners of what the driver hands out;
//! - `nvrtc` compiles, `compiler` does it on several threads, `binaries` keeps what was compiled on disk, `resources`
//!   reads the compiler's report;
//! - `kernels/*.cu` are the kernels, `kernels/prelude.cuh` what they are
//!   compiled behind; each file of `src/ops` launches those of one family.
//!
//! All work of a device is on one stream: what is launched later sees what was
//! launched before, and memory that is given back is reused in that order. The
//! launches of a small step wait in `step` and go to the stream as one `graph`.

mod arguments;
mod backend;
mod binaries;
mod compiler;
mod cuda;
mod driver;
mod error;
mod fragments;
mod gpu;
mod graph;
mod kernels;
mod kv_pages;
pub mod measure;
mod memory;
mod module;
pub mod nvrtc;
mod ops;
mod recording;
mod regions;
pub mod resources;
mod step;
mod tensor;
mod upload;
mod vision_backend;

pub use cuda::Cuda;
pub use driver::{devices, driver_version, DeviceInfo};
pub use kernels::{all_kernels, KernelSource};
pub use kv_pages::KvPages;
pub use module::MOST_STEP_ROWS;
pub use ops::sample::Tokens;
pub use ops::warpgroups::PromptProducts;
pub use tensor::{Matrix, Routing, Tensor, Vector};

/// Counts the changes of the kernels' results: stored keys and values of another count are not used.
pub(crate) const NUMERICS: u32 = 4;
