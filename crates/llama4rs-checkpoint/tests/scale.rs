//! Time and memory at real sizes.

mod support;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use llama4rs_checkpoint::{
    open, pack, tensor_specs, verify, Config, OpenOptions, PackOptions, Role, Silent, TensorShape,
};
use serde_json::{json, Value};
use support::*;

#[test]
fn a_directory_with_as_many_tensors_as_maverick_opens_at_once() {
    let mut config = tiny_config();
    let text = &mut config["text_config"];
    text["num_hidden_layers"] = json!(48);
    text["num_local_experts"] = json!(8);
    config["vision_config"]["num_hidden_layers"] = json!(34);
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("packed");
    write_checkpoint(parent.path(), &config, Style::default());
    let options = PackOptions { file_bytes: 100_000, ..PackOptions::default() };
    pack(parent.path(), &path, &options, &Silent).unwrap();
    let time = || {
        let start = Instant::now();
        let model = open(&path, &OpenOptions::default(), &Silent).unwrap();
        (start.elapsed().as_secs_f64() * 1e3, model.report().len())
    };
    let (milliseconds, tensors) =
        (0..5).map(|_| time()).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!("{tensors} tensors open in {milliseconds:.1} ms");
    assert!(tensors > 1000);
    assert!(milliseconds < 50.0, "{milliseconds} ms");
}

/// Two layers at Scout's sizes, one dense and one with experts: 10 GB in bf16.
fn big_config() -> Value {
    json!({
        "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text",
        "hidden_size": 5120, "num_hidden_layers": 2, "interleave_moe_layer_step": 2,
        "vocab_size": 202048, "num_local_experts": 16, "tie_word_embeddings": true
    })
}

#[test]
#[ignore = "a measurement that writes 13 GB: cargo test --release -p llama4rs-checkpoint --test scale -- --ignored --nocapture"]
fn packing_at_full_size_stays_below_two_gib() {
    let directory = tempfile::tempdir().unwrap();
    let config = big_config();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    write_big(&directory.path().join("model.safetensors"), &parse(&config));
    let weights: u64 = tensor_specs(&parse(&config)).iter().map(|s| s.shape.num_values()).sum();
    for name in ["int4", "bf16"] {
        let path = directory.path().join("packed");
        let options =
            PackOptions { weights: name.parse().unwrap(), force: true, ..PackOptions::default() };
        let start = Instant::now();
        let report = pack(directory.path(), &path, &options, &Silent).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{name}: {weights} weights in {seconds:.1} s, {:.0} Mweights/s, {} bytes written, peak {} MiB",
            weights as f64 / seconds / 1e6,
            report.bytes,
            peak_mib()
        );
        let start = Instant::now();
        open(&path, &OpenOptions::default(), &Silent).unwrap();
        println!("open: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        let report = verify(&path, &Silent).unwrap();
        let rate = report.bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
        println!("verify: {rate:.1} GB/s, peak {} MiB", peak_mib());
        assert!(peak_mib() < 2048);
    }
}

/// Fused experts and everything else, from one block of noise over and over.
fn write_big(path: &Path, config: &Config) {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for spec in tensor_specs(config) {
        let name = format!("model.{}", spec.name);
        match (spec.role, spec.shape) {
            (Role::Experts, TensorShape::Matrix { stack, rows, cols }) => {
                if name.ends_with("gate_proj") {
                    let name = name.replace("gate_proj", "gate_up_proj");
                    shapes.push((name, vec![stack, cols, 2 * rows]));
                } else if name.ends_with("down_proj") {
                    shapes.push((name, vec![stack, cols, rows]));
                }
            }
            (_, TensorShape::Matrix { rows, cols, .. }) => {
                shapes.push((format!("{name}.weight"), vec![rows, cols]));
            }
            (_, TensorShape::Vector { dims }) => shapes.push((format!("{name}.weight"), dims)),
        }
    }
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in &shapes {
        let start = end;
        end += shape.iter().product::<usize>() * 2;
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let noise: Vec<u8> = (0..1usize << 22)
        .flat_map(|i| half::bf16::from_f32(weight("noise", 0, 0, i)).to_le_bytes())
        .collect();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    while end > 0 {
        let count = end.min(noise.len());
        file.write_all(&noise[..count]).unwrap();
        end -= count;
    }
}

/// Largest resident set of this process so far.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}
