//! Floor 0 of llama4rs: the words that every other crate speaks.
//!
//! - [`WeightFormat`] says how one matrix is stored, and [`format`] draws each
//!   layout byte by byte;
//! - [`PackedMatrix`] is a matrix (or a stack of equal matrices: the experts of
//!   a layer) in such a layout, owned or mapped from a file;
//! - [`kv`] draws the layout of key/value pages;
//! - [`Backend`] is the narrow list of operations that a device offers to the
//!   model.
//!
//! Nothing here computes a forward pass.

pub mod backend;
mod bytes;
pub mod check;
mod draw;
mod error;
pub mod format;
pub mod kv;
mod mapped;
mod packed;
mod vision_backend;

pub use backend::{
    Backend, ExpertWeights, FeedForwardScratch, MatrixUse, MixtureWeights, Norm, Placement,
    Residual,
};
pub use bytes::{AlignedBytes, Bytes, ALIGNMENT};
pub use draw::Draw;
pub use error::{Error, Result};
pub use format::WeightFormat;
pub use kv::{KvDtype, KvGeometry, KvSpan, PageForm, PageId, SealedHead, Slot};
pub use mapped::MappedFile;
pub use packed::PackedMatrix;
pub use vision_backend::VisionBackend;
