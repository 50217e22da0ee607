//! Who may run, by memory: nobody starts who could not finish.
//!
//! What a request may need is known when it is submitted: pages for its prompt and
//! `max_tokens`. It runs when the pages of running sequences, and the most that they and
//! it may still allocate, fit into the budget. Pages that are kept for later requests do
//! not count: they are given up as soon as somebody needs them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use llama4rs_kv_cache::{Demand, KvCache, KvLayout};
use llama4rs_tensor::Backend;

use crate::sequence::Sequence;
use crate::{Error, Result};

/// The memory for key/value pages and kept logits.
pub(crate) struct Admission {
    layout: KvLayout,
    step_tokens: usize,
    vocab_size: usize,
    budget: AtomicUsize,
    maps_pages: AtomicBool,
    /// Whether they do when the disk works.
    may_map: AtomicBool,
}

impl Admission {
    /// Without a limit, for a cache without files.
    pub fn new(layout: KvLayout, step_tokens: usize, vocab_size: usize) -> Self {
        let budget = AtomicUsize::new(usize::MAX);
        let [maps_pages, may_map] = [false; 2].map(AtomicBool::new);
        Self { layout, step_tokens, vocab_size, budget, maps_pages, may_map }
    }

    /// Bytes; `usize::MAX`: no limit.
    pub fn budget(&self) -> usize {
        self.budget.load(Ordering::Relaxed)
    }

    /// Another budget, for requests that do not run yet.
    pub fn set_budget(&self, bytes: usize) {
        self.budget.store(bytes, Ordering::Relaxed);
    }

    /// Takes note whether full pages become mapped files now.
    pub fn look_at<B: Backend>(&self, cache: &KvCache<B>) {
        self.maps_pages.store(cache.maps_pages(), Ordering::Relaxed);
        self.may_map.store(cache.layout().mapped, Ordering::Relaxed);
    }

    fn layout(&self, mapped: &AtomicBool) -> KvLayout {
        KvLayout { mapped: mapped.load(Ordering::Relaxed), ..self.layout.clone() }
    }

    /// Refuses a request that would not fit alone: `stored` tokens get keys and values,
    /// and the logits of `kept_logits` tokens are kept. A disk that fails may work again until the
    /// request's turn comes.
    pub fn check(&self, stored: usize, kept_logits: usize) -> Result<()> {
        let budget = self.budget();
        let (layout, logits) = (self.layout(&self.may_map), self.logit_bytes(kept_logits));
        let need = |tokens| logits.saturating_add(layout.peak_bytes(tokens, self.step_tokens));
        let needed = need(stored);
        if needed <= budget {
            return Ok(());
        }
        // The largest number of tokens that fits lies in `fits..stored`.
        let (mut fits, mut too_many) = (0, stored);
        while fits + 1 < too_many {
            let middle = fits + (too_many - fits) / 2;
            *(if need(middle) <= budget { &mut fits } else { &mut too_many }) = middle;
        }
        let what = if kept_logits > 0 { "keys, values and logits" } else { "keys and values" };
        Err(Error::OutOfMemory(format!(
            "the request needs up to {} for {what} of {stored} tokens, and {} are set aside: {} too \
             much\nhint: {}, or open the model with a larger kv_memory or a smaller kv_cache format",
            Size(needed),
            Size(budget),
            Size(needed - budget),
            match fits {
                0 => "use a shorter prompt and a smaller max_tokens".to_owned(),
                _ => format!("prompt and max_tokens together may be {fits} tokens"),
            }
        )))
    }

    /// What is left beside sequences that run.
    pub fn room<B: Backend>(&self, cache: &KvCache<B>, running: &[Sequence]) -> Room<'_> {
        let demand = Demand::new(self.layout(&self.maps_pages), self.step_tokens);
        let mut room = Room { admission: self, demand, logits: 0 };
        for sequence in running {
            room.add(cache, sequence);
        }
        room
    }

    /// Bytes of so many kept rows of logits, and of those that a step computes for them:
    /// these are there twice, on the device and on the host.
    fn logit_bytes(&self, rows: usize) -> usize {
        let rows = rows.saturating_add(2 * rows.min(self.step_tokens));
        rows.saturating_mul(self.vocab_size * size_of::<f32>())
    }
}

/// What running sequences may need, and what is left.
pub(crate) struct Room<'a> {
    admission: &'a Admission,
    demand: Demand,
    logits: usize,
}

impl Room<'_> {
    /// Adds a sequence; `false`: it does not fit.
    pub fn add<B: Backend>(&mut self, cache: &KvCache<B>, sequence: &Sequence) -> bool {
        self.demand.add(cache, &sequence.kv, sequence.most_stored());
        self.logits += self.admission.logit_bytes(sequence.kept_logits());
        self.demand.bytes().saturating_add(self.logits) <= self.admission.budget()
    }
}

/// A number of bytes for people: 1 kB is 1000 bytes.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, "B");
        for larger in ["kB", "MB", "GB", "TB"] {
            if value < 999.95 {
                break;
            }
            (value, unit) = (value / 1000.0, larger);
        }
        let digits = if unit == "B" { 0 } else { 1 };
        write!(f, "{value:.digits$} {unit}")
    }
}
