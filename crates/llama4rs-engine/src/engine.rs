//! The engine: one model, one lock, steps driven by whoever waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use llama4rs_kv_cache::store::{self, BytesRead, Store, StoreOptions};
use llama4rs_kv_cache::{KvCache, PAGE_TOKENS};
use llama4rs_model::{Llama4, Step, VisionModel, VisionWorkspace, Workspace};
use llama4rs_tensor::{Backend, Draw, KvDtype, VisionBackend};

use crate::admission::Admission;
use crate::observer::{Interrupts, Part, Watch};
use crate::request::{ExpertUsage, Mailbox};
use crate::scheduler::{Limits, Scheduler};
use crate::sequence::{Outcome, Sequence};
use crate::turn::Turn;
use crate::{Error, Event, Request, RequestOptions, Result};

/// How long a thread waits before it looks again whether it is its turn.
const PAUSE: Duration = Duration::from_millis(5);

/// How an engine runs its model.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Most tokens of one sequence.
    pub max_context: usize,
    /// Prompt tokens that one step may take.
    pub step_tokens: usize,
    /// Sequences that share a step.
    pub max_sequences: usize,
    /// Element type of keys and values.
    pub kv_dtype: KvDtype,
    /// Bytes of pages that stay for later requests with the same beginning; 0: none.
    pub prefix_cache_bytes: usize,
    /// Whether the text that was used last stays beyond that, while there is memory.
    pub keep_last_text: bool,
}

/// A model and the requests that run on it; shared by reference between threads.
pub struct Engine<B: Backend> {
    backend: B,
    model: Llama4<B>,
    /// `None` for a text-only checkpoint.
    vision: Option<Vision<B>>,
    settings: Settings,
    admission: Admission,
    core: Turn<Core<B>>,
    /// Signalled after every step, for threads that wait while another one drives.
    stepped: Condvar,
    /// Pairs with `stepped`; guards nothing.
    pause: Mutex<()>,
    /// Submitted requests that no step has seen yet.
    inbox: Mutex<Vec<(RequestOptions, Request)>>,
    /// A request was cancelled that is not removed yet.
    cancelled: AtomicBool,
    /// What to tell about the store.
    store_warning: Mutex<Option<String>>,
}

/// The vision tower and its buffers. It computes beside the text model.
struct Vision<B: Backend> {
    model: VisionModel<B>,
    workspace: Turn<VisionWorkspace<B>>,
}

/// What a step gives.
#[derive(Default)]
struct Drawn {
    /// Those that the device chose, one for each row of logits; `None` when it chose none.
    tokens: Option<Vec<u32>>,
    /// `[rows, vocab]` of the parts for which it did not, in their order.
    logits: Vec<f32>,
}

/// What a step changes.
struct Core<B: Backend> {
    scheduler: Scheduler,
    cache: KvCache<B>,
    workspace: Workspace<B>,
    step: Step,
}

impl<B: VisionBackend> Engine<B> {
    /// An engine without requests.
    pub fn new(
        backend: B,
        model: Llama4<B>,
        vision: Option<VisionModel<B>>,
        settings: Settings,
    ) -> llama4rs_tensor::Result<Self> {
        let layout = model.kv_layout(settings.kv_dtype);
        let vocab_size = model.config().vocab_size;
        let admission = Admission::new(layout.clone(), settings.step_tokens, vocab_size);
        let mut cache = KvCache::new(&backend, layout, settings.prefix_cache_bytes)?;
        if settings.keep_last_text {
            cache.keep_last_text();
        }
        let core = Core {
            scheduler: Scheduler::default(),
            cache,
            workspace: Workspace::new(&backend),
            step: Step::default(),
        };
        let vision = vision
            .map(|model| Vision { model, workspace: Turn::new(VisionWorkspace::new(&backend)) });
        Ok(Self {
            backend,
            model,
            vision,
            settings,
            admission,
            core: Turn::new(core),
            stepped: Condvar::new(),
            pause: Mutex::new(()),
            inbox: Mutex::new(Vec::new()),
            cancelled: AtomicBool::new(false),
            store_warning: Mutex::new(None),
        })
    }

    /// Keeps keys and values in a directory, too, from the first request on.
    pub fn open_store(&mut self, options: StoreOptions) -> store::Result<()> {
        let core = self.core.get_mut();
        let store = Store::open(options, core.cache.layout().page_sizes())?;
        core.cache.set_store(&self.backend, store);
        self.admission.look_at(&core.cache);
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Llama4<B> {
        &self.model
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Bytes that key/value pages and kept logits may take together; `None`: no limit.
    pub fn kv_memory(&self) -> Option<usize> {
        Some(self.admission.budget()).filter(|&bytes| bytes != usize::MAX)
    }

    /// Sets the limit of [`kv_memory`](Self::kv_memory) for requests to come.
    pub fn set_kv_memory(&self, bytes: usize) {
        self.admission.set_budget(bytes);
    }

    /// The vision tower; `None` for a text-only checkpoint.
    pub fn vision(&self) -> Option<&VisionModel<B>> {
        self.vision.as_ref().map(|vision| &vision.model)
    }

    /// Encodes normalised tiles `[tiles, channels, size, size]` into
    /// `[tiles * tokens_per_tile, hidden]`. `interrupted` is asked between layers.
    pub fn encode_image(
        &self,
        pixels: &[f32],
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<f32>> {
        let vision = self.vision.as_ref().ok_or_else(|| {
            Error::Request(
                "this checkpoint has no vision part: images need a Llama4ForConditionalGeneration checkpoint"
                    .to_owned(),
            )
        })?;
        let mut waits = 0;
        let mut workspace = loop {
            if let Some(workspace) = vision.workspace.take()? {
                break workspace;
            }
            if interrupted() {
                return Err(Error::Interrupted);
            }
            vision.workspace.check(waits)?;
            waits += 1;
            std::thread::sleep(PAUSE);
        };
        let mut watch = Interrupts(interrupted);
        Ok(vision.model.encode(&self.backend, pixels, &mut workspace, &mut watch)?)
    }

    /// Queues a request, or says why it can never run. It waits, in order of arrival,
    /// until the memory that it may need is free.
    pub fn submit(&self, options: RequestOptions) -> Result<Request> {
        let config = self.model.config();
        let refuse = |message| Err(Error::Request(message));
        if options.prompt.is_empty() {
            return refuse("the prompt is empty: give at least one token".to_owned());
        }
        let vocab = config.vocab_size;
        if let Some(id) = options.prompt.iter().find(|&&id| id as usize >= vocab) {
            return refuse(format!(
                "token id {id} is outside of the vocabulary of {vocab}: is this the model's own tokenizer?"
            ));
        }
        let (len, limit) = (options.prompt.len(), self.settings.max_context);
        if len > limit || (len == limit && options.max_tokens > 0) {
            return refuse(format!(
                "the prompt has {len} tokens and the context holds {limit}: shorten the prompt or open the model with a larger max_context"
            ));
        }
        options.sampling.validate()?;
        if let Some(images) = &options.images {
            let rows = images.positions(&options.prompt).count();
            let (features, hidden) = (images.features.len(), config.hidden_size);
            if features != rows * hidden {
                return refuse(format!(
                    "the prompt has {rows} image patch tokens, but {} image features were given: each tile's patches must be in the prompt, in order",
                    features / hidden
                ));
            }
        }
        // The last token drawn is never stored.
        let stored = len.max(len.saturating_add(options.max_tokens).min(limit) - 1);
        self.admission.check(stored, if options.keep_logits { len } else { 0 })?;
        let mut mailbox = Mailbox::default();
        mailbox.usage.prompt_tokens = len;
        mailbox.expert_usage = ExpertUsage {
            num_experts: config.num_experts,
            counts: vec![0; config.num_experts * config.layers.len()],
        };
        let request = Request(Arc::new(Mutex::new(mailbox)));
        self.inbox().push((options, request.clone()));
        Ok(request)
    }

    /// The next event of `request`, computing steps for all requests until there
    /// is one; `None` after the last. `interrupted` is asked between layers and
    /// while another thread computes: `true` returns [`Error::Interrupted`], and
    /// calling again goes on where it was.
    pub fn next(
        &self,
        request: &Request,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Event>> {
        let mut waits = 0;
        loop {
            {
                let mut mailbox = request.mailbox();
                if let Some(event) = mailbox.events.pop_front() {
                    return Ok(Some(event));
                }
                if let Some(error) = &mailbox.error {
                    return Err(error.clone());
                }
                if mailbox.is_closed() {
                    return Ok(None);
                }
            }
            match self.core.take()? {
                Some(mut core) => {
                    let outcome = self.step(&mut core, interrupted);
                    drop(core);
                    self.reap();
                    self.stepped.notify_all();
                    outcome?;
                }
                None => {
                    if interrupted() {
                        return Err(Error::Interrupted);
                    }
                    self.core.check(waits)?;
                    waits += 1;
                    let guard = self.pause.lock().unwrap_or_else(|p| p.into_inner());
                    // A missed signal costs one time-out, never a hang.
                    drop(self.stepped.wait_timeout(guard, PAUSE));
                }
            }
        }
    }

    /// Ends a request now and frees its pages; `reason` becomes its finish reason.
    pub fn cancel(&self, request: &Request, reason: &str) {
        {
            let mut mailbox = request.mailbox();
            if mailbox.is_closed() || mailbox.cancel.is_some() {
                return;
            }
            mailbox.cancel = Some(reason.to_owned());
        }
        self.cancelled.store(true, Ordering::SeqCst);
        self.reap();
    }

    /// Removes cancelled requests, unless a step is being computed: whoever computes it
    /// calls this afterwards, so that none is left behind.
    fn reap(&self) {
        while self.cancelled.load(Ordering::SeqCst) {
            let Ok(Some(mut core)) = self.core.take() else { return };
            self.cancelled.store(false, Ordering::SeqCst);
            self.take_in(&mut core);
            let Core { scheduler, cache, .. } = &mut *core;
            scheduler.reap(&self.backend, cache);
        }
    }

    /// What a user should know, once: why pages can no longer be stored on disk (requests go on
    /// with their pages in memory), or what the device [says](Backend::take_warning).
    pub fn take_warning(&self) -> Option<String> {
        let of_store =
            self.store_warning.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        of_store.or_else(|| self.backend.take_warning())
    }

    /// Bytes of key/value pages in use; `None` while a step is being computed.
    pub fn kv_bytes_in_use(&self) -> Option<usize> {
        self.core.take().ok().flatten().map(|core| core.cache.bytes_in_use())
    }

    /// Bytes that were read from the store to find texts and to check their pages; `None`
    /// while a step is being computed.
    pub fn kv_bytes_read(&self) -> Option<BytesRead> {
        self.core.take().ok().flatten().map(|core| core.cache.bytes_read())
    }

    fn inbox(&self) -> MutexGuard<'_, Vec<(RequestOptions, Request)>> {
        self.inbox.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Puts what was submitted into the queue.
    fn take_in(&self, core: &mut Core<B>) {
        for (options, request) in self.inbox().drain(..) {
            let kv = core.cache.sequence();
            let sequence = Sequence::new(options, request, kv, self.settings.max_context);
            core.scheduler.waiting.push_back(sequence);
        }
    }

    /// One step for all requests.
    fn step(&self, core: &mut Core<B>, interrupted: &mut dyn FnMut() -> bool) -> Result<()> {
        self.take_in(core);
        let wanted = self.plan(core, interrupted)?;
        let parts = self.build(core, &wanted);
        let outcome = self.compute(core, &parts, interrupted);
        if let Ok(Some(drawn)) = &outcome {
            self.distribute(core, &parts, drawn);
        }
        let Core { scheduler, cache, .. } = core;
        for part in &parts {
            let sequence = &mut scheduler.running[part.sequence];
            cache.rollback(&mut sequence.kv);
            match &outcome {
                Ok(_) | Err(Error::Interrupted) => {}
                Err(error) => sequence.fail(error.clone()),
            }
        }
        scheduler.reap(&self.backend, cache);
        // The next step takes about as many pages as this one gave back.
        let keep = match scheduler.running.len() {
            0 => 0,
            running => self.settings.step_tokens / PAGE_TOKENS + running,
        };
        cache.discard_free(&self.backend, keep);
        if let Some(warning) = cache.take_store_warning() {
            *self.store_warning.lock().unwrap_or_else(|p| p.into_inner()) = Some(warning);
        }
        match outcome {
            Err(Error::Interrupted) => Err(Error::Interrupted),
            _ => Ok(()),
        }
    }

    /// Lets waiting sequences in, and gives each running one its rows.
    fn plan(
        &self,
        core: &mut Core<B>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<usize>> {
        let limits = Limits {
            step_tokens: self.settings.step_tokens,
            max_sequences: self.settings.max_sequences,
        };
        let Core { scheduler, cache, .. } = core;
        cache.set_budget(self.admission.budget());
        if scheduler.running.is_empty() {
            // Whoever comes next tries again.
            cache.trust_store();
        }
        self.admission.look_at(cache);
        scheduler.reap(&self.backend, cache);
        scheduler.admit(limits, &self.admission, &self.backend, cache, interrupted)?;
        scheduler.plan(limits, &self.backend, cache, interrupted)
    }

    /// Runs the model over the step's rows; returns what came out for those that need logits,
    /// or `None` when all owners of the rows cancelled.
    fn compute(
        &self,
        core: &mut Core<B>,
        parts: &[Part],
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Drawn>> {
        if parts.is_empty() {
            return Ok(None);
        }
        let Core { scheduler, cache, workspace, step } = core;
        let mut watch = Watch::new(parts, &scheduler.running, interrupted);
        match self.model.forward(&self.backend, step, cache, workspace, &mut watch) {
            Err(llama4rs_model::Error::Interrupted) if watch.abandoned => return Ok(None),
            outcome => outcome?,
        }
        watch.count();
        let Some(tokens) = workspace.tokens() else {
            let any = !step.logit_rows.is_empty();
            let logits = any.then(|| self.backend.to_host(workspace.logits())).transpose()?;
            return Ok(Some(Drawn { tokens: None, logits: logits.unwrap_or_default() }));
        };
        let mut drawn = Drawn { tokens: Some(self.backend.tokens(tokens)?), logits: Vec::new() };
        for part in parts.iter().filter(|part| !part.is_drawn && !part.logits.is_empty()) {
            let rows = self.backend.rows_to_host(workspace.logits(), part.logits.clone())?;
            drawn.logits.extend(rows);
        }
        Ok(Some(drawn))
    }

    /// Writes the step's rows: tokens, positions, pages. A sequence that gets no
    /// pages fails alone.
    fn build(&self, core: &mut Core<B>, wanted: &[usize]) -> Vec<Part> {
        let Core { scheduler, cache, step, .. } = core;
        step.clear();
        let mut parts = Vec::new();
        for (index, (sequence, &count)) in scheduler.running.iter_mut().zip(wanted).enumerate() {
            if count == 0 {
                continue;
            }
            let row = step.ids.len();
            if let Err(error) =
                cache.extend(&self.backend, &mut sequence.kv, count, row, &mut step.kv)
            {
                sequence.fail(no_pages(error, cache));
                continue;
            }
            sequence.start();
            let start = sequence.kv.len();
            step.ids.extend(&sequence.pending()[..count]);
            step.positions.extend(start..start + count);
            sequence.image_rows(count, |offset, feature| {
                step.image_rows.push((row + offset) as u32);
                step.image_features.extend_from_slice(feature);
            });
            let logits = sequence.logit_rows(count);
            let first_logit = step.logit_rows.len();
            step.logit_rows.extend(logits.clone().map(|i| (row + i) as u32));
            let draw = sequence.draw();
            // The device chooses for all rows or for none; what nobody asked for is cheap.
            step.draws.extend(logits.clone().map(|_| draw.unwrap_or(Draw::LARGEST)));
            parts.push(Part {
                sequence: index,
                rows: row..row + count,
                logits: first_logit..first_logit + logits.len(),
                is_drawn: draw.is_some(),
            });
        }
        if !parts.iter().any(|part| part.is_drawn) {
            step.draws.clear();
        }
        parts
    }

    fn distribute(&self, core: &mut Core<B>, parts: &[Part], drawn: &Drawn) {
        let vocab = self.model.config().vocab_size;
        let mut logits = &drawn.logits[..];
        for part in parts {
            let sequence = &mut core.scheduler.running[part.sequence];
            sequence.commit(&self.backend, &mut core.cache, part.rows.len());
            let outcome = match &drawn.tokens {
                Some(tokens) if part.is_drawn => {
                    Outcome::Token(tokens[part.logits.clone()].last().copied())
                }
                _ => {
                    let (rows, others) = logits.split_at(part.logits.len() * vocab);
                    logits = others;
                    Outcome::Logits(rows)
                }
            };
            let filled = sequence.fill(&self.backend, &mut core.cache);
            if let Err(error) = filled.and_then(|()| sequence.advance(outcome, vocab)) {
                sequence.fail(error);
            }
        }
    }
}

/// Why a sequence that was let in gets no pages.
fn no_pages<B: Backend>(error: llama4rs_tensor::Error, cache: &KvCache<B>) -> Error {
    let error = error.into();
    let Error::OutOfMemory(message) = &error else { return error };
    let Some(problem) = cache.store_problem() else { return error };
    Error::OutOfMemory(format!(
        "{message}: the text is longer than kv_memory, and kv_dir cannot take its pages ({problem})\n\
         hint: put the disk right and ask again: what was stored is not computed again; or open \
         the model with a larger kv_memory or a smaller kv_cache format"
    ))
}
