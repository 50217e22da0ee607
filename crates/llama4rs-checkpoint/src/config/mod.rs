//! `config.json`, read with every tolerance that real checkpoints need.
//!
//! What is absent gets the value that the transformers library gives it. What
//! cannot be a Llama 4 is refused: a [`Config`] that exists is a valid one.

mod fields;
mod rope;
mod text;
mod vision;

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};
use fields::{excerpt, Fields};

pub use rope::RopeScaling;
pub use text::{AttentionKind, FeedForwardKind, LayerConfig, TemperatureTuning, TextConfig};
pub use vision::VisionConfig;

/// A valid Llama 4 configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The decoder.
    pub text: TextConfig,
    /// The vision encoder; `None` for text-only checkpoints.
    pub vision: Option<VisionConfig>,
    /// Token before an image.
    pub boi_token_id: Option<u32>,
    /// Token after an image.
    pub eoi_token_id: Option<u32>,
    /// Token whose embedding is replaced by one image feature (the *patch* token).
    pub image_token_id: Option<u32>,
    /// First token of a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills up batches.
    pub pad_token_id: Option<u32>,
    /// The whole file as it was written.
    pub raw: Value,
}

impl Config {
    /// Reads a configuration; `path_for_messages` is named in errors.
    pub fn from_json(text: &str, path_for_messages: &Path) -> Result<Self> {
        let raw: Value = serde_json::from_str(text).map_err(|error| Error::Config {
            path: path_for_messages.to_owned(),
            field: "the file".into(),
            problem: format!("not valid JSON: {error}"),
        })?;
        let config = Self::from_value(&raw, path_for_messages)?;
        Ok(Self { raw, ..config })
    }

    /// Everything but `raw`, which stays null.
    fn from_value(raw: &Value, path: &Path) -> Result<Self> {
        let top = Fields::new(raw, path, "")?;
        check_architecture(&top)?;
        let text = top.object("text_config")?;
        if let Some(text) = &text {
            check_model_type(text)?;
        } else if top.value("hidden_size").is_none() {
            return Err(top.error("text_config", "missing, and there is no hidden_size either"));
        }
        let decoder = text.as_ref().unwrap_or(&top);
        let tied = top.flag("tie_word_embeddings", false)?;
        let vision = match (&text, top.object("vision_config")?) {
            (Some(_), Some(vision)) => Some(VisionConfig::read(&vision)?),
            _ => None,
        };
        let bos = decoder.token("bos_token_id")?;
        let eos = eos_tokens(decoder)?;
        Ok(Self {
            text: TextConfig::read(decoder, tied)?,
            vision,
            boi_token_id: first_token(&top, ["boi_token_index", "boi_token_id"])?,
            eoi_token_id: first_token(&top, ["eoi_token_index", "eoi_token_id"])?,
            image_token_id: first_token(&top, ["image_token_index", "image_token_id"])?,
            bos_token_id: if bos.is_some() { bos } else { top.token("bos_token_id")? },
            eos_token_ids: if eos.is_empty() { eos_tokens(&top)? } else { eos },
            pad_token_id: pad_token(decoder, &top)?,
            raw: Value::Null,
        })
    }

    /// Reads the configuration of a checkpoint's directory.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let bytes = crate::files::read_small(&path, 64 << 20).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Error::NotACheckpoint {
                    path: directory.to_owned(),
                    problem: "no config.json; give the directory of a Llama 4 checkpoint \
                              (config.json and *.safetensors) or a packed one"
                        .into(),
                }
            }
            other => other,
        })?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::damaged(&path, "the file is not UTF-8 text"))?;
        Self::from_json(&text, &path)
    }
}

fn check_architecture(top: &Fields<'_>) -> Result<()> {
    let names = top.array("architectures")?.unwrap_or_default();
    let listed = names.iter().filter_map(Value::as_str).collect::<Vec<_>>();
    if !listed.is_empty() && !listed.iter().any(|name| name.starts_with("Llama4")) {
        return Err(architecture(top, listed.join(", ")));
    }
    if top.value("model_type").is_none() && listed.is_empty() && top.value("text_config").is_none()
    {
        return Err(
            top.error("model_type", "expected \"llama4\" or \"llama4_text\", found nothing")
        );
    }
    check_model_type(top)
}

fn check_model_type(fields: &Fields<'_>) -> Result<()> {
    match fields.string("model_type")? {
        None | Some("llama4" | "llama4_text") => Ok(()),
        Some(other) => Err(architecture(fields, other.to_owned())),
    }
}

fn architecture(fields: &Fields<'_>, found: String) -> Error {
    Error::Architecture { path: fields.path().to_owned(), found }
}

fn first_token(top: &Fields<'_>, names: [&str; 2]) -> Result<Option<u32>> {
    match top.token(names[0])? {
        Some(id) => Ok(Some(id)),
        None => top.token(names[1]),
    }
}

/// One id or a list of ids.
fn eos_tokens(fields: &Fields<'_>) -> Result<Vec<u32>> {
    let name = "eos_token_id";
    match fields.value(name) {
        Some(Value::Array(ids)) => {
            let id = |value: &Value| {
                value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                    fields.error(name, format!("expected token ids, found {}", excerpt(value)))
                })
            };
            ids.iter().map(id).collect()
        }
        _ => Ok(fields.token(name)?.into_iter().collect()),
    }
}

/// A negative padding id is an old way to write "none".
fn pad_token(decoder: &Fields<'_>, top: &Fields<'_>) -> Result<Option<u32>> {
    for fields in [decoder, top] {
        match fields.value("pad_token_id") {
            Some(value) if value.as_i64().is_some_and(|id| id < 0) => return Ok(None),
            Some(_) => return fields.token("pad_token_id"),
            None => {}
        }
    }
    Ok(None)
}
