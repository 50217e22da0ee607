//! Running kernels.

mod access;
mod atomic;
mod block;
mod collective;
mod convert;
mod count;
mod debug;
mod float;
mod integer;
mod lanes;
mod launch;
mod matrix;
mod step;
mod warp;

pub use convert::{convert, to_half};
pub use float::{float1, float2, fma, half1, half2, half_fma, narrow, widen};
pub use integer::{count, dot2, dot4, extract, insert, int1, int2, permute, shift};
pub use lanes::lanes_of;
pub use launch::{launch, processor_suffices, Checks, Env};
