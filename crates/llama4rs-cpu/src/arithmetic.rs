//! How products are computed.

use std::fmt;
use std::str::FromStr;

use llama4rs_tensor::{Error, Result};

/// What happens to activations on their way into a product. Products with `f32`
/// weights, and attention over `f32` keys and values, are not affected.
///
/// Either way a result depends on nothing but its own row and the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Activations stay in single precision.
    Exact,
    /// For `int4` and `int8` weights activations are rounded to 8-bit integers, one
    /// scale per group of inputs, and multiplied by integer instructions: several
    /// times as fast, at a relative error of half a percent or so. For `bf16` weights,
    /// and for attention over `bf16` keys and values, they are rounded to bf16: twice
    /// as fast, at a sixth of a percent. In a vision tower with any of these weights
    /// the attention's products are integers of 11 to 14 bits.
    #[default]
    Fast,
}

impl fmt::Display for Arithmetic {
    /// `exact` or `fast`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arithmetic::Exact => "exact",
            Arithmetic::Fast => "fast",
        })
    }
}

impl FromStr for Arithmetic {
    type Err = Error;

    /// Reads `exact` or `fast`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "exact" => Ok(Arithmetic::Exact),
            "fast" => Ok(Arithmetic::Fast),
            _ => Err(Error::shape("arithmetic", "exact or fast", format!("{text:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            assert_eq!(arithmetic.to_string().parse::<Arithmetic>().unwrap(), arithmetic);
        }
        let error = "quick".parse::<Arithmetic>().unwrap_err().to_string();
        assert!(error.contains("exact or fast") && error.contains("quick"), "{error}");
    }
}
