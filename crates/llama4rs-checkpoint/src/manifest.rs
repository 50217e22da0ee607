//! `llama4rs.json`: what a packed directory holds, guarded by its own checksum.
//!
//! The file begins with the checksum of everything after it, at a fixed place,
//! so that any changed byte is noticed before anything else is believed:
//!
//! ```text
//! {\n  "checksum": "<64 hex digits>",\n  "format_version": 1, …
//! |-- fixed prefix --|- BLAKE3 of  -->|<- these bytes to the end
//! ```

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use llama4rs_tensor::WeightFormat;
use serde::{Deserialize, Serialize};

use crate::files::read_small;
use crate::{Error, Result};

/// Name of the manifest in a packed directory.
pub(crate) const MANIFEST: &str = "llama4rs.json";

/// Version of the directory's layout that this crate writes and reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// Program and version that write.
pub(crate) const CREATED_BY: &str = concat!("llama4rs ", env!("CARGO_PKG_VERSION"));

const PREFIX: &str = "{\n  \"checksum\": \"";
const HEX_DIGITS: usize = 64;
const MAX_BYTES: u64 = 256 << 20;

/// The manifest, its checksum left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub format_version: u32,
    /// Program and version that packed.
    pub created_by: String,
    /// Format of the decoder's linears.
    pub weights: String,
    /// BLAKE3 of the source's safetensors headers.
    pub source_fingerprint: String,
    /// Remarks of the packing run.
    pub warnings: Vec<String>,
    /// Weight files.
    pub files: Vec<FileEntry>,
    /// Files copied from the source, `config.json` among them.
    pub copies: Vec<CopyEntry>,
    /// Tensors in the order of the forward pass.
    pub tensors: Vec<PackedEntry>,
}

/// One weight file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub name: String,
    pub bytes: u64,
    /// Bytes before the data, the length prefix included.
    pub header_bytes: u64,
    /// Checksum of those bytes.
    pub header_blake3: String,
}

/// One copied file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CopyEntry {
    pub name: String,
    pub bytes: u64,
    pub blake3: String,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PackedEntry {
    /// Canonical name.
    pub name: String,
    /// `None` for plain single precision.
    pub format: Option<String>,
    /// `[stack, rows, cols]`, or the dimensions of a vector.
    pub shape: Vec<usize>,
    /// Index into `files`.
    pub file: usize,
    /// From the start of the file; a multiple of 64.
    pub offset: u64,
    /// Without padding.
    pub bytes: u64,
    pub relative_error: f64,
    /// Checksum of the bytes and of the zeros up to the next multiple of 64.
    pub blake3: String,
}

/// Whether `directory` has been packed.
pub(crate) fn is_packed(directory: &Path) -> bool {
    directory.join(MANIFEST).exists()
}

impl Manifest {
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(MANIFEST);
        let bytes = read_small(&path, MAX_BYTES)?;
        check_checksum(&path, &bytes)?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| Error::damaged(&path, format!("not a valid manifest: {error}")))?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(Error::Unsupported {
                path,
                what: format!("format version {}", manifest.format_version),
                hint: format!(
                    "this llama4rs reads version {FORMAT_VERSION} (packed by {}); pack again",
                    manifest.created_by
                ),
            });
        }
        Ok(manifest)
    }

    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(MANIFEST);
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| Error::io(&path, std::io::Error::other(error)))?;
        let rest = format!("\",{}\n", json.strip_prefix('{').unwrap_or(&json));
        let text = format!("{PREFIX}{}{rest}", blake3::hash(rest.as_bytes()));
        let mut file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|error| Error::io(&path, error))
    }

    /// The format of the decoder's linears.
    pub fn weights(&self, directory: &Path) -> Result<WeightFormat> {
        parse_format(&self.weights, directory)
    }
}

/// A format's name out of a manifest.
pub(crate) fn parse_format(name: &str, directory: &Path) -> Result<WeightFormat> {
    name.parse().map_err(|_| Error::Unsupported {
        path: directory.join(MANIFEST),
        what: format!("weight format {name:?}"),
        hint: "pack the checkpoint again with this version of llama4rs".into(),
    })
}

/// `name` in `directory`, provided that it is a plain file name.
pub(crate) fn plain_path(directory: &Path, name: &str) -> Result<PathBuf> {
    match Path::new(name).file_name() {
        Some(last) if last == name => Ok(directory.join(name)),
        _ => Err(Error::damaged(directory.join(MANIFEST), format!("{name:?} is not a file name"))),
    }
}

fn check_checksum(path: &Path, bytes: &[u8]) -> Result<()> {
    let claimed = bytes.get(PREFIX.len()..PREFIX.len() + HEX_DIGITS);
    let (true, Some(claimed)) = (bytes.starts_with(PREFIX.as_bytes()), claimed) else {
        return Err(Error::damaged(path, "it does not begin with a checksum"));
    };
    let found = blake3::hash(&bytes[PREFIX.len() + HEX_DIGITS..]).to_string();
    if found.as_bytes() != claimed {
        return Err(Error::Checksum {
            path: path.to_owned(),
            what: "the manifest".into(),
            expected: String::from_utf8_lossy(claimed).into_owned(),
            found,
        });
    }
    Ok(())
}
