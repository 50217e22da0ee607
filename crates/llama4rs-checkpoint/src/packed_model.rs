//! A packed directory as a weight source: checked headers, mapped weights.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use llama4rs_tensor::{Bytes, MappedFile, PackedMatrix, WeightFormat, ALIGNMENT};

use crate::files::read_small;
use crate::manifest::{parse_format, plain_path, FileEntry, Manifest, PackedEntry, MANIFEST};
use crate::published::{canonical, unknown};
use crate::safetensors_file::SafetensorsFile;
use crate::tensor_specs::{tensor_specs, TensorShape, TensorSpec};
use crate::{Config, Error, Result, TensorReport, WeightSource};

/// See [`WeightSource`]. Opening reads manifest, configuration and headers, not weights.
#[derive(Debug)]
pub(crate) struct PackedModel {
    config: Config,
    weights: WeightFormat,
    warnings: Vec<String>,
    files: Vec<MappedFile>,
    tensors: Vec<Placed>,
    by_name: HashMap<String, usize>,
}

/// A tensor and its bytes.
#[derive(Debug)]
struct Placed {
    spec: TensorSpec,
    format: Option<WeightFormat>,
    file: usize,
    range: std::ops::Range<usize>,
    relative_error: f64,
}

impl PackedModel {
    pub fn open(directory: &Path) -> Result<Self> {
        let manifest = Manifest::read(directory)?;
        let config = read_config(directory, &manifest)?;
        let files = manifest
            .files
            .iter()
            .map(|entry| open_file(directory, entry))
            .collect::<Result<Vec<_>>>()?;
        let tensors = place(directory, &manifest, &config, &files)?;
        Ok(Self {
            weights: manifest.weights(directory)?,
            warnings: manifest.warnings,
            files: files.into_iter().map(|(map, _)| map).collect(),
            by_name: tensors.iter().map(|tensor| tensor.spec.name.clone()).zip(0..).collect(),
            tensors,
            config,
        })
    }

    /// Bytes of the weight files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
    }

    fn find(&self, what: &'static str, name: &str) -> Result<(&Placed, Bytes)> {
        let number = *self.by_name.get(name).ok_or_else(|| unknown(what, name))?;
        let placed = &self.tensors[number];
        Ok((placed, Bytes::mapped(&self.files[placed.file], placed.range.clone())?))
    }
}

impl WeightSource for PackedModel {
    fn config(&self) -> &Config {
        &self.config
    }

    fn matrix(&self, name: &str) -> Result<PackedMatrix> {
        let (placed, bytes) = self.find("matrix", canonical(name, &self.config))?;
        match (&placed.spec.shape, placed.format) {
            (&TensorShape::Matrix { stack, rows, cols }, Some(format)) => {
                Ok(PackedMatrix::new(format, stack, rows, cols, bytes)?)
            }
            _ => Err(unknown("matrix", name)),
        }
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let (placed, bytes) = self.find("vector", name)?;
        match placed.spec.shape {
            TensorShape::Vector { .. } => {
                Ok(bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect())
            }
            TensorShape::Matrix { .. } => Err(unknown("vector", name)),
        }
    }

    fn report(&self) -> Vec<TensorReport> {
        let one = |placed: &Placed| TensorReport {
            name: placed.spec.name.clone(),
            format: placed.format,
            shape: placed.spec.shape.dims(),
            bytes: placed.range.len() as u64,
            relative_error: Some(placed.relative_error),
        };
        self.tensors.iter().map(one).collect()
    }

    fn weights(&self) -> WeightFormat {
        self.weights
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// `config.json` decides every shape, so it must be the one that was packed.
fn read_config(directory: &Path, manifest: &Manifest) -> Result<Config> {
    let path = directory.join("config.json");
    let copy = manifest.copies.iter().find(|copy| copy.name == "config.json");
    let expected = copy.map(|copy| copy.blake3.clone()).unwrap_or_default();
    let found = match read_small(&path, 64 << 20) {
        Ok(bytes) => blake3::hash(&bytes).to_string(),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::MissingFile { path, promised_by: MANIFEST.into() })
        }
        Err(error) => return Err(error),
    };
    if found != expected {
        return Err(Error::Checksum { path, what: "the file".into(), expected, found });
    }
    let mut config = Config::from_directory(directory)?;
    let is_vision = |entry: &PackedEntry| entry.name.starts_with("vision_model.");
    if !manifest.tensors.iter().any(is_vision) {
        config.vision = None;
    }
    Ok(config)
}

/// Maps a weight file after a check of its size and header.
fn open_file(directory: &Path, entry: &FileEntry) -> Result<(MappedFile, SafetensorsFile)> {
    let path = plain_path(directory, &entry.name)?;
    if !path.exists() {
        return Err(Error::MissingFile { path, promised_by: MANIFEST.into() });
    }
    let map = MappedFile::open(&path)?;
    if map.len() as u64 != entry.bytes {
        return Err(Error::damaged(
            &path,
            format!("{} bytes long, {MANIFEST} says {}", map.len(), entry.bytes),
        ));
    }
    let header = usize::try_from(entry.header_bytes).ok().and_then(|end| map.get(..end));
    let found = blake3::hash(header.unwrap_or_default()).to_string();
    if found != entry.header_blake3 {
        let expected = entry.header_blake3.clone();
        return Err(Error::Checksum { path, what: "the header".into(), expected, found });
    }
    Ok((map, SafetensorsFile::open(path)?))
}

/// Every tensor that the configuration calls for, found and measured.
fn place(
    directory: &Path,
    manifest: &Manifest,
    config: &Config,
    files: &[(MappedFile, SafetensorsFile)],
) -> Result<Vec<Placed>> {
    let path = directory.join(MANIFEST);
    let mut entries = HashMap::with_capacity(manifest.tensors.len());
    for entry in &manifest.tensors {
        if entries.insert(entry.name.as_str(), entry).is_some() {
            return Err(Error::damaged(&path, format!("two tensors named {:?}", entry.name)));
        }
    }
    let specs = tensor_specs(config);
    let expected: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    if let Some(stray) = entries.keys().find(|name| !expected.contains(*name)) {
        return Err(Error::damaged(&path, format!("{stray:?} is not a tensor of this model")));
    }
    let place_one = |spec: TensorSpec| {
        let entry = entries.get(spec.name.as_str()).ok_or_else(|| {
            Error::damaged(&path, format!("the tensor {:?} is not listed", spec.name))
        })?;
        place_one(directory, &path, spec, entry, files)
    };
    specs.into_iter().map(place_one).collect()
}

fn place_one(
    directory: &Path,
    path: &Path,
    spec: TensorSpec,
    entry: &PackedEntry,
    files: &[(MappedFile, SafetensorsFile)],
) -> Result<Placed> {
    let damaged =
        |problem: String| Error::damaged(path, format!("tensor {:?}: {problem}", spec.name));
    if entry.shape != spec.shape.dims() {
        return Err(damaged(format!(
            "shape {:?} instead of {:?} as config.json has it",
            entry.shape,
            spec.shape.dims()
        )));
    }
    let format = entry.format.as_deref().map(|name| parse_format(name, directory)).transpose()?;
    let bytes = match (&spec.shape, format) {
        (&TensorShape::Matrix { stack, rows, cols }, Some(format)) => {
            format.matrix_bytes(rows, cols).and_then(|bytes| bytes.checked_mul(stack))
        }
        (TensorShape::Vector { dims }, None) => {
            dims.iter().try_fold(4usize, |bytes, &dim| bytes.checked_mul(dim))
        }
        _ => None,
    };
    if bytes.map(|bytes| bytes as u64) != Some(entry.bytes) {
        return Err(damaged(format!("{} bytes do not fit its shape and format", entry.bytes)));
    }
    let (_, file) = files
        .get(entry.file)
        .ok_or_else(|| damaged(format!("file number {} of {}", entry.file, files.len())))?;
    let stored = file.tensors().get(&spec.name);
    if stored.map(|stored| (stored.offset, stored.bytes)) != Some((entry.offset, entry.bytes)) {
        return Err(damaged(format!("not where it should be in {}", file.path().display())));
    }
    if !entry.offset.is_multiple_of(ALIGNMENT as u64) {
        return Err(damaged(format!("offset {} is not a multiple of {ALIGNMENT}", entry.offset)));
    }
    let start = entry.offset as usize;
    let range = start..start + entry.bytes as usize;
    Ok(Placed { spec, format, file: entry.file, range, relative_error: entry.relative_error })
}
