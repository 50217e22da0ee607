//! Rotary frequencies: old keys (`rope_theta`, `rope_scaling`) and new ones (`rope_parameters`).

use super::fields::Fields;
use crate::{Error, Result};

/// How the plain rotary frequencies are changed for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// The wavelength-dependent division of Llama 3.1 and later.
    Llama3 {
        /// Divisor of the frequencies of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Context length before the scaling.
        original_max_position_embeddings: usize,
    },
}

/// `(theta, scaling)` of a text or vision configuration.
pub(super) fn read(fields: &Fields<'_>, default: f64) -> Result<(f64, Option<RopeScaling>)> {
    let old_theta = fields.positive("rope_theta", Some(default))?;
    if let Some(rope) = fields.object("rope_parameters")? {
        return Ok((rope.positive("rope_theta", Some(old_theta))?, scaling(&rope)?));
    }
    match fields.object("rope_scaling")? {
        None => Ok((old_theta, None)),
        Some(rope) => Ok((rope.positive("rope_theta", Some(old_theta))?, scaling(&rope)?)),
    }
}

fn scaling(rope: &Fields<'_>) -> Result<Option<RopeScaling>> {
    let kind = match rope.string("rope_type")? {
        Some(kind) => Some(kind),
        None => rope.string("type")?,
    };
    match kind {
        None if rope.value("factor").is_none() => Ok(None),
        Some("default") => Ok(None),
        None | Some("llama3") => {
            let original = "original_max_position_embeddings";
            let low_freq_factor = rope.positive("low_freq_factor", None)?;
            let high_freq_factor = rope.positive("high_freq_factor", None)?;
            if high_freq_factor < low_freq_factor {
                return Err(rope.error(
                    "high_freq_factor",
                    format!("expected at least low_freq_factor {low_freq_factor}, found {high_freq_factor}"),
                ));
            }
            if rope.value(original).is_none() {
                return Err(rope.error(original, "expected a context length, found nothing"));
            }
            Ok(Some(RopeScaling::Llama3 {
                factor: rope.positive("factor", None)?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: rope.size(original, 0, 1 << 40)?,
            }))
        }
        Some(other) => Err(Error::Unsupported {
            path: rope.path().to_owned(),
            what: format!("rope_type {other:?}"),
            hint: "Llama 4 checkpoints use \"llama3\" or \"default\"".into(),
        }),
    }
}
