//! One safetensors file: its header, checked to the last byte, and reads of its data.
//!
//! ```text
//! 0        8            8 + n                                   end of file
//! | n: u64 | JSON header | data of tensor | data of tensor | … |
//! ```
//!
//! The header is not trusted: its length must lie inside the file, names must
//! be unique, every shape must fill exactly the bytes it claims, and the claims
//! must cover the data without a hole or an overlap. Nothing is allocated by a
//! size that the file only claims.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::Deserialize;

use crate::{Error, Result};

/// Longest header that is read; real ones are below a few MiB.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// An open file with a valid header.
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    file: File,
    tensors: HashMap<String, TensorEntry>,
}

/// What the header says about one tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorEntry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// From the start of the file.
    pub offset: u64,
    pub bytes: u64,
}

/// Element types of safetensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    F8E4m3,
    U8,
    /// A type that weights are not read from, with its size where that is a whole byte.
    Other {
        name: String,
        bytes: Option<u64>,
    },
}

impl Dtype {
    fn parse(name: String) -> Self {
        let bytes = match name.as_str() {
            "F32" => return Dtype::F32,
            "F16" => return Dtype::F16,
            "BF16" => return Dtype::Bf16,
            "F8_E4M3" => return Dtype::F8E4m3,
            "U8" => return Dtype::U8,
            "BOOL" | "I8" | "F8_E5M2" | "F8_E8M0" => Some(1),
            "I16" | "U16" => Some(2),
            "I32" | "U32" => Some(4),
            "I64" | "U64" | "F64" | "C64" => Some(8),
            _ => None,
        };
        Dtype::Other { name, bytes }
    }

    /// Bytes of one element, when it is known.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Dtype::F32 => Some(4),
            Dtype::F16 | Dtype::Bf16 => Some(2),
            Dtype::F8E4m3 | Dtype::U8 => Some(1),
            Dtype::Other { bytes, .. } => *bytes,
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::F8E4m3 => "F8_E4M3",
            Dtype::U8 => "U8",
            Dtype::Other { name, .. } => name,
        }
    }
}

impl SafetensorsFile {
    /// Opens `path` and checks its header.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self::open_with_header(path)?.0)
    }

    /// As [`SafetensorsFile::open`], with the raw header (length prefix included).
    pub fn open_with_header(path: impl Into<PathBuf>) -> Result<(Self, Vec<u8>)> {
        let path = path.into();
        let file = File::open(&path).map_err(|error| Error::io(&path, error))?;
        let length = file.metadata().map_err(|error| Error::io(&path, error))?.len();
        let header = read_header(&path, &file, length)?;
        let tensors = parse_header(&path, &header[8..], length)?;
        Ok((Self { path, file, tensors }, header))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn tensors(&self) -> &HashMap<String, TensorEntry> {
        &self.tensors
    }

    /// Fills `buffer` from `offset`.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::damaged(
                &self.path,
                format!("the file ended early, before byte {}", offset + buffer.len() as u64),
            ),
            _ => Error::io(&self.path, error),
        })
    }
}

fn read_header(path: &Path, file: &File, file_length: u64) -> Result<Vec<u8>> {
    let damaged = |problem: String| Error::damaged(path, problem);
    if file_length < 8 {
        return Err(damaged(format!("only {file_length} bytes long, no safetensors header")));
    }
    let read =
        |buffer: &mut [u8]| file.read_exact_at(buffer, 0).map_err(|error| Error::io(path, error));
    let mut prefix = [0; 8];
    read(&mut prefix)?;
    let claimed = u64::from_le_bytes(prefix);
    if claimed > file_length - 8 {
        return Err(damaged(format!(
            "the header claims {claimed} bytes, but the file has {file_length} in all: truncated or not safetensors"
        )));
    }
    if claimed > MAX_HEADER_BYTES {
        return Err(damaged(format!(
            "the header claims {claimed} bytes, more than any real one ({MAX_HEADER_BYTES})"
        )));
    }
    let mut header = vec![0; 8 + claimed as usize];
    read(&mut header)?;
    Ok(header)
}

fn parse_header(
    path: &Path,
    json: &[u8],
    file_length: u64,
) -> Result<HashMap<String, TensorEntry>> {
    let text = std::str::from_utf8(json)
        .map_err(|_| Error::damaged(path, "the header is not UTF-8 text"))?;
    let header: RawHeader = serde_json::from_str(text)
        .map_err(|error| Error::damaged(path, format!("the header is not valid: {error}")))?;
    let data_start = 8 + json.len() as u64;
    let data_bytes = file_length - data_start;
    check_coverage(path, &header.0, data_bytes)?;
    let mut tensors = HashMap::with_capacity(header.0.len());
    for (name, raw) in header.0 {
        let entry = check_entry(path, &name, raw, data_start)?;
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(Error::damaged(path, format!("two tensors are named {name:?}")));
        }
    }
    Ok(tensors)
}

/// The claims, in the order of the data, must follow each other from 0 to the end.
fn check_coverage(path: &Path, tensors: &[(String, RawEntry)], data_bytes: u64) -> Result<()> {
    let mut claims: Vec<_> =
        tensors.iter().map(|(name, raw)| (raw.data_offsets, name.as_str())).collect();
    claims.sort_unstable();
    let mut end = 0;
    for ([from, to], name) in claims {
        let problem = match () {
            () if from > to => "ends before it starts",
            () if to > data_bytes => "lies beyond the end of the file",
            () if from < end => "overlaps the tensor before it",
            () if from > end => "leaves a hole before it",
            () => {
                end = to;
                continue;
            }
        };
        return Err(Error::damaged(
            path,
            format!("tensor {name:?} (bytes {from} to {to} of {data_bytes}) {problem}"),
        ));
    }
    if end != data_bytes {
        return Err(Error::damaged(
            path,
            format!("the header describes {end} bytes of data, the file holds {data_bytes}"),
        ));
    }
    Ok(())
}

fn check_entry(path: &Path, name: &str, raw: RawEntry, data_start: u64) -> Result<TensorEntry> {
    let [from, to] = raw.data_offsets;
    let bytes = to - from;
    let dtype = Dtype::parse(raw.dtype);
    if let Some(size) = dtype.bytes() {
        let expected = raw.shape.iter().try_fold(size, |product, &dim| product.checked_mul(dim));
        if expected != Some(bytes) {
            return Err(Error::damaged(
                path,
                format!(
                    "tensor {name:?} of shape {:?} and type {} cannot fill the {bytes} bytes it claims",
                    raw.shape,
                    dtype.name()
                ),
            ));
        }
    }
    let shape = raw.shape.iter().map(|&dim| dim as usize).collect();
    Ok(TensorEntry { dtype, shape, offset: data_start + from, bytes })
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's entries in order, duplicates included, `__metadata__` left out.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(RawHeader(entries))
    }
}
