//! What was asked, and the mailbox where the answer arrives.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::{Choice, Error, SamplingOptions};

/// Encoded images of a prompt.
#[derive(Clone, Debug)]
pub struct ImageFeatures {
    /// The token whose embeddings are replaced.
    pub patch_token: u32,
    /// One row per patch token of the prompt, in order, `[patches, hidden]`.
    pub features: Vec<f32>,
}

impl ImageFeatures {
    /// Positions of the patch tokens in `prompt`.
    pub(crate) fn positions<'a>(&'a self, prompt: &'a [u32]) -> impl Iterator<Item = usize> + 'a {
        let is_patch = move |(at, &id): (usize, &u32)| (id == self.patch_token).then_some(at);
        prompt.iter().enumerate().filter_map(is_patch)
    }
}

/// A request as the user gives it.
#[derive(Clone, Debug)]
pub struct RequestOptions {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate. With 0 the prompt is only read.
    pub max_tokens: usize,
    /// Tokens that end the answer; the one that did is part of it.
    pub stop_token_ids: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Keep the logits of every prompt token, `[prompt, vocab]`.
    pub keep_logits: bool,
    /// Images whose patch tokens are in the prompt.
    pub images: Option<ImageFeatures>,
    /// For measurements behind long texts: tokens of the prompt before which, from the third page on,
    /// nothing is computed; whole pages get the keys and values of the second one. 0: a normal
    /// request.
    pub filled_to: usize,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token came.
    Stop,
    /// `max_tokens` or the context's end was reached.
    Length,
    /// The caller ended it, in its own words.
    Cancelled(String),
}

impl FinishReason {
    /// `stop`, `length`, or the caller's words.
    pub fn as_str(&self) -> &str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled(reason) => reason,
        }
    }
}

/// One thing that happened to a request.
#[derive(Clone, Debug)]
pub struct Event {
    /// Prompt tokens processed so far.
    pub prefilled: usize,
    /// A new token; `None`: a part of the prompt was processed.
    pub choice: Option<Choice>,
    /// Set on the last event.
    pub finish: Option<FinishReason>,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// From submission to the first step.
    pub queue: Duration,
    /// From the first step to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Prompt tokens whose keys and values were there already.
    pub cached_tokens: usize,
}

/// Tokens per layer and expert.
#[derive(Clone, Debug, Default)]
pub struct ExpertUsage {
    /// Experts of a layer.
    pub num_experts: usize,
    /// `[layers, num_experts]`; dense layers stay zero.
    pub counts: Vec<u64>,
}

/// What the engine writes and the owner reads.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    pub events: VecDeque<Event>,
    pub finish: Option<FinishReason>,
    pub error: Option<Error>,
    pub cancel: Option<String>,
    pub timings: Timings,
    pub usage: Usage,
    pub expert_usage: ExpertUsage,
    pub logits: Vec<f32>,
}

impl Mailbox {
    /// Whether nothing more will arrive.
    pub fn is_closed(&self) -> bool {
        self.finish.is_some() || self.error.is_some()
    }
}

/// A submitted request. Dropping it does not end the request; see `Engine::cancel`.
#[derive(Clone, Debug)]
pub struct Request(pub(crate) Arc<Mutex<Mailbox>>);

impl Request {
    pub(crate) fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        // Nothing panics while it holds a mailbox; should it happen, the data are whole.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Why the request ended; `None` while it runs.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.mailbox().finish.clone()
    }

    /// Where the time went so far.
    pub fn timings(&self) -> Timings {
        self.mailbox().timings
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        self.mailbox().usage
    }

    /// Tokens per layer and expert so far.
    pub fn expert_usage(&self) -> ExpertUsage {
        self.mailbox().expert_usage.clone()
    }

    /// Takes the kept logits, `[prompt, vocab]` row-major.
    pub fn take_logits(&self) -> Vec<f32> {
        std::mem::take(&mut self.mailbox().logits)
    }
}
