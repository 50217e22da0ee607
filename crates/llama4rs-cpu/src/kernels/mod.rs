//! One kernel per file: formula, scalar reference, vector form, test.

pub mod attention;
pub mod elementwise;
pub mod embed;
pub mod exp;
pub mod experts;
pub mod kv_pages;
pub mod matmul;
pub mod rms_norm;
pub mod rope;
pub mod route;
pub mod swiglu;
