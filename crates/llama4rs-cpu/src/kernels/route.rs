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

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(logits: &[f32], cols: usize, top_k: usize) -> Routing {
        route(&Tensor::from_values(logits, cols).unwrap(), top_k)
    }

    #[test]
    fn the_largest_logits_win_and_ties_go_to_the_lowest_index() {
        let routing = routed(&[0.5, 2.0, 2.0, -1.0, 3.0, 3.0, 3.0, 3.0], 4, 2);
        assert_eq!(routing.experts, [1, 2, 0, 1]);
        assert_eq!(routed(&[-5.0, f32::NAN, -6.0], 3, 3).experts, [0, 2, 1]);
        assert_eq!(routed(&[f32::NAN, f32::NAN], 2, 2).experts, [0, 1]);
    }

    #[test]
    fn weights_are_sigmoids() {
        for logit in [-200.0f32, -20.0, -1.5, 0.0, 1.0, 20.0, 200.0] {
            let expected = 1.0 / (1.0 + (-logit as f64).exp());
            assert_eq!(routed(&[logit], 1, 1).weights, [expected as f32]);
        }
    }
}
