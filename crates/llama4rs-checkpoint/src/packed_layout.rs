//! Where every packed tensor goes: files, offsets, headers. Nothing is written here.

use llama4rs_tensor::{WeightFormat, ALIGNMENT};
use serde_json::{json, Map, Value};

use crate::published::stored_bytes;
use crate::tensor_specs::{TensorShape, TensorSpec};

/// Name of a filler between tensors whose sizes are not multiples of 64.
const FILLER: &str = "padding";

/// One weight file to be written.
pub(crate) struct FilePlan {
    pub name: String,
    /// Length prefix, JSON, and spaces up to a multiple of 64.
    pub header: Vec<u8>,
    pub tensors: Vec<PlannedTensor>,
    pub bytes: u64,
}

/// One tensor of a file.
pub(crate) struct PlannedTensor {
    /// Index into the list of specs.
    pub number: usize,
    /// From the start of the file.
    pub offset: u64,
    pub bytes: u64,
}

impl PlannedTensor {
    /// `bytes` and the zeros behind them.
    pub fn padded_bytes(&self) -> u64 {
        padded(self.bytes)
    }
}

/// `bytes` rounded up to the alignment of tensors.
pub(crate) fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT as u64)
}

/// Distributes the tensors, in order, over files of about `file_bytes`.
pub(crate) fn plan(
    specs: &[TensorSpec],
    formats: &[Option<WeightFormat>],
    file_bytes: u64,
) -> Vec<FilePlan> {
    let mut groups: Vec<Vec<(usize, u64)>> = Vec::new();
    let mut filled = u64::MAX;
    for (number, (spec, format)) in specs.iter().zip(formats).enumerate() {
        let bytes = stored_bytes(&spec.shape, *format);
        if filled.saturating_add(padded(bytes)) > file_bytes {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += padded(bytes);
        if let Some(group) = groups.last_mut() {
            group.push((number, bytes));
        }
    }
    let count = groups.len();
    let name = |n| format!("weights-{:05}-of-{count:05}.safetensors", n + 1);
    let file = |(n, group): (usize, Vec<_>)| file_plan(name(n), group, specs, formats);
    groups.into_iter().enumerate().map(file).collect()
}

fn file_plan(
    name: String,
    group: Vec<(usize, u64)>,
    specs: &[TensorSpec],
    formats: &[Option<WeightFormat>],
) -> FilePlan {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({"format": "llama4rs"}));
    let mut end = 0;
    for &(number, bytes) in &group {
        let (dtype, shape) = stored_shape(&specs[number].shape, formats[number]);
        entries.insert(specs[number].name.clone(), entry(dtype, &shape, end, bytes));
        end += bytes;
        let filler = padded(bytes) - bytes;
        if filler > 0 {
            entries.insert(format!("{FILLER}.{number}"), entry("U8", &[filler], end, filler));
            end += filler;
        }
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    let aligned = (8 + json.len()).next_multiple_of(ALIGNMENT) - 8;
    json.resize(aligned, b' ');
    let header = [&(aligned as u64).to_le_bytes()[..], &json].concat();
    let mut offset = header.len() as u64;
    let mut tensors = Vec::with_capacity(group.len());
    for (number, bytes) in group {
        tensors.push(PlannedTensor { number, offset, bytes });
        offset += padded(bytes);
    }
    FilePlan { name, header, tensors, bytes: offset }
}

fn entry(dtype: &str, shape: &[u64], start: u64, bytes: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [start, start + bytes]})
}

/// Packed matrices are `[stack, panels, panel bytes]`, everything else plain.
fn stored_shape(shape: &TensorShape, format: Option<WeightFormat>) -> (&'static str, Vec<u64>) {
    match (shape, format) {
        (TensorShape::Matrix { stack, rows, cols }, Some(format)) => {
            let panels = rows.div_ceil(llama4rs_tensor::format::PANEL_ROWS);
            let dims = [*stack, panels, format.panel_bytes(*cols)];
            ("U8", dims.map(|dim| dim as u64).to_vec())
        }
        _ => ("F32", shape.dims().iter().map(|&dim| dim as u64).collect()),
    }
}
