//! Who runs in the next step, and with how many tokens.

use std::collections::VecDeque;

use crate::sequence::Sequence;

/// Limits of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Rows of a step that prompts may fill.
    pub step_tokens: usize,
    /// Sequences that run at the same time.
    pub max_sequences: usize,
}

/// Waiting and running sequences.
#[derive(Default)]
pub(crate) struct Scheduler {
    pub waiting: VecDeque<Sequence>,
    pub running: Vec<Sequence>,
}

impl Scheduler {
    /// Lets waiting sequences run while there is room, `start`ing each.
    pub fn admit(&mut self, limits: Limits, mut start: impl FnMut(&mut Sequence)) {
        while self.running.len() < limits.max_sequences {
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            start(&mut sequence);
            self.running.push(sequence);
        }
    }

    /// Gives each running sequence its rows: decoding ones one each, prompts in
    /// order of arrival what is left of the budget. Returns the rows of `running[i]`.
    pub fn plan(&self, limits: Limits) -> Vec<usize> {
        let mut budget = limits.step_tokens;
        let mut rows = vec![0; self.running.len()];
        for decoding in [true, false] {
            for (sequence, rows) in self.running.iter().zip(&mut rows) {
                if sequence.is_decoding() != decoding {
                    continue;
                }
                *rows = if decoding { 1 } else { sequence.pending().len().min(budget) };
                budget = budget.saturating_sub(*rows);
            }
        }
        rows
    }
}
