//! A tiny model with weights drawn by hashing names: no files needed.

use std::path::Path;

use llama4rs_checkpoint::{Config, Result, TensorReport, WeightSource};
use llama4rs_tensor::{AlignedBytes, PackedMatrix, WeightFormat};

/// Weights by name, in f32 or bf16.
pub struct RandomModel {
    config: Config,
    format: WeightFormat,
}

impl RandomModel {
    pub fn new(config: serde_json::Value, format: WeightFormat) -> Self {
        let config = Config::from_json(&config.to_string(), Path::new("random")).unwrap();
        Self { config, format }
    }

    fn values(&self, name: &str, count: usize, scale: f32) -> Vec<f32> {
        let mut state = name.bytes().fold(0xcbf29ce484222325u64, |hash, byte| {
            (hash ^ byte as u64).wrapping_mul(0x100000001b3)
        });
        let mut uniform = || {
            state = state.wrapping_add(0x9e3779b97f4a7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58476d1ce4e5b9);
            ((mixed ^ mixed >> 27) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..count).map(|_| uniform() * scale).collect()
    }

    fn shape(&self, name: &str) -> [usize; 3] {
        let text = &self.config.text;
        let hidden = text.hidden_size;
        let last = name.rsplit('.').next().unwrap();
        let routed = name.contains(".experts.");
        let stack = if routed { text.num_experts } else { 1 };
        let inner = match routed || name.contains("shared_expert") {
            true => text.intermediate_size,
            false => text.intermediate_size_mlp,
        };
        match last {
            "embed_tokens" | "lm_head" => [1, text.vocab_size, hidden],
            "q_proj" => [1, text.num_heads * text.head_dim, hidden],
            "k_proj" | "v_proj" => [1, text.num_kv_heads * text.head_dim, hidden],
            "o_proj" => [1, hidden, text.num_heads * text.head_dim],
            "router" => [1, text.num_experts, hidden],
            "gate_proj" | "up_proj" => [stack, inner, hidden],
            "down_proj" => [stack, hidden, inner],
            other => panic!("{other}"),
        }
    }
}

impl WeightSource for RandomModel {
    fn config(&self) -> &Config {
        &self.config
    }

    fn matrix(&self, name: &str) -> Result<PackedMatrix> {
        let [stack, rows, cols] = self.shape(name);
        let values = self.values(name, stack * rows * cols, 3.4 / (cols as f32).sqrt());
        let bytes = self.format.matrix_bytes(rows, cols).unwrap();
        let mut packed = AlignedBytes::zeroed(stack * bytes)?;
        for (matrix, values) in packed.chunks_mut(bytes).zip(values.chunks(rows * cols)) {
            let panels = matrix.chunks_mut(self.format.panel_bytes(cols));
            for (panel, rows) in panels.zip(values.chunks(16 * cols)) {
                self.format.encode_float_panel(rows, cols, panel);
            }
        }
        Ok(PackedMatrix::new(self.format, stack, rows, cols, packed.into())?)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.values(name, self.config.text.hidden_size, 0.4);
        Ok(values.into_iter().map(|v| 1.0 + v).collect())
    }

    fn report(&self) -> Vec<TensorReport> {
        Vec::new()
    }

    fn weights(&self) -> WeightFormat {
        self.format
    }

    fn warnings(&self) -> &[String] {
        &[]
    }
}
