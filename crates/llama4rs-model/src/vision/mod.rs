//! The vision tower: pixels of a tile in, rows of the text model's width out.
//!
//! ```text
//! tile ─ patches ─ linear ─(+ class token, positions)─ LN ─▶ block ─▶ … ─▶ LN
//!      ─ pixel shuffle ─ fc1 ─ GELU ─ fc2 ─ GELU ─ projector ─▶ [tokens, hidden]
//!
//! block:  x ─┬─ LN ─ attention (all see all, 2-D RoPE) ─(+)─┬─ LN ─ fc1 ─ GELU ─ fc2 ─(+)─▶
//!            └──────────────────────────────────────────┘  └──────────────────────────┘
//! ```
//!
//! Tiles never see each other, so they stream through a workspace of fixed size.

mod block;
mod patches;
mod tower;

pub use tower::{VisionModel, VisionWorkspace};
