//! What one step computes, and who watches it.

use std::ops::ControlFlow;

use llama4rs_kv_cache::KvStep;
use llama4rs_tensor::Draw;

/// The tokens of one step, of one or many sequences, one row each.
#[derive(Debug, Default)]
pub struct Step {
    /// Token of each row.
    pub ids: Vec<u32>,
    /// Position of each row in its sequence, from 0.
    pub positions: Vec<usize>,
    /// Rows whose embedding an image feature replaces, ascending.
    pub image_rows: Vec<u32>,
    /// The features of those rows, `[image rows, hidden]`.
    pub image_features: Vec<f32>,
    /// Where keys and values go and what each row sees.
    pub kv: KvStep,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// How a token is chosen for each of those rows, if the device may do it; else empty.
    pub draws: Vec<Draw>,
}

impl Step {
    /// Forgets the last step, keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.image_rows.clear();
        self.image_features.clear();
        self.kv.clear();
        self.logit_rows.clear();
        self.draws.clear();
    }
}

/// Watches a step from outside.
pub trait Observer {
    /// Called before each layer; `Break` abandons the step.
    fn before_layer(&mut self, layer: usize) -> ControlFlow<()> {
        let _ = layer;
        ControlFlow::Continue(())
    }

    /// The experts that layer `layer` chose, `[rows * top_k]`.
    fn routed(&mut self, layer: usize, experts: &[u32]) {
        let _ = (layer, experts);
    }
}

/// Watches nothing.
impl Observer for () {}
