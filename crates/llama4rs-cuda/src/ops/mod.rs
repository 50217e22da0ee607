//! Launches, one file for each family of kernels. The shapes were checked before.

pub(crate) mod attention;
pub(crate) mod expected;
pub(crate) mod experts;
pub(crate) mod feed_forward;
pub(crate) mod kv_pages;
pub(crate) mod matmul;
pub(crate) mod pages_attention;
pub(crate) mod place;
pub(crate) mod products;
pub(crate) mod residual;
pub(crate) mod router;
pub(crate) mod rows;
pub(crate) mod sample;
pub(crate) mod shapes;
pub(crate) mod warpgroups;
