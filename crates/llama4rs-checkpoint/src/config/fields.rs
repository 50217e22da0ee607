//! Typed access to the fields of one JSON object, with errors that name them.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// One object of `config.json`. An explicit `null` counts as an absent field.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a Path,
    prefix: String,
}

impl<'a> Fields<'a> {
    pub fn new(value: &'a Value, path: &'a Path, name: &str) -> Result<Self> {
        match value {
            Value::Object(object) => {
                let prefix = if name.is_empty() { String::new() } else { format!("{name}.") };
                Ok(Self { object, path, prefix })
            }
            other => Err(Error::Config {
                path: path.to_owned(),
                field: if name.is_empty() { "the file".into() } else { name.into() },
                problem: format!("expected an object, found {}", excerpt(other)),
            }),
        }
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    pub fn error(&self, name: &str, problem: impl std::fmt::Display) -> Error {
        Error::Config {
            path: self.path.to_owned(),
            field: format!("{}{name}", self.prefix),
            problem: problem.to_string(),
        }
    }

    fn expected(&self, name: &str, expected: &str, found: &Value) -> Error {
        self.error(name, format!("expected {expected}, found {}", excerpt(found)))
    }

    /// Whether the field is written at all, be it as `null`.
    pub fn is_written(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        let full = format!("{}{name}", self.prefix);
        self.value(name).map(|value| Fields::new(value, self.path, &full)).transpose()
    }

    pub fn string(&self, name: &str) -> Result<Option<&'a str>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.expected(name, "a string", other)),
        }
    }

    pub fn array(&self, name: &str) -> Result<Option<&'a [Value]>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.expected(name, "a list", other)),
        }
    }

    /// A whole number from 0 to `limit`; `8192.0` counts as whole.
    pub fn whole(&self, name: &str, limit: u64) -> Result<Option<u64>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_u64().or_else(|| match value.as_f64() {
            Some(float) if float.fract() == 0.0 && (0.0..9e15).contains(&float) => {
                Some(float as u64)
            }
            _ => None,
        });
        match number {
            Some(number) if number <= limit => Ok(Some(number)),
            _ => Err(self.expected(name, &format!("a whole number from 0 to {limit}"), value)),
        }
    }

    /// A size from 1 to `limit`.
    pub fn size(&self, name: &str, default: usize, limit: u64) -> Result<usize> {
        match self.whole(name, limit)? {
            None => Ok(default),
            Some(0) => Err(self.error(name, format!("expected 1 to {limit}, found 0"))),
            Some(number) => Ok(number as usize),
        }
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(self.expected(name, "a finite number", value)),
            },
        }
    }

    /// A finite number above zero.
    pub fn positive(&self, name: &str, default: Option<f64>) -> Result<f64> {
        match (self.number(name)?, default) {
            (Some(number), _) if number > 0.0 => Ok(number),
            (Some(number), _) => {
                Err(self.error(name, format!("expected a number above 0, found {number}")))
            }
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(name, "expected a number above 0, found nothing")),
        }
    }

    /// A number above zero, also when it is rounded to single precision.
    pub fn single(&self, name: &str, default: f64) -> Result<f32> {
        let number = self.positive(name, Some(default))? as f32;
        match number.is_normal() {
            true => Ok(number),
            false => Err(self.error(name, "beyond the range of single precision")),
        }
    }

    /// `true`, `false`, or a number that is one of them when zero is false.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.value(name) {
            None => Ok(default),
            Some(value) => {
                as_flag(value).ok_or_else(|| self.expected(name, "true or false", value))
            }
        }
    }

    /// A token id.
    pub fn token(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.whole(name, u32::MAX as u64)?.map(|id| id as u32))
    }
}

/// Booleans and the numbers that stand for them.
pub(super) fn as_flag(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| value.as_f64().map(|number| number != 0.0))
}

/// The start of a value, for messages.
pub(super) fn excerpt(value: &Value) -> String {
    let text = match value {
        Value::Object(_) => return "an object".into(),
        Value::Array(items) => return format!("a list of {}", items.len()),
        other => other.to_string(),
    };
    match text.char_indices().nth(40) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
