//! Floor 4: the only crate that knows Python.
//!
//! The module is private, `llama4rs._llama4rs`; its contract is
//! `python/llama4rs/_llama4rs.pyi`. Every call that computes runs detached from
//! the interpreter, on data that Rust owns; no panic crosses into Python.

mod arrays;
mod checkpoint;
mod device;
mod engine;
mod errors;
mod gpu_probe;
mod guard;
mod kv_store;
mod plan;
mod probe;
mod progress;
mod request;
mod token_ids;

/// The compiled core of llama4rs.
#[pyo3::pymodule(gil_used = true)]
mod _llama4rs {
    #[pymodule_export]
    use super::checkpoint::{open_info, pack, synth, verify};
    #[pymodule_export]
    use super::device::{
        cpu_features, cuda_devices, integer_dot_peak, multiply_add_peak, pair_dot_peak,
        read_bandwidth,
    };
    #[pymodule_export]
    use super::engine::Engine;
    #[pymodule_export]
    use super::gpu_probe::GpuProbe;
    #[pymodule_export]
    use super::kv_store::{kv_list, kv_prune, kv_verify};
    #[pymodule_export]
    use super::plan::{plan_sizes, plan_tensors};
    #[pymodule_export]
    use super::probe::{attention_seconds, matmul_seconds};
    #[pymodule_export]
    use super::request::{Event, Request};
    #[pymodule_export]
    use super::token_ids::are_plain_integers;

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
