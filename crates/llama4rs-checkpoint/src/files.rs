//! Small files read whole, with a bound.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// The bytes of a file that must not be larger than `limit`.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::damaged(path, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}
