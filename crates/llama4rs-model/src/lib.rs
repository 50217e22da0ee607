//! Floor 2: Llama 4, written once over the [`Backend`](llama4rs_tensor::Backend) trait.
//!
//! ```text
//! ids ─ embed ─┐  (rows of image patches are replaced by the vision tower's)
//!              ├─▶ block ─▶ … ─▶ block ─▶ norm ─▶ lm_head ─▶ logits
//!              │
//!   block:  x ─┬─ norm ─ attention ────(+)─┬─ norm ─ feed forward ─(+)─▶
//!              └────────────────────────┘  └─────────────────────┘
//!
//!   attention, 3 of 4 layers: RoPE, QK norm, keys of the same chunk only
//!              every 4th     : no position, temperature, all earlier keys
//!   feed forward: shared SwiGLU expert + top-k routed ones whose INPUT is
//!              scaled by sigmoid(router logit); or one dense SwiGLU
//! ```
//!
//! Nothing here names a device, a file format or a request.

mod attention;
mod block;
mod error;
mod feed_forward;
mod llama4;
mod loading;
mod norm;
mod position;
mod step;
mod vision;
mod workspace;

pub use error::{Error, Result};
pub use llama4::{kv_layout, Llama4};
pub use position::{query_scale, RotaryFrequencies};
pub use step::{Observer, Step};
pub use vision::{VisionModel, VisionWorkspace};
pub use workspace::Workspace;
