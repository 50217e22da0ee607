//! One kernel per file: formula, scalar reference, vector form, test.

pub mod attend_all;
pub mod attention;
pub mod elementwise;
pub mod embed;
pub mod erf;
pub mod exp;
pub mod experts;
pub mod gelu;
pub mod kv_pages;
pub mod layer_norm;
pub mod matmul;
mod norm_rows;
pub mod rms_norm;
pub mod rope;
pub mod route;
pub mod rows;
pub mod swiglu;
