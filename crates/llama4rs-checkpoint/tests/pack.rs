//! Packed directories: what goes in comes out, and nothing half-made is left.

mod support;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use llama4rs_checkpoint::{
    info, open, pack, tensor_specs, verify, Error, ErrorKind, FormatRule, OpenOptions, PackOptions,
    Progress, Silent, TensorShape, WeightSource,
};
use llama4rs_tensor::format::GROUP_SIZES;
use llama4rs_tensor::WeightFormat;
use support::*;
use tempfile::TempDir;

fn source() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_checkpoint(directory.path(), &tiny_config(), Style::default());
    std::fs::write(directory.path().join("tokenizer.json"), "{\"a\": 1}").unwrap();
    std::fs::write(directory.path().join("generation_config.json"), "{}").unwrap();
    directory
}

fn options(weights: &str) -> PackOptions {
    PackOptions {
        weights: weights.parse().unwrap(),
        threads: Some(2),
        file_bytes: 40_000,
        ..PackOptions::default()
    }
}

/// A packed tiny model; the first directory holds it as `packed`.
fn packed(weights: &str) -> (TempDir, std::path::PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("packed");
    pack(source().path(), &path, &options(weights), &Silent).unwrap();
    (parent, path)
}

fn open_any(path: &Path) -> Box<dyn WeightSource + Send + Sync + '_> {
    open(path, &OpenOptions::default(), &Silent).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_format_round_trips_within_its_error() {
    let formats = GROUP_SIZES
        .iter()
        .flat_map(|g| [(format!("int4/g{g}"), 0.11), (format!("int8/g{g}"), 0.008)])
        .chain([("bf16".to_owned(), 0.0), ("f32".to_owned(), 0.0)]);
    for (weights, bound) in formats {
        let (_parent, path) = packed(&weights);
        let model = open_any(&path);
        assert_eq!(model.weights().to_string(), weights);
        let report = model.report();
        for (spec, report) in tensor_specs(model.config()).iter().zip(&report) {
            assert_eq!(spec.name, report.name);
            let TensorShape::Matrix { stack, .. } = spec.shape else {
                assert_eq!(model.vector(&spec.name).unwrap(), values(spec, 0));
                continue;
            };
            let matrix = model.matrix(&spec.name).unwrap();
            assert!(matrix.is_mapped());
            assert_eq!(Some(matrix.format()), report.format);
            let (mut error, mut norm) = (0.0, 0.0);
            for e in 0..stack {
                for (was, is) in values(spec, e).iter().zip(matrix.decode(e)) {
                    error += (was - is) as f64 * (was - is) as f64;
                    norm += *was as f64 * *was as f64;
                }
            }
            let relative = (error / norm).sqrt();
            assert!(relative <= bound, "{} as {}: {relative}", spec.name, matrix.format());
            let reported = report.relative_error.unwrap();
            assert!((relative - reported).abs() <= 1e-5, "{}: {relative} {reported}", spec.name);
        }
    }
}

#[test]
fn packing_to_disk_and_in_memory_give_the_same_bytes() {
    let source = source();
    let (_parent, path) = packed("int4/g32");
    let mapped = open_any(&path);
    let options =
        OpenOptions { weights: Some("int4/g32".parse().unwrap()), ..OpenOptions::default() };
    let in_memory = open(source.path(), &options, &Silent).unwrap();
    for report in mapped.report() {
        if report.format.is_some() {
            let (a, b) =
                (mapped.matrix(&report.name).unwrap(), in_memory.matrix(&report.name).unwrap());
            assert!(!b.is_mapped());
            assert_eq!(a.bytes(), b.bytes(), "{}", report.name);
        } else {
            assert_eq!(
                mapped.vector(&report.name).unwrap(),
                in_memory.vector(&report.name).unwrap()
            );
        }
    }
    assert_eq!(mapped.report(), in_memory.report());
}

#[test]
fn the_policy_table_and_its_exceptions_hold() {
    let source = source();
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("p");
    let rule = |pattern: &str, format: &str| FormatRule {
        pattern: pattern.into(),
        format: format.parse().unwrap(),
    };
    let mut options = options("int4/g32");
    options.rules =
        vec![rule("layers.0.*", "bf16"), rule("layers.*.self_attn.o_proj", "int8/g128")];
    let report = pack(source.path(), &path, &options, &Silent).unwrap();
    let format = |name: &str| {
        let found = report.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        found.format.map_or("plain".to_owned(), |format| format.to_string())
    };
    for (name, expected) in [
        ("embed_tokens", "int8/g32"),
        ("lm_head", "int8/g32"),
        ("norm", "plain"),
        ("layers.0.self_attn.o_proj", "bf16"),
        ("layers.1.self_attn.o_proj", "int8/g128"),
        ("layers.1.self_attn.q_proj", "int4/g32"),
        ("layers.1.feed_forward.router", "f32"),
        ("layers.1.feed_forward.experts.gate_proj", "int4/g32"),
        ("vision_model.patch_embedding.linear", "bf16"),
        ("vision_model.class_embedding", "plain"),
        ("multi_modal_projector.linear_1", "bf16"),
    ] {
        assert_eq!(format(name), expected, "{name}");
    }
    options.rules = vec![rule("layers.*.attention.*", "bf16")];
    let error = pack(source.path(), parent.path().join("q"), &options, &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Pack);
    assert!(error.to_string().contains("layers.*.attention.*"), "{error}");
}

#[test]
fn the_directory_is_complete_and_plain_safetensors() {
    let (_parent, path) = packed("int4");
    let names = names(&path);
    for name in ["config.json", "generation_config.json", "llama4rs.json", "tokenizer.json"] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }
    let files: Vec<_> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert!(files.len() > 1, "{files:?}");
    assert_eq!(files[0], &format!("weights-00001-of-{:05}.safetensors", files.len()));
    for file in files {
        let bytes = std::fs::read(path.join(file)).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!((8 + length) % 64, 0);
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let mut end = 0;
        for (name, entry) in header.as_object().unwrap() {
            if name == "__metadata__" {
                continue;
            }
            let offset = |i| entry["data_offsets"][i].as_u64().unwrap();
            assert_eq!(offset(0), end, "{name} follows without a hole");
            assert!(name.starts_with("padding.") || offset(0) % 64 == 0, "{name}");
            end = offset(1);
        }
        assert_eq!(8 + length as u64 + end, bytes.len() as u64);
    }
}

#[test]
fn info_reads_headers_only() {
    let source = source();
    let before = info(source.path()).unwrap();
    let (_parent, path) = packed("int4");
    let after = info(&path).unwrap();
    assert_eq!(before.weights, None);
    assert_eq!(after.weights, Some(WeightFormat::Int4 { group: 64 }));
    assert_eq!(before.num_parameters, after.num_parameters);
    let shape = |info: &llama4rs_checkpoint::ModelInfo| -> Vec<_> {
        info.tensors.iter().map(|t| (t.name.clone(), t.format, t.shape.clone(), t.bytes)).collect()
    };
    assert_eq!(shape(&before), shape(&after));
}

#[test]
fn force_replaces_only_what_is_packed() {
    let source = source();
    let (parent, path) = packed("int4");
    let again = |force| {
        let options = PackOptions { force, ..options("int8") };
        pack(source.path(), &path, &options, &Silent)
    };
    let error = again(false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Pack);
    assert!(error.to_string().contains("exists already"), "{error}");
    assert_eq!(open_any(&path).weights().to_string(), "int4/g64");
    again(true).unwrap();
    assert_eq!(open_any(&path).weights().to_string(), "int8/g64");
    assert_eq!(names(parent.path()), ["packed"]);

    let link = parent.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    pack(source.path(), &link, &PackOptions { force: true, ..options("bf16") }, &Silent).unwrap();
    assert_eq!(open_any(&path).weights().to_string(), "bf16");
    assert_eq!(names(parent.path()), ["link", "packed"]);

    let precious = parent.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("thesis.txt"), "years of work").unwrap();
    let options = PackOptions { force: true, ..options("int4") };
    let error = pack(source.path(), &precious, &options, &Silent).unwrap_err();
    assert!(error.to_string().contains("not a packed checkpoint"), "{error}");
    assert_eq!(names(&precious), ["thesis.txt"]);

    let empty = parent.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    pack(source.path(), &empty, &self::options("int4"), &Silent).unwrap();
    verify(&empty, &Silent).unwrap();
}

/// Stops after some calls and remembers them.
struct StopAfter(Mutex<(usize, Vec<Call>)>);

/// Arguments of [`Progress::advance`].
type Call = (String, u64, u64);

impl StopAfter {
    fn new(calls: usize) -> Self {
        Self(Mutex::new((calls, Vec::new())))
    }
    fn calls(self) -> Vec<Call> {
        self.0.into_inner().unwrap().1
    }
}

impl Progress for StopAfter {
    fn advance(&self, what: &str, done: u64, total: u64) -> ControlFlow<()> {
        let mut state = self.0.lock().unwrap();
        state.1.push((what.to_owned(), done, total));
        state.0 -= 1;
        if state.0 == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

#[test]
fn an_interrupted_run_leaves_nothing_and_can_be_repeated() {
    let source = source();
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("packed");
    for calls in [1, 7, 20] {
        let stop = StopAfter::new(calls);
        let error = pack(source.path(), &path, &options("int4"), &stop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
        assert!(names(parent.path()).is_empty(), "{:?}", names(parent.path()));
    }
    pack(source.path(), &path, &options("int4"), &Silent).unwrap();
    let stop = StopAfter::new(3);
    let again = PackOptions { force: true, ..options("int8") };
    assert!(pack(source.path(), &path, &again, &stop).is_err());
    assert_eq!(open_any(&path).weights().to_string(), "int4/g64", "the old one is still there");
    verify(&path, &Silent).unwrap();
}

#[test]
fn what_a_dead_run_left_is_removed() {
    let source = source();
    let parent = tempfile::tempdir().unwrap();
    let stale = parent.path().join(".packed.partial-999999");
    std::fs::create_dir(&stale).unwrap();
    std::fs::write(stale.join("weights-00001-of-00002.safetensors"), "half").unwrap();
    std::fs::write(parent.path().join(".packed.packing"), "").unwrap();
    pack(source.path(), parent.path().join("packed"), &options("int4"), &Silent).unwrap();
    assert_eq!(names(parent.path()), ["packed"]);
}

#[test]
fn two_runs_to_one_destination_do_not_meet() {
    let source = source();
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("packed");
    let lock = std::fs::File::create(parent.path().join(".packed.packing")).unwrap();
    lock.lock().unwrap();
    let error = pack(source.path(), &path, &options("int4"), &Silent).unwrap_err();
    assert!(error.to_string().contains("another run"), "{error}");
}

#[test]
fn progress_reaches_its_total() {
    let source = source();
    let parent = tempfile::tempdir().unwrap();
    let listener = StopAfter::new(usize::MAX);
    let path = parent.path().join("packed");
    pack(source.path(), &path, &options("int4"), &listener).unwrap();
    let calls = listener.calls();
    assert!(calls.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{calls:?}");
    let (_, done, total) = calls.last().unwrap();
    assert_eq!(done, total);

    let listener = StopAfter::new(usize::MAX);
    let report = verify(&path, &listener).unwrap();
    let (_, done, total) = listener.calls().last().unwrap().clone();
    assert_eq!((done, total), (report.bytes, report.bytes));
    assert_eq!(verify(&path, &StopAfter::new(2)).unwrap_err().kind(), ErrorKind::Interrupted);
}

#[test]
fn packed_directories_are_not_packed_again() {
    let (parent, path) = packed("int4");
    let again = parent.path().join("again");
    let error = pack(&path, &again, &options("int4"), &Silent).unwrap_err();
    assert!(matches!(error, Error::AlreadyPacked { .. }), "{error}");
    assert!(error.to_string().contains("already packed as int4/g64"), "{error}");
    let weights = Some("int8".parse().unwrap());
    let error = open(&path, &OpenOptions { weights, ..Default::default() }, &Silent).err().unwrap();
    assert!(error.to_string().contains("packed as int4/g64, but int8/g64"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let config = tiny_config();
    let mut tensors = published_tensors(&parse(&config), Style::default());
    let name = "language_model.model.layers.1.feed_forward.experts.down_proj";
    let tensor = tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
    // Expert 2, input 3, output 37 of [3, 40, 48].
    let at = (2 * 40 * 48 + 3 * 48 + 37) * 2;
    tensor.data[at..at + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    write_weights(directory.path(), tensors, 1);
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("packed");
    let error = pack(directory.path(), &path, &options("int4"), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    let text = error.to_string();
    assert!(text.contains(name) && text.contains("NaN or infinity at row 37"), "{text}");
    assert!(names(parent.path()).is_empty());
}

#[test]
fn a_flipped_byte_of_the_manifest_or_a_header_is_found_at_open() {
    let (_parent, path) = packed("int4");
    for name in names(&path) {
        let file = path.join(&name);
        let bytes = std::fs::read(&file).unwrap();
        let end = match name.as_str() {
            "llama4rs.json" | "config.json" => bytes.len(),
            name if name.starts_with("weights") => {
                8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
            }
            _ => continue,
        };
        let step = (end / 150).max(1);
        for at in (0..end).step_by(step).chain([end - 1]) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x04;
            std::fs::write(&file, &changed).unwrap();
            let error = open(&path, &OpenOptions::default(), &Silent).err();
            let error = error.unwrap_or_else(|| panic!("{name} at {at}")).to_string();
            assert!(error.contains(&name), "{error}");
        }
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        assert!(open(&path, &OpenOptions::default(), &Silent).is_err(), "{name} cut");
        std::fs::write(&file, &bytes).unwrap();
    }
    verify(&path, &Silent).unwrap();
}

#[test]
fn a_flipped_byte_of_the_data_is_found_by_verify_and_its_tensor_named() {
    let (_parent, path) = packed("int4");
    let file = path.join("weights-00001-of-00004.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (name, entry) in header.as_object().unwrap() {
        if name == "__metadata__" {
            continue;
        }
        for end in [0, 1] {
            let offset = entry["data_offsets"][end].as_u64().unwrap() as usize - end;
            let mut changed = bytes.clone();
            changed[8 + length + offset] ^= 0x80;
            std::fs::write(&file, &changed).unwrap();
            assert!(open(&path, &OpenOptions::default(), &Silent).is_ok());
            let error = verify(&path, &Silent).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged);
            let text = error.to_string();
            let named = text.contains(&format!("tensor {name}:")) || name.starts_with("padding.");
            assert!(named && text.contains("weights-00001"), "{text}");
        }
    }
    std::fs::write(&file, &bytes).unwrap();
    std::fs::write(path.join("tokenizer.json"), "{\"a\": 2}").unwrap();
    let text = verify(&path, &Silent).unwrap_err().to_string();
    assert!(text.contains("tokenizer.json"), "{text}");
}

#[test]
fn missing_files_of_a_packed_directory_are_named() {
    let (_parent, path) = packed("int4");
    for name in ["config.json", "weights-00002-of-00004.safetensors"] {
        let kept = std::fs::read(path.join(name)).unwrap();
        std::fs::remove_file(path.join(name)).unwrap();
        let error = open(&path, &OpenOptions::default(), &Silent).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("llama4rs.json"), "{text}");
        std::fs::write(path.join(name), kept).unwrap();
    }
}

#[test]
fn verify_and_open_of_other_directories_say_what_they_need() {
    let empty = tempfile::tempdir().unwrap();
    let text = verify(empty.path(), &Silent).unwrap_err().to_string();
    assert!(text.contains("only packed checkpoints can be verified"), "{text}");
    let error = open(empty.path(), &OpenOptions::default(), &Silent).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("no config.json"), "{error}");
    let error = open(empty.path().join("nowhere"), &OpenOptions::default(), &Silent).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_newer_format_version_is_refused() {
    let (_parent, path) = packed("int4");
    let manifest = path.join("llama4rs.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let newer = text.replace("\"format_version\": 1", "\"format_version\": 2");
    let prefix = "{\n  \"checksum\": \"";
    let rest = &newer[prefix.len() + 64..];
    let checksum = blake3::hash(rest.as_bytes());
    std::fs::write(&manifest, format!("{prefix}{checksum}{rest}")).unwrap();
    let error = open(&path, &OpenOptions::default(), &Silent).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("format version 2"), "{error}");
}
