//! Files that lie: every lie is an error with its name, never a panic.

mod support;

use std::path::Path;

use llama4rs_checkpoint::{
    info, open, pack, verify, Error, ErrorKind, OpenOptions, PackOptions, Silent,
};
use proptest::prelude::*;
use serde_json::{json, Value};
use support::*;
use tempfile::TempDir;

fn tiny() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let style = Style { prefix: "model.", ..Style::default() };
    write_checkpoint(directory.path(), &tiny_text_config(), style);
    directory
}

fn error_of(directory: &Path) -> Error {
    open(directory, &OpenOptions::default(), &Silent).err().expect("an error")
}

/// The header of `model.safetensors`, changed.
fn with_header(change: impl FnOnce(&mut Value)) -> TempDir {
    let directory = tiny();
    let path = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    write_raw(&path, header.to_string().as_bytes(), &bytes[8 + length..]);
    directory
}

fn check(directory: &TempDir, kind: ErrorKind, expected: &[&str]) {
    let error = error_of(directory.path());
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for part in expected {
        assert!(text.contains(part), "{text}\ndoes not contain {part}");
    }
    assert!(info(directory.path()).is_err());
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn lying_headers_are_damaged() {
    let offsets =
        |from: u64, to: u64| with_header(|header| header[Q]["data_offsets"] = json!([from, to]));
    let damaged = ErrorKind::Damaged;
    check(&offsets(0, 4608), damaged, &["model.safetensors", "overlaps"]);
    check(&offsets(0, u64::MAX), damaged, &["lies beyond the end"]);
    check(&offsets(100, 50), damaged, &["ends before it starts"]);
    let shape = |dims: Value| with_header(|header| header[Q]["shape"] = dims);
    check(&shape(json!([48, 47])), damaged, &[Q, "[48, 47]", "cannot fill"]);
    check(&shape(json!([1u64 << 40, 1u64 << 40])), damaged, &["cannot fill"]);
    check(&shape(json!([-1, 48])), damaged, &["not valid"]);
    let hole = with_header(|header| {
        header.as_object_mut().unwrap().remove("model.norm.weight");
    });
    check(&hole, damaged, &["leaves a hole"]);
    check(&with_header(|header| *header = json!([])), damaged, &["not valid"]);
    check(&with_header(|header| *header = json!({})), damaged, &["describes 0 bytes"]);
}

#[test]
fn broken_files_are_damaged() {
    let replaced = |bytes: &[u8]| {
        let directory = tiny();
        std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
        directory
    };
    let damaged = ErrorKind::Damaged;
    check(&replaced(b""), damaged, &["only 0 bytes long"]);
    check(&replaced(b"1234567"), damaged, &["only 7 bytes long"]);
    check(&replaced(&u64::MAX.to_le_bytes()), damaged, &["claims 18446744073709551615 bytes"]);
    check(&replaced(&[&8u64.to_le_bytes()[..], &[0xff; 8]].concat()), damaged, &["not UTF-8"]);
    let duplicate = br#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let directory = tiny();
    write_raw(&directory.path().join("model.safetensors"), duplicate, b"");
    check(&directory, damaged, &["two tensors are named \"a\""]);
    let directory = tiny();
    let path = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    check(&directory, damaged, &["model.safetensors", "lies beyond the end of the file"]);
}

#[test]
fn tensors_that_do_not_fit_the_model_are_named() {
    let directory = with_header(|header| header[Q]["shape"] = json!([96, 24]));
    check(&directory, ErrorKind::Damaged, &[Q, "expected shape [48, 48]", "found [96, 24]"]);
    let directory = with_header(|header| header[Q]["dtype"] = json!("I16"));
    check(&directory, ErrorKind::Unsupported, &[Q, "element type I16", "F32, F16, BF16"]);
    let directory = with_header(|header| header[Q]["dtype"] = json!("Q9_Z"));
    check(&directory, ErrorKind::Unsupported, &[Q, "element type Q9_Z"]);
    let rename = |to: &'static str| {
        with_header(move |header| {
            let object = header.as_object_mut().unwrap();
            let entry = object.remove(Q).unwrap();
            object.insert(to.into(), entry);
        })
    };
    check(&rename("x"), ErrorKind::NotFound, &[Q, "config.json calls for"]);
    let packed = rename("model.layers.0.self_attn.q_proj.weight_packed");
    check(&packed, ErrorKind::Unsupported, &["weight_packed", "original bf16 checkpoint"]);
}

#[test]
fn unknown_tensors_are_an_error_and_known_buffers_a_remark() {
    let with_extra = |name: &str| {
        let directory = tempfile::tempdir().unwrap();
        let config = tiny_text_config();
        let style = Style { prefix: "model.", ..Style::default() };
        let mut tensors = published_tensors(&parse(&config), style);
        tensors.push(raw(name, vec![2], &[1.0, 2.0], Dtype::F32));
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        write_weights(directory.path(), tensors, 1);
        directory
    };
    let directory = with_extra("model.layers.0.self_attn.q_norm.weight");
    check(&directory, ErrorKind::Unsupported, &["1 tensors", "self_attn.q_norm.weight"]);
    for (name, remark) in [
        ("model.rotary_emb.inv_freq", "ignored model.rotary_emb.inv_freq"),
        ("vision_model.class_embedding", "ignored 1 vision tensors"),
    ] {
        let directory = with_extra(name);
        let source = open(directory.path(), &OpenOptions::default(), &Silent).unwrap();
        assert!(source.warnings()[0].starts_with(remark), "{:?}", source.warnings());
    }
}

#[test]
fn a_vision_config_without_vision_tensors_is_text_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = published_tensors(&parse(&tiny_config()), Style::default());
    tensors.retain(|tensor| tensor.name.starts_with("language_model."));
    std::fs::write(directory.path().join("config.json"), tiny_config().to_string()).unwrap();
    write_weights(directory.path(), tensors, 1);
    let source = open(directory.path(), &OpenOptions::default(), &Silent).unwrap();
    assert!(source.config().vision.is_none());
    assert!(source.warnings()[0].contains("text only"));
}

#[test]
fn shards_and_index_must_agree() {
    let sharded = || {
        let directory = tempfile::tempdir().unwrap();
        let style = Style { prefix: "model.", shards: 3, ..Style::default() };
        write_checkpoint(directory.path(), &tiny_text_config(), style);
        directory
    };
    let shard = "model-00002-of-00003.safetensors";
    let index = "model.safetensors.index.json";
    let directory = sharded();
    std::fs::remove_file(directory.path().join(shard)).unwrap();
    check(&directory, ErrorKind::NotFound, &[shard, "missing", index]);
    std::fs::remove_file(directory.path().join(index)).unwrap();
    check(&directory, ErrorKind::NotFound, &[shard, "missing", "model-00001-of-00003"]);

    let directory = sharded();
    std::fs::remove_file(directory.path().join(index)).unwrap();
    assert!(open(directory.path(), &OpenOptions::default(), &Silent).is_ok());

    let change = |change: fn(&mut Value)| {
        let directory = sharded();
        let path = directory.path().join(index);
        let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
        directory
    };
    let directory = change(|index| {
        index["weight_map"]["model.ghost"] = json!("model-00001-of-00003.safetensors");
    });
    check(&directory, ErrorKind::Damaged, &[index, "model.ghost", "model-00001-of-00003"]);
    let directory = change(|index| index["weight_map"][Q] = json!("../../etc/passwd"));
    check(&directory, ErrorKind::Damaged, &[index, "../../etc/passwd"]);
    let directory = change(|index| *index = json!({"weight_map": 3}));
    check(&directory, ErrorKind::Damaged, &[index, "not a valid index"]);
}

#[test]
fn other_file_formats_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let config = tiny_text_config().to_string();
    std::fs::write(directory.path().join("config.json"), config).unwrap();
    check(&directory, ErrorKind::NotFound, &["no weights", "safetensors"]);
    std::fs::write(directory.path().join("model-q4.gguf"), "GGUF").unwrap();
    check(&directory, ErrorKind::Unsupported, &["model-q4.gguf", "safetensors"]);
}

#[test]
fn fp8_with_row_scales_is_read_and_without_is_refused() {
    let style = Style { prefix: "model.", split_experts: true, ..Style::default() };
    let name = "model.layers.1.feed_forward.experts.2.up_proj.weight";
    let write = |scale_shape: Option<Vec<usize>>| {
        let directory = tempfile::tempdir().unwrap();
        let config = tiny_text_config();
        let mut tensors = published_tensors(&parse(&config), style);
        let tensor = tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
        tensor.dtype = "F8_E4M3";
        tensor.data = (0..40 * 48).map(|i| if i % 48 == 5 { 0x38 } else { 0 }).collect();
        if let Some(shape) = scale_shape {
            let scales: Vec<f32> = (0..shape.iter().product()).map(|r| r as f32 / 8.0).collect();
            tensors.push(raw(format!("{name}_scale"), shape, &scales, Dtype::Bf16));
        }
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        write_weights(directory.path(), tensors, 1);
        directory
    };
    let directory = write(Some(vec![40, 1]));
    let options = OpenOptions { weights: Some("f32".parse().unwrap()), ..OpenOptions::default() };
    let source = open(directory.path(), &options, &Silent).unwrap();
    let matrix = source.matrix("layers.1.feed_forward.experts.up_proj").unwrap();
    for (i, value) in matrix.decode(2).into_iter().enumerate() {
        let expected = if i % 48 == 5 { (i / 48) as f32 / 8.0 } else { 0.0 };
        assert_eq!(value, expected, "{i}");
    }
    check(&write(None), ErrorKind::Unsupported, &[name, "F8_E4M3", "scales beside it"]);
    check(&write(Some(vec![20, 1])), ErrorKind::Unsupported, &[name, "not one per output"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn changed_bytes_of_a_header_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let directory = tiny();
        let path = directory.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let length = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (index, byte) in changes {
            bytes[index.index(length)] = byte;
        }
        std::fs::write(&path, bytes).unwrap();
        let _ = open(directory.path(), &OpenOptions::default(), &Silent);
    }

    #[test]
    fn any_bytes_never_panic(
        header in prop::collection::vec(any::<u8>(), 0..200),
        length in any::<u64>(),
        honest in any::<bool>(),
    ) {
        let directory = tiny();
        let length = if honest { header.len() as u64 } else { length };
        let bytes = [&length.to_le_bytes()[..], &header].concat();
        std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
        prop_assert!(open(directory.path(), &OpenOptions::default(), &Silent).is_err());
    }

    #[test]
    fn forged_manifests_never_panic(
        number in prop_oneof![0u64..200, Just(u64::MAX), Just(1 << 63), any::<u64>()],
        place in any::<prop::sample::Index>(),
    ) {
        let source = tiny();
        let path = source.path().join("packed");
        let options = PackOptions { threads: Some(1), ..PackOptions::default() };
        pack(source.path(), &path, &options, &Silent).unwrap();
        let manifest = path.join("llama4rs.json");
        let text = std::fs::read_to_string(&manifest).unwrap();
        // One of the numbers becomes another, and the checksum is made to agree.
        let prefix = "{\n  \"checksum\": \"".len();
        let rest = &text[prefix + 64..];
        let is_digit = |i: usize| rest.as_bytes().get(i).is_some_and(u8::is_ascii_digit);
        let starts: Vec<usize> = (1..rest.len())
            .filter(|&i| is_digit(i) && matches!(rest.as_bytes()[i - 1], b' '))
            .collect();
        let start = starts[place.index(starts.len())];
        let end = (start..).find(|&i| !is_digit(i)).unwrap();
        let forged = format!("{}{number}{}", &rest[..start], &rest[end..]);
        let checksum = blake3::hash(forged.as_bytes());
        std::fs::write(&manifest, format!("{}{checksum}{forged}", &text[..prefix])).unwrap();
        if let Ok(source) = open(&path, &OpenOptions::default(), &Silent) {
            for tensor in source.report() {
                let _ = (source.matrix(&tensor.name), source.vector(&tensor.name));
            }
        }
        let _ = verify(&path, &Silent);
    }

    #[test]
    fn any_manifest_never_panics(text in ".{0,300}", honest in any::<bool>()) {
        let directory = tiny();
        let rest = format!("\",{text}");
        let checksum = if honest { blake3::hash(rest.as_bytes()).to_string() } else { "0".repeat(64) };
        let manifest = format!("{{\n  \"checksum\": \"{checksum}{rest}");
        std::fs::write(directory.path().join("llama4rs.json"), manifest).unwrap();
        prop_assert!(open(directory.path(), &OpenOptions::default(), &Silent).is_err());
    }
}
