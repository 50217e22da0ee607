//! The CPU side of llama4rs: [`Cpu`] implements [`llama4rs_tensor::Backend`].
//!
//! - `simd` has 16 lanes of single precision, written once per instruction set;
//! - `kernels` has one file per operation: formula, scalar reference, vector
//!   form, and the test that holds them together;
//! - `backend` checks shapes, then calls one kernel;
//! - `probe` measures the machine's limits.
//!
//! **One result.** What an operation writes for a row is defined by an order of
//! correctly rounded operations. It does not depend on the other rows of the
//! call, on the number of threads, or on the instruction set.

mod arithmetic;
mod backend;
mod cpu;
mod instruction_set;
mod kernels;
mod parallel;
mod probe;
mod simd;
mod team;
mod tensor;
mod vision_backend;

#[cfg(test)]
mod test_support;

/// Number of the kernels' definition. Raise it when any bit of a result changes: keys and
/// values that were stored on disk are then computed anew.
pub const NUMERICS: u32 = 2;

pub use arithmetic::Arithmetic;
pub use cpu::Cpu;
pub use instruction_set::InstructionSet;
pub use kernels::kv_pages::KvPages;
pub use kernels::route::Routing;
pub use probe::{integer_dot_peak, multiply_add_peak, pair_dot_peak, read_bandwidth};
pub use tensor::Tensor;
