//! Running kernels.

mod access;
mod atomic;
mod block;
mod collective;
mod compare;
mod convert;
mod count;
mod debug;
mod float;
mod global;
mod half;
mod integer;
mod lanes;
mod launch;
mod local;
mod matrix;
mod poison;
mod shared;
mod step;
mod warp;
mod warpgroup;

pub use lanes::lanes_of;
pub use launch::{launch, processor_suffices, Checks, Env};
