//! Kernels that will be needed are compiled by several threads, while weights are on their way.
//!
//! NVRTC compiles on any number of threads; these end with the last kernel that is expected. Whoever needs
//! one that waits still compiles it himself.

use std::ops::ControlFlow;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use llama4rs_tensor::Result;

use crate::binaries::Binaries;
use crate::error::device;
use crate::kernels::{options, Constants, KernelSource};
use crate::nvrtc::{Architecture, Nvrtc};

/// A file of kernels with the constants that it is compiled with.
#[derive(Clone)]
struct Job {
    source: &'static KernelSource,
    constants: Constants,
}

impl Job {
    fn is(&self, source: &KernelSource, constants: &[(&'static str, u32)]) -> bool {
        std::ptr::eq(self.source, source) && self.constants == constants
    }
}

/// What becomes of the kernels that are expected.
#[derive(Default)]
struct Jobs {
    /// The slowest last.
    waiting: Vec<Job>,
    running: Vec<Job>,
    /// Code that nobody has asked for yet.
    done: Vec<(Job, Result<Vec<u8>>)>,
    /// All that were ever expected.
    expected: Vec<Job>,
    threads: usize,
}

/// Those, for threads that take and users that wait.
#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

/// What `compile` gives; a panic becomes an error, which whoever waits for the code gets.
fn contained(job: &Job, compile: impl FnOnce(&Job) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    catch_unwind(AssertUnwindSafe(|| compile(job))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let (file, text) = (job.source.name, text.unwrap_or("no reason given"));
        Err(device(format!("the compiler's thread failed at {file}, please report it: {text}")))
    })
}

/// The compiler, and what it has made.
struct Work {
    nvrtc: Nvrtc,
    architecture: Architecture,
    binaries: Binaries,
    queue: Queue,
}

/// NVRTC with a cache and threads.
pub(crate) struct Compiler {
    work: Arc<Work>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Queue {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does: one job after the other, until none is left.
    fn run(&self, compile: impl Fn(&Job) -> Result<Vec<u8>>) {
        let mut jobs = self.jobs();
        while let Some(job) = jobs.waiting.pop() {
            jobs.running.push(job.clone());
            drop(jobs);
            let code = contained(&job, &compile);
            jobs = self.jobs();
            jobs.running.retain(|other| !other.is(job.source, &job.constants));
            jobs.done.push((job, code));
            self.changed.notify_all();
        }
        jobs.threads -= 1;
    }
}

impl Work {
    /// The code of a job, from the cache unless that is of no use.
    fn code(&self, job: &Job, from_cache: bool) -> Result<Vec<u8>> {
        let version = format!("{:?}", self.nvrtc.version());
        let options = options(&self.architecture, &job.constants).join("\n");
        let text = job.source.full_text();
        let key = Binaries::key(&[&text, &options, &version, self.architecture.name()]);
        if let Some(code) = self.binaries.load(&key).filter(|_| from_cache) {
            return Ok(code);
        }
        let compiled = job.source.compile(&self.nvrtc, &self.architecture, &job.constants)?;
        self.binaries.store(&key, &compiled.code);
        Ok(compiled.code)
    }
}

impl Compiler {
    pub fn new(nvrtc: Nvrtc, architecture: Architecture) -> Self {
        let (binaries, queue) = (Binaries::of_user(), Queue::default());
        let work = Work { nvrtc, architecture, binaries, queue };
        Self { work: Arc::new(work), threads: Mutex::default() }
    }

    /// The version of the compiler.
    pub fn version(&self) -> (u32, u32) {
        self.work.nvrtc.version()
    }

    /// Begins to compile a file of kernels, unless that was done before.
    pub fn expect(&self, source: &'static KernelSource, constants: Constants) {
        let mut jobs = self.work.queue.jobs();
        let job = Job { source, constants };
        if jobs.expected.iter().any(|other| other.is(source, &job.constants)) {
            return;
        }
        jobs.expected.push(job.clone());
        let place = jobs
            .waiting
            .partition_point(|other| other.source.source_bytes() <= source.source_bytes());
        jobs.waiting.insert(place, job);
        let most = std::thread::available_parallelism().map_or(1, |count| count.get());
        if jobs.threads == most {
            return;
        }
        let work = self.work.clone();
        let builder = std::thread::Builder::new().name("llama4rs-compiler".to_owned());
        // Without a thread they are compiled when they are needed.
        if let Ok(thread) = builder.spawn(move || work.queue.run(|job| work.code(job, true))) {
            jobs.threads += 1;
            self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
    }

    /// Whether a file of kernels was expected.
    pub fn expects(&self, source: &KernelSource, constants: &[(&'static str, u32)]) -> bool {
        self.work.queue.jobs().expected.iter().any(|job| job.is(source, constants))
    }

    /// The code of a file of kernels, which may be of no use to the driver if it comes from the cache.
    pub fn code(
        &self,
        source: &'static KernelSource,
        constants: &[(&'static str, u32)],
    ) -> Result<Vec<u8>> {
        let mut jobs = self.work.queue.jobs();
        jobs.waiting.retain(|job| !job.is(source, constants));
        while jobs.running.iter().any(|job| job.is(source, constants)) {
            jobs = self.work.queue.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(done) = jobs.done.iter().position(|(job, _)| job.is(source, constants)) {
            return jobs.done.swap_remove(done).1;
        }
        drop(jobs);
        self.work.code(&Job { source, constants: constants.to_vec() }, true)
    }

    /// The same without the cache.
    pub fn new_code(
        &self,
        source: &'static KernelSource,
        constants: &[(&'static str, u32)],
    ) -> Result<Vec<u8>> {
        self.work.code(&Job { source, constants: constants.to_vec() }, false)
    }

    /// Waits until everything that is expected is compiled; `progress` is told how many of how many are, now
    /// and then, and may break off. What does not compile is an error where it is needed.
    pub fn wait(&self, progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) {
        let mut jobs = self.work.queue.jobs();
        loop {
            let left = if jobs.threads == 0 { 0 } else { jobs.waiting.len() + jobs.running.len() };
            let all = jobs.expected.len();
            drop(jobs);
            let goes_on = progress(all.saturating_sub(left) as u64, all as u64);
            if left == 0 || goes_on.is_break() {
                return;
            }
            let pause = std::time::Duration::from_millis(50);
            jobs = self.work.queue.jobs();
            let waited = self.work.queue.changed.wait_timeout(jobs, pause);
            jobs = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Compiler {
    /// Waits for what is being compiled: the library's threads must not outlive the process's end.
    fn drop(&mut self) {
        self.work.queue.jobs().waiting.clear();
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // One that panicked has nobody to be told.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use llama4rs_tensor::{KvDtype, KvGeometry};

    use super::*;
    use crate::kernels::*;
    use crate::kv_pages::PAGE_TOKENS;
    use crate::ops::kv_pages::kv_constants;
    use crate::ops::pages_attention::Prefill;

    #[test]
    fn a_job_that_panics_is_an_error_of_its_code() {
        let queue = Queue::default();
        let job = |source| Job { source, constants: vec![("WIDTH", 4)] };
        let mut jobs = queue.jobs();
        jobs.waiting = vec![job(&ROUTE), job(&ROWS), job(&SAMPLE)];
        jobs.threads = 1;
        drop(jobs);
        queue.run(|job| match std::ptr::eq(job.source, &ROWS) {
            true => panic!("out of {}", "luck"),
            false => Ok(job.source.name.into()),
        });
        let jobs = queue.jobs();
        assert!(jobs.waiting.is_empty() && jobs.running.is_empty() && jobs.threads == 0);
        let [(_, first), (failed, error), (_, last)] = &jobs.done[..] else {
            panic!("{} jobs are done", jobs.done.len())
        };
        assert!(first.is_ok() && last.is_ok() && failed.is(&ROWS, &[("WIDTH", 4)]));
        let error = error.as_ref().unwrap_err().to_string();
        assert!(error.contains(ROWS.name) && error.ends_with("out of luck"), "{error}");
    }

    /// What compiling all that Scout's text model needs takes on a Hopper, with int4/g128 weights, an int8 output
    /// matrix and pages in int8:
    /// `LLAMA4RS_NVRTC=... LLAMA4RS_CUDA_CACHE=... cargo test --release --lib scouts -- --ignored --nocapture`,
    /// with an empty folder, and again with what the first run left there.
    #[test]
    #[ignore = "a measurement"]
    fn scouts_kernels() {
        let begin = Instant::now();
        let nvrtc = Nvrtc::load(&[]).unwrap();
        println!("NVRTC {:?} loaded: {:.3} s", nvrtc.version(), begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        let compiler = Compiler::new(nvrtc, Architecture::Binary("sm_90a".to_owned()));
        let [int4, int8] = [3, 2].map(|format| [("FORMAT", format), ("GROUP", 128)]);
        for (weights, finish) in [(int4, 0), (int4, 2), (int4, 3), (int8, 0)] {
            let tile = [&weights[..], &[("FINISH", finish)]].concat();
            if finish != 3 {
                compiler.expect(&MATMUL_WGMMA, tile.clone());
                compiler.expect(&MATMUL_TILE, tile.clone());
            }
            let panels = ("ROW_PANELS", 1 + u32::from(finish == 2));
            compiler.expect(&MATMUL_DECODE, [tile, vec![panels]].concat());
        }
        compiler.expect(&EMBED_FRAGMENTS, int8.to_vec());
        for source in [&ORDER_STEPS, &REPACK, &ROUTE, &ROWS, &SAMPLE] {
            compiler.expect(source, Vec::new());
        }
        for width in [4, 5120] {
            compiler.expect(&RESIDUAL_NORM, vec![("WIDTH", width)]);
        }
        // Pages of bf16 take half of the time.
        for prefill in [Prefill::Large, Prefill::Parts] {
            compiler.expect(&ATTENTION_PREFILL, prefill.constants(128, true).to_vec());
        }
        let head_dim = ("HEAD_DIM", 128);
        compiler.expect(&ROPE_CACHE, vec![head_dim]);
        let decode = vec![head_dim, ("ROW_TILES", 1), ("SEALED_PAGES", 1)];
        compiler.expect(&ATTENTION_DECODE, decode);
        let geometry = KvGeometry {
            num_layers: 48,
            num_kv_heads: 8,
            head_dim: 128,
            page_tokens: PAGE_TOKENS,
            dtype: KvDtype::Int8,
        };
        compiler.expect(&KV_PAGES, kv_constants(&geometry).to_vec());
        let mut all = 0;
        compiler.wait(&mut |_, expected| {
            all = expected;
            ControlFlow::Continue(())
        });
        println!("{all} files of kernels: {:.3} s", begin.elapsed().as_secs_f64());
        let jobs = compiler.work.queue.jobs();
        let bytes: usize = jobs.done.iter().map(|(_, code)| code.as_ref().unwrap().len()).sum();
        println!("{bytes} bytes of code");
    }
}
