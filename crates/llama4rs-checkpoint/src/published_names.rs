//! Canonical name -> the tensors of a published checkpoint that hold it.
//!
//! Text tensors carry a prefix that depends on the class that saved them;
//! routed experts come fused (`gate_up_proj [E, in, 2F]`, `down_proj [E, F, out]`,
//! inputs first) or split (`experts.{e}.gate_proj.weight`, outputs first).

use std::collections::HashSet;

use crate::safetensors_file::{Dtype, SafetensorsFile, TensorEntry};
use crate::shards::Shards;
use crate::tensor_specs::{Role, TensorShape, TensorSpec};
use crate::{Error, Result};

/// Prefixes of the decoder's tensors; the first whose embedding exists is the one.
const TEXT_PREFIXES: [&str; 4] =
    ["language_model.model.", "model.language_model.", "model.", "language_model."];
const HEAD_PREFIXES: [&str; 3] = ["language_model.", "", "model."];
const VISION_PREFIXES: [&str; 2] = ["", "model."];

/// Buffers that some exporters store and no computation reads.
const IGNORABLE_ENDINGS: [&str; 6] = [
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "rotary_embedding.freqs_ci",
    "rope.freqs",
    "_extra_state",
];

/// How the values of one canonical tensor lie in the checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Layout {
    /// One tensor of the canonical shape.
    Plain(String),
    /// One tensor `[stack, cols, width]`: inputs first, outputs from `first` on.
    Fused { tensor: String, first: usize, width: usize },
    /// One tensor `[rows, cols]` per matrix of the stack.
    Split(Vec<String>),
}

/// A canonical tensor and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub spec: TensorSpec,
    pub layout: Layout,
}

/// The prefixes of one checkpoint.
struct Names<'a> {
    shards: &'a Shards,
    text: &'static str,
    head: &'static str,
    vision: &'static str,
}

/// Whether the checkpoint holds any tensor of the vision part.
pub(crate) fn has_vision(shards: &Shards) -> bool {
    shards.names().any(is_vision)
}

fn is_vision(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    name.starts_with("vision_model.") || name.starts_with("multi_modal_projector.")
}

/// Finds every tensor of `specs`, checks shapes and element types, and accounts
/// for what is left over: remarks for what can be ignored, else an error.
pub(crate) fn locate(
    specs: Vec<TensorSpec>,
    shards: &Shards,
    with_vision: bool,
) -> Result<(Vec<Located>, Vec<String>)> {
    let names = Names::detect(shards);
    let mut used = HashSet::new();
    let mut located = Vec::with_capacity(specs.len());
    for spec in specs {
        let layout = names.layout(&spec)?;
        check(shards, &spec, &layout, &mut used)?;
        located.push(Located { spec, layout });
    }
    let tied = !located.iter().any(|tensor| tensor.spec.role == Role::Output);
    let warnings = left_over(shards, &used, &names, with_vision, tied)?;
    Ok((located, warnings))
}

impl<'a> Names<'a> {
    fn detect(shards: &'a Shards) -> Self {
        let first = |prefixes: &[&'static str], name: &str| {
            let exists = |prefix: &&&str| shards.find(&format!("{prefix}{name}")).is_some();
            prefixes.iter().find(exists).copied()
        };
        let text = first(&TEXT_PREFIXES, "embed_tokens.weight").unwrap_or("model.");
        let head = first(&HEAD_PREFIXES, "lm_head.weight");
        let vision = first(&VISION_PREFIXES, "vision_model.class_embedding").unwrap_or("");
        Self { shards, text, head: head.unwrap_or(""), vision }
    }

    fn layout(&self, spec: &TensorSpec) -> Result<Layout> {
        match spec.role {
            Role::Experts => self.experts(spec),
            Role::Output => Ok(Layout::Plain(format!("{}lm_head.weight", self.head))),
            Role::VisionLinear => Ok(Layout::Plain(format!("{}{}.weight", self.vision, spec.name))),
            Role::VisionVector => Ok(Layout::Plain(format!("{}{}", self.vision, spec.name))),
            _ => Ok(Layout::Plain(format!("{}{}.weight", self.text, spec.name))),
        }
    }

    fn experts(&self, spec: &TensorSpec) -> Result<Layout> {
        let TensorShape::Matrix { stack, rows, .. } = spec.shape else {
            return Ok(Layout::Plain(spec.name.clone()));
        };
        let (stem, part) = spec.name.rsplit_once('.').unwrap_or(("", &spec.name));
        let stem = format!("{}{stem}", self.text);
        if self.shards.find(&format!("{stem}.0.{part}.weight")).is_some() {
            let name = |e| format!("{stem}.{e}.{part}.weight");
            return Ok(Layout::Split((0..stack).map(name).collect()));
        }
        let renamed = format!("{stem}.{part}.weight");
        if let Some((file, _)) = self.shards.find(&renamed) {
            return Err(Error::Unsupported {
                path: file.path().to_owned(),
                what: format!("the expert layout of tensor {renamed:?} (bitsandbytes)"),
                hint: "use the original bf16 checkpoint; llama4rs packs it to int4 itself".into(),
            });
        }
        Ok(match part {
            "down_proj" => {
                Layout::Fused { tensor: format!("{stem}.down_proj"), first: 0, width: rows }
            }
            gate_or_up => Layout::Fused {
                tensor: format!("{stem}.gate_up_proj"),
                first: if gate_or_up == "up_proj" { rows } else { 0 },
                width: 2 * rows,
            },
        })
    }
}

impl Layout {
    /// Published names.
    pub fn tensors(&self) -> &[String] {
        match self {
            Layout::Plain(tensor) | Layout::Fused { tensor, .. } => std::slice::from_ref(tensor),
            Layout::Split(tensors) => tensors,
        }
    }
}

fn check(
    shards: &Shards,
    spec: &TensorSpec,
    layout: &Layout,
    used: &mut HashSet<String>,
) -> Result<()> {
    let expected = match (&spec.shape, layout) {
        (TensorShape::Matrix { stack, cols, .. }, Layout::Fused { width, .. }) => {
            vec![*stack, *cols, *width]
        }
        (TensorShape::Matrix { rows, cols, .. }, _) => vec![*rows, *cols],
        (TensorShape::Vector { dims }, _) => dims.clone(),
    };
    for tensor in layout.tensors() {
        let (file, entry) = shards.find(tensor).ok_or_else(|| missing(shards, tensor))?;
        check_dtype(shards, file, tensor, entry)?;
        if entry.shape != expected {
            return Err(Error::Shape {
                path: file.path().to_owned(),
                tensor: tensor.clone(),
                expected,
                found: entry.shape.clone(),
            });
        }
        used.insert(tensor.clone());
        let scale = scale_name(tensor);
        if entry.dtype == Dtype::F8E4m3 {
            used.insert(scale);
        }
    }
    Ok(())
}

/// The scales that belong to an fp8 tensor.
pub(crate) fn scale_name(tensor: &str) -> String {
    format!("{tensor}_scale")
}

fn check_dtype(
    shards: &Shards,
    file: &SafetensorsFile,
    tensor: &str,
    entry: &TensorEntry,
) -> Result<()> {
    let hint = match &entry.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => return Ok(()),
        Dtype::F8E4m3 => match shards.find(&scale_name(tensor)) {
            // One scale for all, or one per output of an outputs-first tensor.
            Some((_, scale)) if is_row_scale(scale, &entry.shape) => return Ok(()),
            Some(_) => "; these fp8 scales are not one per output, use the bf16 checkpoint",
            None => "; an fp8 tensor needs scales beside it, use the bf16 checkpoint",
        },
        _ => "; this is a quantised checkpoint, use the bf16 one: llama4rs packs it itself",
    };
    Err(Error::Dtype {
        path: file.path().to_owned(),
        tensor: tensor.to_owned(),
        found: entry.dtype.name().to_owned(),
        hint: hint.to_owned(),
    })
}

fn is_row_scale(scale: &TensorEntry, tensor: &[usize]) -> bool {
    let [rows, _] = tensor else { return false };
    let is_plain = matches!(scale.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    let is_column = scale.shape == [*rows] || scale.shape == [*rows, 1];
    is_plain && (is_column || scale.shape.iter().all(|&dim| dim == 1))
}

fn missing(shards: &Shards, tensor: &str) -> Error {
    let stem = tensor.strip_suffix(".weight").unwrap_or(tensor);
    for ending in ["weight_packed", "qweight", "weight.absmax"] {
        if let Some((file, _)) = shards.find(&format!("{stem}.{ending}")) {
            return Error::Unsupported {
                path: file.path().to_owned(),
                what: format!("the quantised tensor {stem}.{ending}"),
                hint: "use the original bf16 checkpoint; llama4rs packs it to int4 itself".into(),
            };
        }
    }
    Error::MissingTensor {
        path: shards.directory().to_owned(),
        tensor: tensor.to_owned(),
        hint: "config.json and weights belong to different models, or a file is missing".into(),
    }
}

fn left_over(
    shards: &Shards,
    used: &HashSet<String>,
    names: &Names<'_>,
    with_vision: bool,
    tied: bool,
) -> Result<Vec<String>> {
    let mut rest: Vec<&str> = shards.names().filter(|name| !used.contains(*name)).collect();
    rest.sort_unstable();
    let mut ignored = Vec::new();
    let mut vision = 0usize;
    let mut unknown = Vec::new();
    for name in rest {
        if IGNORABLE_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            ignored.push(format!("ignored {name}: a buffer that no computation reads"));
        } else if tied && name == format!("{}lm_head.weight", names.head) {
            ignored.push(format!("ignored {name}: config.json ties it to the embeddings"));
        } else if is_vision(name) && !with_vision {
            vision += 1;
        } else {
            unknown.push(name);
        }
    }
    if vision > 0 {
        ignored.push(format!("ignored {vision} vision tensors: config.json has no vision_config"));
    }
    match unknown.first() {
        None => Ok(ignored),
        Some(first) => Err(Error::UnknownTensors {
            path: shards.directory().to_owned(),
            count: unknown.len(),
            first: first.to_string(),
        }),
    }
}
