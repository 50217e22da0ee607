//! A GPU that every machine has: a stand-in `libcuda` that runs PTX on the CPU.

pub mod allocate;
pub mod counters;
pub mod decode;
pub mod device;
pub mod driver;
pub mod exec;
pub mod memory;
pub mod program;
pub mod ptx;
pub mod report;
pub mod shadow;
