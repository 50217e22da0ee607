//! Cutting a stage of experts into tasks.

use std::ops::Range;

use llama4rs_tensor::PackedMatrix;

use super::rows::ActiveExpert;
use crate::kernels::matmul::Panels;
use crate::parallel::Threads;

/// Rows with which a core computes about as long as it reads the weights.
const BALANCED_ROWS: usize = 5;
/// Tasks for each thread, at least.
const TASKS: usize = 16;

/// Some panels of one expert, for all of its rows.
pub struct Task {
    /// Which of the matrices that go through the stage.
    pub side: usize,
    /// Which of its active experts.
    pub active: usize,
    pub panels: Range<usize>,
    rows: usize,
}

/// Cuts the product of experts with their rows into tasks of equal time, those with many rows
/// first: they compute, the last ones wait for memory. A task has a multiple of `unit` panels,
/// the last one of an expert aside.
pub fn cut(
    tasks: &mut Vec<Task>,
    threads: &Threads,
    sides: &[(&[ActiveExpert], &PackedMatrix, usize)],
) {
    let time = |rows: usize| rows.max(BALANCED_ROWS);
    let all = sides.iter().map(|(experts, matrix, _)| {
        let panels = Panels::of(matrix, 0).count();
        experts.iter().map(|expert| panels * time(expert.rows)).sum::<usize>()
    });
    let most = all.sum::<usize>() / (threads.count() * TASKS);
    tasks.clear();
    for (side, &(experts, matrix, unit)) in sides.iter().enumerate() {
        let matrix = Panels::of(matrix, 0);
        for (active, ActiveExpert { tiles, rows, .. }) in experts.iter().enumerate() {
            let step = matrix.cached(tiles.len() > 1).min(most / time(*rows));
            let step = (step / unit * unit).max(unit);
            for start in (0..matrix.count()).step_by(step) {
                let panels = start..matrix.count().min(start + step);
                tasks.push(Task { side, active, panels, rows: *rows });
            }
        }
    }
    tasks.sort_by_key(|task| std::cmp::Reverse(task.rows));
}
