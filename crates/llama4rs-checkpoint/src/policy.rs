//! Which format each matrix gets.
//!
//! | tensor | f32 | bf16 | int8 | int4 |
//! |---|---|---|---|---|
//! | decoder linears, experts | f32 | bf16 | int8 | int4 |
//! | `embed_tokens`, `lm_head` | f32 | bf16 | int8 | int8 |
//! | router | f32 | f32 | f32 | f32 |
//! | vision matrices | f32 | bf16 | bf16 | bf16 |
//! | norms, biases, vision embeddings | plain f32 | plain f32 | plain f32 | plain f32 |

use llama4rs_tensor::WeightFormat;

use crate::published::stored_bytes;
use crate::tensor_specs::{tensor_specs, Role, TensorShape, TensorSpec};
use crate::{Config, Error, Result, TensorReport};

/// A user's exception from the table: the first rule whose pattern matches wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatRule {
    /// A canonical name in which `*` stands for any characters, such as `layers.*.self_attn.*`.
    pub pattern: String,
    /// The format of the matrices that match.
    pub format: WeightFormat,
}

/// Every tensor of a model as [`pack`](crate::pack) would store it; no weights are needed.
pub fn planned_tensors(
    config: &Config,
    weights: WeightFormat,
    rules: &[FormatRule],
) -> Result<Vec<TensorReport>> {
    let specs = tensor_specs(config);
    let formats = choose_formats(&specs, weights, rules)?;
    let planned = |(spec, format): (TensorSpec, Option<WeightFormat>)| TensorReport {
        format,
        shape: spec.shape.dims(),
        bytes: stored_bytes(&spec.shape, format),
        relative_error: None,
        name: spec.name,
    };
    Ok(specs.into_iter().zip(formats).map(planned).collect())
}

/// The format of every tensor in `specs`: `None` for vectors.
///
/// A rule that matches no matrix at all is an error: it is a misspelling.
pub(crate) fn choose_formats(
    specs: &[TensorSpec],
    weights: WeightFormat,
    rules: &[FormatRule],
) -> Result<Vec<Option<WeightFormat>>> {
    for rule in rules {
        let is_match = |spec: &&TensorSpec| is_matrix(spec) && matches(&rule.pattern, &spec.name);
        if specs.iter().find(is_match).is_none() {
            return Err(Error::Rule {
                pattern: rule.pattern.clone(),
                problem: "no matrix of this model matches; names look like embed_tokens or \
                          layers.0.self_attn.q_proj, and * stands for any characters"
                    .into(),
            });
        }
    }
    let choose = |spec: &TensorSpec| {
        let ruled = || rules.iter().find(|rule| matches(&rule.pattern, &spec.name));
        is_matrix(spec).then(|| match ruled() {
            Some(rule) => rule.format,
            None => default_format(spec.role, weights),
        })
    };
    Ok(specs.iter().map(choose).collect())
}

fn is_matrix(spec: &TensorSpec) -> bool {
    matches!(spec.shape, TensorShape::Matrix { .. })
}

fn default_format(role: Role, weights: WeightFormat) -> WeightFormat {
    match (role, weights) {
        (Role::Router, _) => WeightFormat::F32,
        (Role::Embedding | Role::Output, WeightFormat::Int4 { group }) => {
            WeightFormat::Int8 { group }
        }
        (Role::VisionLinear | Role::VisionVector, WeightFormat::F32) => WeightFormat::F32,
        (Role::VisionLinear | Role::VisionVector, _) => WeightFormat::Bf16,
        _ => weights,
    }
}

/// Whether `name` is `pattern` with every `*` replaced by some characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name, expected) in [
            ("lm_head", "lm_head", true),
            ("lm_head", "lm_head2", false),
            ("*", "anything", true),
            ("", "", true),
            ("layers.*.self_attn.*", "layers.11.self_attn.q_proj", true),
            ("layers.*.self_attn.*", "layers.11.feed_forward.router", false),
            ("*q_proj", "layers.0.self_attn.q_proj", true),
            ("a*a", "a", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn a_rule_that_matches_nothing_is_an_error() {
        let spec = |name: &str, role, shape| TensorSpec { name: name.into(), role, shape };
        let specs = [
            spec("lm_head", Role::Output, TensorShape::Matrix { stack: 1, rows: 4, cols: 4 }),
            spec("norm", Role::Norm, TensorShape::Vector { dims: vec![4] }),
        ];
        let int4 = WeightFormat::Int4 { group: 32 };
        let rule = |pattern: &str| [FormatRule { pattern: pattern.into(), format: int4 }];
        assert_eq!(
            choose_formats(&specs, int4, &[]).unwrap(),
            [Some(WeightFormat::Int8 { group: 32 }), None]
        );
        assert_eq!(choose_formats(&specs, int4, &rule("lm*")).unwrap(), [Some(int4), None]);
        for pattern in ["norm", "lm"] {
            let error = choose_formats(&specs, int4, &rule(pattern)).unwrap_err().to_string();
            assert!(error.contains("no matrix of this model matches"), "{error}");
        }
    }
}
