//! Published checkpoints are read alike, however they are written.

mod support;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use llama4rs_checkpoint::{
    open, tensor_specs, ErrorKind, OpenOptions, Progress, Silent, TensorShape, WeightSource,
};
use llama4rs_tensor::WeightFormat;
use serde_json::{json, Value};
use support::*;
use tempfile::TempDir;

fn written(config: &Value, style: Style) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_checkpoint(directory.path(), config, style);
    directory
}

fn options(weights: &str) -> OpenOptions {
    OpenOptions { weights: Some(weights.parse().unwrap()), threads: Some(2), ..Default::default() }
}

/// Every weight of the model equals the function that wrote it.
fn check_all(source: &dyn WeightSource) {
    for spec in tensor_specs(source.config()) {
        match &spec.shape {
            TensorShape::Matrix { stack, rows, cols } => {
                let matrix = source.matrix(&spec.name).unwrap();
                assert_eq!(matrix.format(), WeightFormat::F32, "{}", spec.name);
                assert_eq!((matrix.stack(), matrix.rows(), matrix.cols()), (*stack, *rows, *cols));
                for e in 0..*stack {
                    assert_eq!(matrix.decode(e), values(&spec, e), "{} {e}", spec.name);
                }
            }
            TensorShape::Vector { .. } => {
                assert_eq!(source.vector(&spec.name).unwrap(), values(&spec, 0), "{}", spec.name);
            }
        }
    }
}

#[test]
fn every_layout_and_element_type_gives_the_same_weights() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for split_experts in [false, true] {
            for shards in [1, 3] {
                let style = Style { dtype, split_experts, shards, ..Style::default() };
                let directory = written(&tiny_config(), style);
                let source = open(directory.path(), &options("f32"), &Silent).unwrap();
                assert!(source.config().vision.is_some());
                check_all(source.as_ref());
                assert!(source.report().iter().all(|tensor| tensor.relative_error == Some(0.0)));
            }
        }
    }
}

#[test]
fn text_only_checkpoints_are_read() {
    let style = Style { prefix: "model.", ..Style::default() };
    let directory = written(&tiny_text_config(), style);
    let source = open(directory.path(), &options("f32"), &Silent).unwrap();
    assert!(source.config().vision.is_none());
    check_all(source.as_ref());
}

#[test]
fn a_tied_output_matrix_is_the_embedding_table() {
    let mut config = tiny_text_config();
    config["tie_word_embeddings"] = json!(true);
    let directory = written(&config, Style { prefix: "model.", ..Style::default() });
    let source = open(directory.path(), &options("int4"), &Silent).unwrap();
    let (head, table) = (source.matrix("lm_head").unwrap(), source.matrix("embed_tokens").unwrap());
    assert_eq!(head.bytes(), table.bytes());
    assert!(!source.report().iter().any(|tensor| tensor.name == "lm_head"));
}

#[test]
fn packing_in_memory_can_be_interrupted_and_asked_again() {
    struct Once(AtomicBool);
    impl Progress for Once {
        fn advance(&self, _: &str, _: u64, _: u64) -> ControlFlow<()> {
            match self.0.swap(false, Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        }
    }
    let directory = written(&tiny_config(), Style::default());
    let once = Once(AtomicBool::new(true));
    let source = open(directory.path(), &options("int4"), &once).unwrap();
    let error = source.matrix("embed_tokens").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(error.to_string().contains("embed_tokens"), "{error}");
    assert!(source.matrix("embed_tokens").is_ok());
}

#[test]
fn names_that_a_model_does_not_have_are_refused() {
    let directory = written(&tiny_config(), Style::default());
    let source = open(directory.path(), &options("int4"), &Silent).unwrap();
    for name in ["layers.0.self_attn.qkv_proj", "norm", ""] {
        let error = source.matrix(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains(&format!("no matrix named {name:?}")), "{error}");
    }
    let error = source.vector("embed_tokens").unwrap_err();
    assert!(error.to_string().contains("no vector named \"embed_tokens\""), "{error}");
}

#[test]
fn the_first_scout_upload_draws_a_remark() {
    let mut config = tiny_config();
    config["text_config"]["num_local_experts"] = json!(16);
    config["text_config"]["rope_scaling"]["factor"] = json!(8.0);
    let directory = written(&config, Style::default());
    let source = open(directory.path(), &options("int4"), &Silent).unwrap();
    assert!(source.warnings()[0].contains("rope_scaling.factor is 8"), "{:?}", source.warnings());
}
