//! Geometry of a tile: how pixels become rows, and rows become tokens.

use llama4rs_checkpoint::VisionConfig;

/// Cuts one tile `[channels, size, size]` into rows: one per patch, values
/// ordered channel, y, x, patches row by row; then a row of zeros for the class
/// token, which comes last. Appends `[patches + 1, channels * p * p]` to `out`.
pub(super) fn unfold(config: &VisionConfig, tile: &[f32], out: &mut Vec<f32>) {
    let (grid, p, size) = (config.grid(), config.patch_size, config.image_size);
    for patch in 0..grid * grid {
        let (top, left) = (patch / grid * p, patch % grid * p);
        for channel in tile.chunks_exact(size * size) {
            for y in top..top + p {
                out.extend_from_slice(&channel[y * size + left..][..p]);
            }
        }
    }
    out.resize(out.len() + config.patch_values(), 0.0);
}

/// Rows of the encoder in the order in which pixel shuffle reads them: each
/// `s x s` square of patches becomes `s²` neighbouring rows; the class token is
/// left out. For `tiles` tiles of `patches + 1` rows each.
pub(super) fn shuffled_rows(config: &VisionConfig, tiles: usize) -> Vec<u32> {
    let (grid, s) = (config.grid(), config.shuffle);
    let rows_per_tile = config.num_patches() + 1;
    let mut rows = Vec::with_capacity(tiles * config.num_patches());
    for tile in 0..tiles {
        for square in 0..config.tokens_per_tile() {
            let (top, left) = (square / (grid / s) * s, square % (grid / s) * s);
            for y in top..top + s {
                rows.extend((left..left + s).map(|x| (tile * rows_per_tile + y * grid + x) as u32));
            }
        }
    }
    rows
}

/// `cos, sin` per pair for the rows of one tile: the first half of the pairs
/// turns with the column, the second with the row, both counted from 1; the
/// class token is not turned. `[patches + 1, head_dim]`.
pub(super) fn rotations(config: &VisionConfig) -> Vec<f32> {
    let half = config.head_dim / 4;
    let frequency = |m: usize| config.rope_theta.powf(-(m as f64) / half as f64);
    let frequencies: Vec<f64> = (0..half).map(frequency).collect();
    let mut out = Vec::with_capacity((config.num_patches() + 1) * config.head_dim);
    for patch in 0..config.num_patches() {
        for coordinate in [patch % config.grid() + 1, patch / config.grid() + 1] {
            for frequency in &frequencies {
                let (sin, cos) = (coordinate as f64 * frequency).sin_cos();
                out.extend([cos as f32, sin as f32]);
            }
        }
    }
    out.extend([1.0, 0.0].repeat(config.head_dim / 2));
    out
}
