//! A request while it runs.

use std::time::Instant;

use llama4rs_kv_cache::{KvCache, SequenceKv, TokenKey, PAGE_TOKENS};
use llama4rs_tensor::{Backend, Draw};

use crate::request::{Event, ExpertUsage, ImageFeatures, Request};
use crate::scheduler::Work;
use crate::{Choice, Error, FinishReason, RequestOptions, Result, Sampler};

/// The images of a prompt and where they go.
struct Images {
    /// Positions of the patch tokens, ascending.
    positions: Vec<usize>,
    /// `[positions, hidden]`
    features: Vec<f32>,
}

impl Images {
    fn new(images: ImageFeatures, prompt: &[u32]) -> Self {
        let positions = images.positions(prompt).collect();
        Self { positions, features: images.features }
    }

    fn feature(&self, index: usize) -> &[f32] {
        let width = self.features.len() / self.positions.len().max(1);
        &self.features[index * width..(index + 1) * width]
    }

    /// A key for each image position: a hash of its feature, told apart from token ids.
    fn write_keys(&self, keys: &mut [TokenKey]) {
        let mut bytes = Vec::new();
        for (index, &position) in self.positions.iter().enumerate() {
            bytes.clear();
            bytes.extend(self.feature(index).iter().flat_map(|value| value.to_le_bytes()));
            let hash = blake3::hash(&bytes);
            let (first, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
            keys[position] = u64::from_le_bytes(*first) | 1 << 63;
        }
    }
}

/// Tokens of a prompt that is mostly filled: its first pages of either form.
const COMPUTED_TOKENS: usize = 2 * PAGE_TOKENS;

/// What a step gave a sequence.
#[derive(Clone, Copy)]
pub(crate) enum Outcome<'a> {
    /// The token that the device chose from its last row, if it has one.
    Token(Option<u32>),
    /// All of its rows.
    Logits(&'a [f32]),
}

/// Tokens so far, and what is left to compute.
pub(crate) struct Sequence {
    pub request: Request,
    pub kv: SequenceKv,
    /// The prompt, then every generated token.
    tokens: Vec<u32>,
    /// What each token is to the prefix cache.
    keys: Vec<TokenKey>,
    prompt_len: usize,
    max_len: usize,
    stop_token_ids: Vec<u32>,
    keep_logits: bool,
    /// Where computing goes on behind the first [`COMPUTED_TOKENS`]; 0: nothing is left out.
    filled_to: usize,
    images: Option<Images>,
    sampler: Sampler,
    /// The last event, until it is posted.
    ending: Option<Event>,
    /// Whether its first rows were planned.
    begun: bool,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

impl Sequence {
    pub fn new(
        options: RequestOptions,
        request: Request,
        kv: SequenceKv,
        max_context: usize,
    ) -> Self {
        let prompt_len = options.prompt.len();
        let images = options.images.map(|images| Images::new(images, &options.prompt));
        let mut keys: Vec<TokenKey> = options.prompt.iter().map(|&id| id.into()).collect();
        if let Some(images) = &images {
            images.write_keys(&mut keys);
        }
        Self {
            request,
            keys,
            kv,
            sampler: Sampler::new(options.sampling, &options.prompt),
            images,
            ending: None,
            tokens: options.prompt,
            prompt_len,
            max_len: prompt_len.saturating_add(options.max_tokens).min(max_context),
            stop_token_ids: options.stop_token_ids,
            keep_logits: options.keep_logits,
            filled_to: options.filled_to.min(prompt_len - 1) / PAGE_TOKENS * PAGE_TOKENS,
            begun: false,
            submitted: Instant::now(),
            started: None,
            first_token: None,
        }
    }

    /// Lets a sequence that has computed nothing begin with what the cache knows of its
    /// prompt now. The last token is always computed: it gives the first logits.
    pub fn attach<B: Backend>(
        &mut self,
        backend: &B,
        cache: &mut KvCache<B>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<()> {
        if self.filled_to > 0 {
            return Ok(());
        }
        let prompt = &self.keys[..self.prompt_len - 1];
        let all = !self.kv.is_empty() && cache.known(&mut self.kv, prompt) <= self.kv.len();
        if self.keep_logits || all {
            return Ok(());
        }
        cache.release(std::mem::replace(&mut self.kv, cache.sequence()));
        self.request.mailbox().usage.cached_tokens = 0;
        let found = cache.attach(backend, &mut self.kv, prompt, interrupted)?;
        self.request.mailbox().usage.cached_tokens = found;
        Ok(())
    }

    /// Gives back what [`attach`](Self::attach) found.
    pub fn detach<B: Backend>(&mut self, cache: &mut KvCache<B>) {
        cache.release(std::mem::replace(&mut self.kv, cache.sequence()));
    }

    /// Looks again for a known beginning before the first rows are computed: others may
    /// have computed it meanwhile. Whether this was the first call.
    pub fn begin<B: Backend>(
        &mut self,
        backend: &B,
        cache: &mut KvCache<B>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<bool> {
        if self.begun {
            return Ok(false);
        }
        self.attach(backend, cache, interrupted)?;
        self.begun = true;
        Ok(true)
    }

    /// Most tokens whose keys and values are ever stored: the last one drawn never is.
    pub fn most_stored(&self) -> usize {
        self.prompt_len.max(self.max_len - 1)
    }

    /// `count` tokens are stored now: counts them, and keeps full pages for others.
    pub fn commit<B: Backend>(&mut self, backend: &B, cache: &mut KvCache<B>, count: usize) {
        match self.filled_to {
            0 => cache.advance(backend, &mut self.kv, &self.keys, count),
            _ => cache.commit(&mut self.kv, count),
        }
    }

    /// Fills the pages of a prompt that is not computed, once what they repeat is there.
    pub fn fill<B: Backend>(&mut self, backend: &B, cache: &mut KvCache<B>) -> Result<()> {
        match self.kv.len() == COMPUTED_TOKENS && self.filled_to > COMPUTED_TOKENS {
            true => Ok(cache.repeat_page(backend, &mut self.kv, self.filled_to)?),
            false => Ok(()),
        }
    }

    /// Stores all full pages on disk at the end. Nobody may find pages that say nothing.
    pub fn persist<B: Backend>(&mut self, backend: &B, cache: &mut KvCache<B>) {
        if self.filled_to == 0 {
            cache.persist(backend, &mut self.kv, &self.keys, true);
        }
    }

    /// Tokens that are not in the cache yet and can be computed now, in order.
    pub fn pending(&self) -> &[u32] {
        let len = self.kv.len();
        match len < COMPUTED_TOKENS && self.filled_to > COMPUTED_TOKENS {
            true => &self.tokens[len..COMPUTED_TOKENS],
            false => &self.tokens[len..],
        }
    }

    /// Gives the image features of the next `count` tokens: `(row, feature)`.
    pub fn image_rows(&self, count: usize, mut give: impl FnMut(usize, &[f32])) {
        let Some(images) = &self.images else { return };
        let start = self.kv.len();
        let first = images.positions.partition_point(|&position| position < start);
        for (index, &position) in images.positions.iter().enumerate().skip(first) {
            if position >= start + count {
                break;
            }
            give(position - start, images.feature(index));
        }
    }

    /// Rows of logits that are kept for the owner.
    pub fn kept_logits(&self) -> usize {
        if self.keep_logits {
            self.prompt_len
        } else {
            0
        }
    }

    /// What the sequence can compute now.
    pub fn work(&self) -> Work {
        match self.tokens.len() > self.prompt_len {
            true => Work::Token,
            false => Work::Prompt(self.pending().len()),
        }
    }

    /// Which of the next `count` rows must give logits.
    pub fn logit_rows(&self, count: usize) -> std::ops::Range<usize> {
        let completes = self.kv.len() + count == self.tokens.len();
        match (self.keep_logits, completes && self.max_len > self.prompt_len) {
            (true, _) => 0..count,
            (false, true) => count - 1..count,
            (false, false) => 0..0,
        }
    }

    /// The first step of the sequence begins.
    pub fn start(&mut self) {
        let now = Instant::now();
        let started = *self.started.get_or_insert(now);
        self.request.mailbox().timings.queue = started - self.submitted;
    }

    /// How the device may choose the next token; `None` when the host must see the logits.
    pub fn draw(&self) -> Option<Draw> {
        self.sampler.draw().filter(|_| !self.keep_logits)
    }

    /// Takes a step's results for [`logit_rows`](Self::logit_rows). The keys and values are
    /// committed already. Returns whether it has ended.
    pub fn advance(&mut self, outcome: Outcome<'_>, vocab: usize) -> Result<bool> {
        if let (true, Outcome::Logits(logits)) = (self.keep_logits, outcome) {
            let mut mailbox = self.request.mailbox();
            let wanted = logits.len();
            mailbox
                .logits
                .try_reserve(wanted)
                .map_err(|_| Error::OutOfMemory(format!("no memory for {wanted} more logits")))?;
            mailbox.logits.extend_from_slice(logits);
        }
        let now = Instant::now();
        let prefilled = self.kv.len().min(self.prompt_len);
        if self.kv.len() < self.tokens.len() {
            self.post(Event { prefilled, choice: None, finish: None });
            return Ok(false);
        }
        if self.max_len <= self.prompt_len {
            self.note_times(now);
            self.finish(FinishReason::Length, None);
            return Ok(true);
        }
        let choice = match outcome {
            Outcome::Logits(logits) => self.sampler.sample(&logits[logits.len() - vocab..])?,
            Outcome::Token(token) => self.sampler.take(token.unwrap_or(Draw::NO_TOKEN))?,
        };
        self.tokens.push(choice.token);
        self.keys.push(choice.token.into());
        self.note_times(now);
        self.request.mailbox().usage.completion_tokens += 1;
        let finish = if self.stop_token_ids.contains(&choice.token) {
            Some(FinishReason::Stop)
        } else if self.tokens.len() >= self.max_len {
            Some(FinishReason::Length)
        } else {
            None
        };
        match finish {
            Some(reason) => {
                self.finish(reason, Some(choice));
                Ok(true)
            }
            None => {
                self.post(Event { prefilled, choice: Some(choice), finish: None });
                Ok(false)
            }
        }
    }

    fn note_times(&mut self, now: Instant) {
        let started = self.started.unwrap_or(now);
        let first = *self.first_token.get_or_insert(now);
        let mut mailbox = self.request.mailbox();
        mailbox.timings.prefill = first - started;
        mailbox.timings.decode = now - first;
    }

    /// Ends the request; [`close`](Self::close) tells its owner.
    pub fn finish(&mut self, reason: FinishReason, choice: Option<Choice>) {
        let prefilled = self.kv.len().min(self.prompt_len);
        self.ending = Some(Event { prefilled, choice, finish: Some(reason) });
    }

    /// Posts the last event of a request that has ended.
    pub fn close(&mut self) {
        let Some(event) = self.ending.take() else { return };
        let mut mailbox = self.request.mailbox();
        mailbox.finish = event.finish.clone();
        mailbox.events.push_back(event);
    }

    /// Closes the request with an error.
    pub fn fail(&mut self, error: Error) {
        self.request.mailbox().error = Some(error);
    }

    /// Whether there is nothing more to compute.
    pub fn has_ended(&self) -> bool {
        self.ending.is_some() || self.request.mailbox().is_closed()
    }

    /// What the caller said when it cancelled; `None` after the end.
    pub fn cancelled(&self) -> Option<String> {
        if self.has_ended() {
            return None;
        }
        self.request.mailbox().cancel.clone()
    }

    /// Counts this sequence's rows of one layer, `experts` being `[rows * top_k]`.
    pub fn count_experts(&self, layer: usize, experts: &[u32]) {
        let mut mailbox = self.request.mailbox();
        let ExpertUsage { num_experts, counts } = &mut mailbox.expert_usage;
        for &expert in experts {
            counts[layer * *num_experts + expert as usize] += 1;
        }
    }

    fn post(&self, event: Event) {
        self.request.mailbox().events.push_back(event);
    }
}
