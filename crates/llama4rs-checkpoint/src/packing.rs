//! A located tensor -> packed bytes, in memory or piece by piece.

use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::WeightFormat;
use rayon::prelude::*;
use rayon::ThreadPool;

use crate::published_names::{scale_name, Layout, Located};
use crate::quantize::{pack_panel, PanelStats};
use crate::safetensors_file::{SafetensorsFile, TensorEntry};
use crate::shards::Shards;
use crate::source_matrix::{Block, Element, Order, SourceMatrix};
use crate::tensor_specs::TensorShape;
use crate::{Error, Result};

/// Sums over a whole tensor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loss {
    error: f64,
    norm: f64,
}

impl Loss {
    /// `||w - ŵ|| / ||w||`; 0 for a tensor of zeros, 1 where the sums overflowed.
    pub fn relative(self) -> f64 {
        if self.norm == 0.0 {
            return 0.0;
        }
        let relative = (self.error / self.norm).sqrt();
        if relative.is_finite() {
            relative
        } else {
            1.0
        }
    }
}

/// The matrices of a located matrix tensor, one per element of the stack.
pub(crate) fn source_matrices<'a>(
    shards: &'a Shards,
    located: &'a Located,
) -> Result<Vec<SourceMatrix<'a>>> {
    let TensorShape::Matrix { stack, rows, cols } = located.spec.shape else {
        return Ok(Vec::new());
    };
    let plain = |tensor: &'a String| -> Result<SourceMatrix<'a>> {
        let (file, entry) = find(shards, tensor)?;
        let element = element(file, tensor, entry)?;
        let scales = match element {
            Element::F8E4m3 => read_values(shards, &scale_name(tensor))?,
            _ => Vec::new(),
        };
        let (offset, order) = (entry.offset, Order::RowMajor);
        Ok(SourceMatrix { file, tensor, rows, cols, element, offset, order, scales })
    };
    match &located.layout {
        Layout::Plain(tensor) => Ok(vec![plain(tensor)?]),
        Layout::Split(tensors) => tensors.iter().map(plain).collect(),
        Layout::Fused { tensor, first, width } => {
            let (file, entry) = find(shards, tensor)?;
            let element = element(file, tensor, entry)?;
            let expert = |e: usize| {
                let skipped = (e * cols * width + first) * element.bytes();
                let offset = entry.offset + skipped as u64;
                let order = Order::Transposed { width: *width };
                SourceMatrix { file, tensor, rows, cols, element, offset, order, scales: vec![] }
            };
            Ok((0..stack).map(expert).collect())
        }
    }
}

/// Bytes of the checkpoint that a located tensor is made from.
pub(crate) fn source_bytes(shards: &Shards, located: &Located) -> u64 {
    let first = located.layout.tensors().first().and_then(|tensor| shards.find(tensor));
    let element_bytes = first.and_then(|(_, entry)| entry.dtype.bytes()).unwrap_or(0);
    located.spec.shape.num_values() * element_bytes
}

/// All values of a plain tensor in single precision.
pub(crate) fn read_values(shards: &Shards, tensor: &str) -> Result<Vec<f32>> {
    let (file, entry) = find(shards, tensor)?;
    let element = element(file, tensor, entry)?;
    let mut bytes = vec![0; entry.bytes as usize];
    file.read_at(entry.offset, &mut bytes)?;
    let values = element.decode(&bytes);
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(row) => {
            Err(Error::NotFinite { path: file.path().to_owned(), tensor: tensor.to_owned(), row })
        }
    }
}

/// Packs every matrix and hands the bytes to `sink` in order, in pieces of whole
/// panels: `sink(piece, source_bytes)`, called on the current thread.
///
/// Three things go on at the same time: the pool packs block `n` and reads block
/// `n + 1`, this thread hands over block `n - 1`.
pub(crate) fn pack_matrices(
    pool: &ThreadPool,
    matrices: &[SourceMatrix<'_>],
    format: WeightFormat,
    mut sink: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<Loss> {
    let jobs: Vec<_> = matrices
        .iter()
        .flat_map(|matrix| matrix.blocks().map(move |rows| (matrix, rows)))
        .collect();
    let mut loss = Loss::default();
    let (mut current, mut next) = (Block::default(), Block::default());
    let (mut packed, mut finished) = (Vec::new(), Vec::new());
    if let Some((matrix, rows)) = jobs.first() {
        pool.install(|| matrix.read(rows.clone(), &mut current))?;
    }
    for n in 0..=jobs.len() {
        let (this, following) = (jobs.get(n), jobs.get(n + 1));
        let mut worked = (Vec::new(), Ok(()));
        let mut handed_over = Ok(());
        pool.in_place_scope(|scope| {
            scope.spawn(|_| {
                worked = rayon::join(
                    || match this {
                        Some((matrix, _)) => pack_block(matrix, &current, format, &mut packed),
                        None => Vec::new(),
                    },
                    || match following {
                        Some((matrix, rows)) => matrix.read(rows.clone(), &mut next),
                        None => Ok(()),
                    },
                );
            });
            if let Some((matrix, rows)) = n.checked_sub(1).and_then(|before| jobs.get(before)) {
                let source_bytes = rows.len() * matrix.cols * matrix.element.bytes();
                handed_over = sink(&finished, source_bytes as u64);
            }
        });
        handed_over?;
        let (stats, read) = worked;
        if let Some((matrix, rows)) = this {
            add(&mut loss, matrix, rows.start, &stats)?;
        }
        read?;
        std::mem::swap(&mut current, &mut next);
        std::mem::swap(&mut packed, &mut finished);
    }
    Ok(loss)
}

fn pack_block(
    matrix: &SourceMatrix<'_>,
    block: &Block,
    format: WeightFormat,
    packed: &mut Vec<u8>,
) -> Vec<PanelStats> {
    let panel_bytes = format.panel_bytes(matrix.cols);
    let panels = block.num_panels();
    packed.clear();
    packed.resize(panels * panel_bytes, 0);
    let scratch = || vec![[0.0; PANEL_ROWS]; format.padded_cols(matrix.cols)];
    packed
        .par_chunks_exact_mut(panel_bytes)
        .enumerate()
        .map_init(scratch, |lanes, (p, panel)| {
            matrix.deal(block, p * PANEL_ROWS, lanes);
            pack_panel(format, lanes, panel)
        })
        .collect()
}

fn add(
    loss: &mut Loss,
    matrix: &SourceMatrix<'_>,
    first_row: usize,
    stats: &[PanelStats],
) -> Result<()> {
    for (p, panel) in stats.iter().enumerate() {
        if let Some(r) = panel.not_finite {
            return Err(Error::NotFinite {
                path: matrix.file.path().to_owned(),
                tensor: matrix.tensor.to_owned(),
                row: first_row + p * PANEL_ROWS + r,
            });
        }
        loss.error += panel.error;
        loss.norm += panel.norm;
    }
    Ok(())
}

fn find<'a>(shards: &'a Shards, tensor: &str) -> Result<(&'a SafetensorsFile, &'a TensorEntry)> {
    shards.find(tensor).ok_or_else(|| Error::MissingTensor {
        path: shards.directory().to_owned(),
        tensor: tensor.to_owned(),
        hint: "a file may be missing".into(),
    })
}

fn element(file: &SafetensorsFile, tensor: &str, entry: &TensorEntry) -> Result<Element> {
    Element::of(&entry.dtype).ok_or_else(|| Error::Dtype {
        path: file.path().to_owned(),
        tensor: tensor.to_owned(),
        found: entry.dtype.name().to_owned(),
        hint: String::new(),
    })
}
