//! Synthetic models: sound directories, the same from the same seed.

use std::ops::ControlFlow;
use std::path::Path;

use llama4rs_checkpoint::{
    open, synth, verify, ErrorKind, OpenOptions, Progress, Silent, SynthOptions, SynthShape,
    SyntheticSource, WeightSource,
};

fn options(weights: &str, threads: usize) -> SynthOptions {
    SynthOptions {
        weights: weights.parse().unwrap(),
        threads: Some(threads),
        file_bytes: 5_000_000,
        ..SynthOptions::default()
    }
}

fn bytes_of(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_synthetic_model_opens_and_verifies() {
    let parent = tempfile::tempdir().unwrap();
    for weights in ["int4/g64", "int4/g32", "int8/g128", "bf16"] {
        let path = parent.path().join(weights.replace('/', "-"));
        let report = synth(&path, SynthShape::Tiny, &options(weights, 2), &Silent).unwrap();
        assert_eq!(verify(&path, &Silent).unwrap().tensors, report.tensors.len());
        let model = open(&path, &OpenOptions::default(), &Silent).unwrap();
        assert_eq!(model.report(), report.tensors);
        assert_eq!(model.weights().to_string(), weights);
        assert!(model.warnings()[0].contains("synthetic tiny, seed 0"));
        let expert = model.matrix("layers.0.feed_forward.experts.up_proj").unwrap();
        let values = expert.decode(15);
        let square = values.iter().map(|w| w * w).sum::<f32>() / values.len() as f32;
        assert!((square.sqrt() * 16.0 - 1.0).abs() < 0.02, "{}", square.sqrt());
        let norm = model.vector("norm").unwrap();
        assert!(norm.iter().all(|w| (w - 1.0).abs() < 0.2));
    }
}

#[test]
fn the_seed_decides_every_byte_and_the_threads_none() {
    let parent = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| parent.path().join(name));
    synth(&a, SynthShape::Tiny, &options("int4", 1), &Silent).unwrap();
    synth(&b, SynthShape::Tiny, &options("int4", 3), &Silent).unwrap();
    let other = SynthOptions { seed: 1, ..options("int4", 1) };
    synth(&c, SynthShape::Tiny, &other, &Silent).unwrap();
    assert!(bytes_of(&a) == bytes_of(&b));
    assert!(bytes_of(&a) != bytes_of(&c));
}

/// Stops when half of the bytes are written.
struct StopHalfway;

impl Progress for StopHalfway {
    fn advance(&self, _: &str, done: u64, total: u64) -> ControlFlow<()> {
        match done * 2 < total {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model");
    let error = synth(&path, SynthShape::Tiny, &options("int4", 2), &StopHalfway).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
}

#[test]
fn an_existing_model_is_replaced_only_by_force() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model");
    synth(&path, SynthShape::Tiny, &options("int4", 2), &Silent).unwrap();
    let error = synth(&path, SynthShape::Tiny, &options("int8", 2), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Pack);
    let force = SynthOptions { force: true, ..options("int8", 2) };
    synth(&path, SynthShape::Tiny, &force, &Silent).unwrap();
    let model = open(&path, &OpenOptions::default(), &Silent).unwrap();
    assert_eq!(model.weights().to_string(), "int8/g64");
}

#[test]
fn a_model_in_memory_has_the_bytes_of_one_on_disk() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model");
    synth(&path, SynthShape::Tiny, &options("int4/g128", 2), &Silent).unwrap();
    let stored = open(&path, &OpenOptions::default(), &Silent).unwrap();
    let weights = "int4/g128".parse().unwrap();
    let made = SyntheticSource::new(SynthShape::Tiny, weights, &[], 0, Some(3)).unwrap();
    assert_eq!(made.report(), stored.report());
    for tensor in made.report() {
        match tensor.format {
            Some(_) => {
                let (made, stored) = (made.matrix(&tensor.name), stored.matrix(&tensor.name));
                assert!(made.unwrap().bytes() == stored.unwrap().bytes(), "{}", tensor.name);
            }
            None => {
                assert_eq!(made.vector(&tensor.name).unwrap(), stored.vector(&tensor.name).unwrap())
            }
        }
    }
    assert!(made.matrix("norm").is_err() && made.vector("layers.9.x").is_err());
}
