//! The weight files of a published checkpoint: one, or many with an index.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::files::read_small;
use crate::safetensors_file::{SafetensorsFile, TensorEntry};
use crate::{Error, Result};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// All tensors of a directory, by published name.
pub(crate) struct Shards {
    directory: PathBuf,
    files: Vec<SafetensorsFile>,
    tensors: HashMap<String, usize>,
    fingerprint: blake3::Hash,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Opens every weight file of `directory` and reads the headers, nothing else.
    pub fn open(directory: &Path) -> Result<Self> {
        let index = read_index(directory)?;
        let names = match &index {
            Some(index) => shard_names(directory, index)?,
            None => unindexed_names(directory)?,
        };
        let mut shards = Self {
            directory: directory.to_owned(),
            files: Vec::with_capacity(names.len()),
            tensors: HashMap::new(),
            fingerprint: blake3::hash(&[]),
        };
        let mut hasher = blake3::Hasher::new();
        for name in names {
            let path = directory.join(&name);
            if index.is_some() && !path.exists() {
                return Err(Error::MissingFile { path, promised_by: INDEX.to_owned() });
            }
            let (file, header) = SafetensorsFile::open_with_header(path)?;
            hasher.update(name.as_bytes()).update(&(header.len() as u64).to_le_bytes());
            hasher.update(&header);
            shards.add(file, index.as_ref())?;
        }
        shards.fingerprint = hasher.finalize();
        if let Some(index) = index {
            shards.check_index(&index)?;
        }
        Ok(shards)
    }

    fn add(&mut self, file: SafetensorsFile, index: Option<&Index>) -> Result<()> {
        let number = self.files.len();
        let file_name = file.path().file_name().and_then(|name| name.to_str());
        for name in file.tensors().keys() {
            // Where the index names another file, the index is right.
            let indexed = index.and_then(|index| index.weight_map.get(name));
            if indexed.is_some_and(|indexed| Some(indexed.as_str()) != file_name) {
                continue;
            }
            if let Some(other) = self.tensors.insert(name.clone(), number) {
                let other = self.files[other].path().display();
                return Err(Error::damaged(
                    file.path(),
                    format!("tensor {name:?} is also in {other}, and no index says which to take"),
                ));
            }
        }
        self.files.push(file);
        Ok(())
    }

    fn check_index(&self, index: &Index) -> Result<()> {
        match index.weight_map.iter().find(|(tensor, _)| !self.tensors.contains_key(*tensor)) {
            None => Ok(()),
            Some((tensor, file)) => Err(Error::damaged(
                self.directory.join(INDEX),
                format!("tensor {tensor:?} should be in {file}, but is not"),
            )),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The weight files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path())
    }

    /// A checksum of all headers: names, shapes and sizes, not data.
    pub fn fingerprint(&self) -> blake3::Hash {
        self.fingerprint
    }

    pub fn find(&self, name: &str) -> Option<(&SafetensorsFile, &TensorEntry)> {
        let file = &self.files[*self.tensors.get(name)?];
        Some((file, file.tensors().get(name)?))
    }

    /// All names, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all weight files' data.
    pub fn data_bytes(&self) -> u64 {
        self.files.iter().flat_map(|file| file.tensors().values()).map(|entry| entry.bytes).sum()
    }
}

fn read_index(directory: &Path) -> Result<Option<Index>> {
    let path = directory.join(INDEX);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_small(&path, 256 << 20)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::damaged(&path, format!("not a valid index: {error}")))
}

/// The files that the index names: plain names only, no way out of the directory.
fn shard_names(directory: &Path, index: &Index) -> Result<Vec<String>> {
    let mut names: Vec<String> = index.weight_map.values().cloned().collect();
    names.sort_unstable();
    names.dedup();
    let is_plain = |name: &str| Path::new(name).file_name().is_some_and(|last| last == name);
    match names.iter().find(|name| !is_plain(name)) {
        None => Ok(names),
        Some(name) => Err(Error::damaged(
            directory.join(INDEX),
            format!("{name:?} is not the name of a file in this directory"),
        )),
    }
}

fn unindexed_names(directory: &Path) -> Result<Vec<String>> {
    if directory.join(SINGLE).exists() {
        return Ok(vec![SINGLE.into()]);
    }
    let entries = std::fs::read_dir(directory).map_err(|error| Error::io(directory, error))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(directory, error))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    let ends = |ending: &'static str| move |name: &&String| name.ends_with(ending);
    let safetensors: Vec<String> = names.iter().filter(ends(".safetensors")).cloned().collect();
    for name in &safetensors {
        if let Some(missing) = siblings(name).find(|sibling| !names.contains(sibling)) {
            return Err(Error::MissingFile {
                path: directory.join(missing),
                promised_by: format!("the name of {name}"),
            });
        }
    }
    if !safetensors.is_empty() {
        return Ok(safetensors);
    }
    match [".gguf", ".pth", ".bin", ".pt"]
        .into_iter()
        .find_map(|ending| names.iter().find(ends(ending)))
    {
        Some(other) => Err(Error::Unsupported {
            path: directory.join(other),
            what: "this file format".into(),
            hint: "give a Hugging Face checkpoint with safetensors files".into(),
        }),
        None => Err(Error::NotACheckpoint {
            path: directory.to_owned(),
            problem: format!("no weights: neither {INDEX} nor any *.safetensors file"),
        }),
    }
}

/// All names of the set that `model-00002-of-00003.safetensors` says it belongs to.
fn siblings(name: &str) -> impl Iterator<Item = String> + '_ {
    let parse = || {
        let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        Some((stem, number.len(), count, count.parse::<usize>().ok()?.min(100_000)))
    };
    parse().into_iter().flat_map(|(stem, width, count_text, count)| {
        (1..=count).map(move |n| format!("{stem}-{n:0width$}-of-{count_text}.safetensors"))
    })
}
