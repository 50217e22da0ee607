//! Launches, one file for each family of kernels. The shapes were checked before.

pub(crate) mod attention;
pub(crate) mod experts;
pub(crate) mod kv_pages;
pub(crate) mod matmul;
pub(crate) mod rows;
