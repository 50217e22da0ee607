//! Which experts a row goes to: the `top_k` largest logits, ties to the lowest
//! index, each weighed by `sigmoid(logit)`.
//!
//! The sigmoid is computed in double precision and rounded once.

use crate::Tensor;

/// The experts of every row, best first, with their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    pub(crate) rows: usize,
    pub(crate) top_k: usize,
    pub(crate) num_experts: usize,
    /// `[rows, top_k]`
    pub(crate) experts: Vec<u32>,
    /// `[rows, top_k]`
    pub(crate) weights: Vec<f32>,
}

/// Routes every row of `logits` `[rows, experts]`, with `1 <= top_k <= experts`.
pub fn route(logits: &Tensor, top_k: usize) -> Routing {
    let (rows, num_experts) = (logits.rows(), logits.cols());
    let mut experts = Vec::with_capacity(rows * top_k);
    let mut weights = Vec::with_capacity(rows * top_k);
    for row in 0..rows {
        let logits = logits.row(row);
        let start = experts.len();
        for _ in 0..top_k {
            let best = best_unchosen(logits, &experts[start..]);
            experts.push(best as u32);
            weights.push(sigmoid(logits[best]));
        }
    }
    Routing { rows, top_k, num_experts, experts, weights }
}

/// The first of the largest logits that is not yet chosen. A NaN is the smallest.
fn best_unchosen(logits: &[f32], chosen: &[u32]) -> usize {
    let key = |i: usize| if logits[i].is_nan() { f32::NEG_INFINITY } else { logits[i] };
    let mut unchosen = (0..logits.len()).filter(|&i| !chosen.contains(&(i as u32)));
    let first = unchosen.next().expect("top_k <= experts");
    unchosen.fold(first, |best, i| if key(i) > key(best) { i } else { best })
}

fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + (-(x as f64)).exp())) as f32
}
