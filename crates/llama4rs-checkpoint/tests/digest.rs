//! The digest of a model's weights changes with every byte that matters, and with nothing else.

mod support;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use llama4rs_checkpoint::{pack, weights_digest, FormatRule, OpenOptions, PackOptions, Silent};
use support::*;
use tempfile::TempDir;

fn source() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_checkpoint(directory.path(), &tiny_config(), Style::default());
    directory
}

fn digest(path: &Path) -> [u8; 32] {
    weights_digest(path, &OpenOptions::default(), None, &Silent).unwrap()
}

fn weights_file(directory: &Path) -> std::path::PathBuf {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).min().unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn published_weights_configuration_and_options_matter() {
    let source = source();
    let path = source.path();
    let first = digest(path);
    assert_eq!(digest(path), first);
    std::fs::write(path.join("tokenizer.json"), "{}").unwrap();
    assert_eq!(digest(path), first);
    let other = |options: OpenOptions| weights_digest(path, &options, None, &Silent).unwrap();
    let weights = Some("int8".parse().unwrap());
    assert_ne!(other(OpenOptions { weights, ..Default::default() }), first);
    let weights = Some("int4".parse().unwrap());
    assert_eq!(other(OpenOptions { weights, ..Default::default() }), first, "the default");
    let rule = FormatRule { pattern: "*".into(), format: "bf16".parse().unwrap() };
    assert_ne!(other(OpenOptions { rules: vec![rule], ..Default::default() }), first);
    assert_eq!(other(OpenOptions { threads: Some(1), ..Default::default() }), first);
    flip(&weights_file(path), usize::MAX);
    let second = digest(path);
    assert_ne!(second, first);
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    std::fs::write(path.join("config.json"), config + "\n").unwrap();
    assert_ne!(digest(path), second);
}

#[test]
fn what_was_hashed_is_remembered_until_the_file_changes() {
    let source = source();
    let path = source.path();
    let memo = path.join("memo");
    let with_memo = || weights_digest(path, &OpenOptions::default(), Some(&memo), &Silent).unwrap();
    let weights = weights_file(path);
    let first = with_memo();
    assert!(!memo.exists(), "a file that has just been written may change again");
    let age = |seconds| {
        let time = SystemTime::now() - Duration::from_secs(seconds);
        for entry in std::fs::read_dir(path).unwrap() {
            File::options()
                .write(true)
                .open(entry.unwrap().path())
                .unwrap()
                .set_modified(time)
                .unwrap();
        }
    };
    age(100);
    assert_eq!(with_memo(), first);
    let remembered = std::fs::read_to_string(&memo).unwrap();
    // The time is that of the file which was hashed, so this change goes unnoticed: nothing is read.
    let time = weights.metadata().unwrap().modified().unwrap();
    flip(&weights, usize::MAX);
    File::options().write(true).open(&weights).unwrap().set_modified(time).unwrap();
    assert_eq!(with_memo(), first);
    assert_ne!(digest(path), first);
    age(50);
    assert_ne!(with_memo(), first);
    assert_ne!(std::fs::read_to_string(&memo).unwrap(), remembered);
    std::fs::write(&memo, "nonsense").unwrap();
    assert_eq!(with_memo(), digest(path), "a damaged memo is no memo");
}

#[test]
fn a_packed_directory_has_the_digest_of_its_contents() {
    let packed = |weights: &str| {
        let parent = tempfile::tempdir().unwrap();
        let options = PackOptions { weights: weights.parse().unwrap(), ..Default::default() };
        pack(source().path(), parent.path().join("p"), &options, &Silent).unwrap();
        digest(&parent.path().join("p"))
    };
    assert_eq!(packed("int8"), packed("int8"));
    assert_ne!(packed("int8"), packed("int4"));
}
