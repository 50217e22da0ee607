//! The vision encoder's sizes.

use super::fields::Fields;
use super::rope;
use crate::{Error, Result};

/// Sizes of the vision encoder, its adapter and the projector.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width of the encoder.
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the encoder's feed-forward layers.
    pub intermediate_size: usize,
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Patches that pixel shuffle joins along one side (2 for a ratio of 0.5).
    pub shuffle: usize,
    /// Width between the adapter's two linears.
    pub projector_input_dim: usize,
    /// Width after the adapter: what the projector reads.
    pub output_dim: usize,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// Base of the two-dimensional rotary frequencies.
    pub rope_theta: f64,
}

impl VisionConfig {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self> {
        if let Some(act) = fields.string("hidden_act")? {
            if act != "gelu" {
                return Err(Error::Unsupported {
                    path: fields.path().to_owned(),
                    what: format!("vision_config.hidden_act {act:?}"),
                    hint: "the Llama 4 vision encoder uses \"gelu\"".into(),
                });
            }
        }
        let size = |name: &str, default| fields.size(name, default, 1 << 20);
        let hidden_size = size("hidden_size", 768)?;
        let num_heads = size("num_attention_heads", 16)?;
        if !hidden_size.is_multiple_of(4 * num_heads) {
            return Err(fields.error(
                "num_attention_heads",
                format!("{num_heads} heads do not cut hidden_size {hidden_size} into widths divisible by 4"),
            ));
        }
        let config = Self {
            hidden_size,
            num_layers: fields.size("num_hidden_layers", 34, 4096)?,
            num_heads,
            head_dim: hidden_size / num_heads,
            intermediate_size: size("intermediate_size", 5632)?,
            image_size: fields.size("image_size", 448, 1 << 14)?,
            patch_size: fields.size("patch_size", 14, 1 << 10)?,
            num_channels: fields.size("num_channels", 3, 64)?,
            shuffle: shuffle(fields)?,
            projector_input_dim: size("projector_input_dim", 4096)?,
            output_dim: size("projector_output_dim", 4096)?,
            norm_eps: fields.single("norm_eps", 1e-5)?,
            rope_theta: rope::read(fields, 10000.0)?.0,
        };
        config.check(fields)?;
        Ok(config)
    }

    fn check(&self, fields: &Fields<'_>) -> Result<()> {
        if !self.image_size.is_multiple_of(self.patch_size * self.shuffle) {
            return Err(fields.error(
                "image_size",
                format!(
                    "{} is not a multiple of {}: patch_size times the pixel shuffle",
                    self.image_size,
                    self.patch_size * self.shuffle
                ),
            ));
        }
        if self.intermediate_size != self.shuffled_size() {
            return Err(fields.error(
                "intermediate_size",
                format!(
                    "expected {}, the width after pixel shuffle, found {}",
                    self.shuffled_size(),
                    self.intermediate_size
                ),
            ));
        }
        if self.projector_input_dim != self.output_dim {
            return Err(fields.error(
                "projector_input_dim",
                format!(
                    "expected projector_output_dim {}, found {}",
                    self.output_dim, self.projector_input_dim
                ),
            ));
        }
        match fields.whole("vision_output_dim", 1 << 20)? {
            Some(dim) if dim as usize != self.output_dim => Err(fields.error(
                "vision_output_dim",
                format!("expected projector_output_dim {}, found {dim}", self.output_dim),
            )),
            _ => Ok(()),
        }
    }

    /// Patches along one side of a tile.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of a tile, the class token not counted.
    pub fn num_patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Text positions that one tile takes.
    pub fn tokens_per_tile(&self) -> usize {
        self.num_patches() / (self.shuffle * self.shuffle)
    }

    /// Values of one patch before the embedding.
    pub fn patch_values(&self) -> usize {
        self.num_channels * self.patch_size * self.patch_size
    }

    /// Width after pixel shuffle: what the adapter reads.
    pub fn shuffled_size(&self) -> usize {
        self.hidden_size * self.shuffle * self.shuffle
    }
}

fn shuffle(fields: &Fields<'_>) -> Result<usize> {
    let ratio = fields.positive("pixel_shuffle_ratio", Some(0.5))?;
    let side = (1.0 / ratio).round();
    if (1.0..=16.0).contains(&side) && (side * ratio - 1.0).abs() < 1e-9 {
        return Ok(side as usize);
    }
    Err(fields.error(
        "pixel_shuffle_ratio",
        format!("expected 1 divided by a whole number up to 16, found {ratio}"),
    ))
}
