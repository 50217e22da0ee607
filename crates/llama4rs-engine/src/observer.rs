//! Who watches a step: statistics, and reasons to stop between two layers.

use std::ops::{ControlFlow, Range};

use llama4rs_model::Observer;

use crate::sequence::Sequence;

/// One sequence's share of a step.
pub(crate) struct Part {
    /// Index in `running`.
    pub sequence: usize,
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Rows of the logits.
    pub logits: Range<usize>,
    /// Whether the device may choose the token.
    pub is_drawn: bool,
}

/// Notes experts, and stops a step that nobody waits for any more.
pub(crate) struct Watch<'a> {
    parts: &'a [Part],
    running: &'a [Sequence],
    interrupts: Interrupts<'a>,
    /// Layers and the experts of all rows, to be counted when the step is complete.
    routed: Vec<(usize, Vec<u32>)>,
    /// Every sequence of the step was cancelled.
    pub abandoned: bool,
}

impl<'a> Watch<'a> {
    pub fn new(
        parts: &'a [Part],
        running: &'a [Sequence],
        interrupted: &'a mut dyn FnMut() -> bool,
    ) -> Self {
        let (interrupts, routed) = (Interrupts(interrupted), Vec::new());
        Self { parts, running, interrupts, routed, abandoned: false }
    }

    /// Counts experts per request.
    pub fn count(&self) {
        let rows = self.parts.last().map_or(1, |part| part.rows.end);
        for (layer, experts) in &self.routed {
            let top_k = experts.len() / rows;
            for part in self.parts {
                let experts = &experts[part.rows.start * top_k..part.rows.end * top_k];
                self.running[part.sequence].count_experts(*layer, experts);
            }
        }
    }
}

impl Observer for Watch<'_> {
    fn before_layer(&mut self, layer: usize) -> ControlFlow<()> {
        self.interrupts.before_layer(layer)?;
        let cancelled = |part: &Part| self.running[part.sequence].cancelled().is_some();
        self.abandoned = self.parts.iter().all(cancelled);
        match self.abandoned {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn routed(&mut self, layer: usize, experts: &[u32]) {
        self.routed.push((layer, experts.to_vec()));
    }
}

/// Passes interruptions on.
pub(crate) struct Interrupts<'a>(pub &'a mut dyn FnMut() -> bool);

impl Observer for Interrupts<'_> {
    fn before_layer(&mut self, _layer: usize) -> ControlFlow<()> {
        match (self.0)() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
