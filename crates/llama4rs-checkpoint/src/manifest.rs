//! Placeholder.
use std::path::Path;
pub(crate) fn is_packed(path: &Path) -> bool {
    path.join("llama4rs.json").exists()
}
