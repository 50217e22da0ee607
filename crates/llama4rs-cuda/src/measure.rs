//! Timings of single operations with random data on the device: what `benches/gpu.py` asks for.
//!
//! An operation is captured into a graph several times, with other weights each time, so that none
//! are found in the cache; events around a replay give its time.

use cudarc::driver::{result, sys};
use llama4rs_tensor::{
    Backend, Draw, KvDtype, KvGeometry, KvSpan, PageForm, PageId, Result, WeightFormat,
};

use crate::arguments::arguments;
use crate::cuda::{Cuda, Launch};
use crate::error::During;
use crate::fragments::Fragments;
use crate::graph::Executable;
use crate::kernels::FILL;
use crate::kv_pages::{KvPages, PAGE_TOKENS};
use crate::memory::Buffer;
use crate::tensor::{Matrix, Routing, Tensor, Vector};

/// More than any cache of a device.
const CACHE_BYTES: usize = 160 << 20;
/// Most copies of an operation's data.
const MOST_COPIES: usize = 64;

/// An operation to measure.
#[derive(Clone, Debug)]
pub enum Work {
    /// A copy within the device.
    Copy {
        /// Bytes that are copied.
        bytes: usize,
    },
    /// `tokens` rows times matrices of `rows` outputs each, in one call.
    Matmul {
        /// Of the weights.
        format: WeightFormat,
        /// Outputs of each matrix.
        rows: Vec<usize>,
        /// Inputs.
        cols: usize,
        /// Rows of activations.
        tokens: usize,
    },
    /// Routed experts, one for each token.
    Experts {
        /// Of the weights.
        format: WeightFormat,
        /// Experts of the layer.
        experts: usize,
        /// Rows of activations.
        tokens: usize,
        /// Width of the model.
        hidden: usize,
        /// Width of an expert.
        inner: usize,
    },
    /// Attention of the last `rows` tokens of each sequence over all of its tokens.
    Attend {
        /// Of the pages; quantised ones are sealed where all rows see them whole.
        dtype: KvDtype,
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
        /// Sequences.
        sequences: usize,
        /// Tokens of each sequence.
        context: usize,
        /// Query rows of each sequence.
        rows: usize,
    },
    /// The residual sum and its norm.
    AddNorm {
        /// Rows of activations.
        rows: usize,
        /// Width of the model.
        cols: usize,
    },
    /// The largest logit; the copy of the answer to the host is not counted.
    Sample {
        /// Rows of logits.
        rows: usize,
        /// Tokens of the vocabulary.
        vocab: usize,
        /// Draws from the nucleus instead of taking the largest.
        draw: bool,
    },
}

/// What a measurement found.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Of one operation, once for each round.
    pub seconds: Vec<f64>,
    /// That the algorithm must move, once each.
    pub bytes: u64,
    /// Additions and multiplications.
    pub operations: u64,
}

/// Words of random bits: which are kept, which are set.
#[derive(Clone, Copy)]
struct Bits {
    keep: u32,
    set: u32,
}

impl Bits {
    const ANY: Bits = Bits { keep: !0, set: 0 };
    /// Pairs of bf16 of either sign from 0.5 to 1.
    const BF16: Bits = Bits { keep: 0x807F_807F, set: 0x3F00_3F00 };
    /// Pairs of bf16 from 0.0078 to 0.0156.
    const SCALES: Bits = Bits { keep: 0x007F_007F, set: 0x3C00_3C00 };
    /// Pairs of f16 from 0.0625 to 0.125; as codes just as good as others.
    const F16: Bits = Bits { keep: 0x03FF_03FF, set: 0x2C00_2C00 };
    /// Single precision of either sign from 0.5 to 1.
    const F32: Bits = Bits { keep: 0x807F_FFFF, set: 0x3F00_0000 };
}

impl Cuda {
    /// Measures one operation `rounds` times.
    ///
    /// # Errors
    /// On sizes that the operation does not take, and device failures.
    pub fn measure(&self, work: &Work, rounds: usize) -> Result<Measured> {
        match work {
            &Work::Copy { bytes } => self.measure_copy(bytes, rounds),
            Work::Matmul { format, rows, cols, tokens } => {
                self.measure_matmul(*format, rows, *cols, *tokens, rounds)
            }
            &Work::Experts { format, experts, tokens, hidden, inner } => {
                self.measure_experts(format, experts, tokens, [hidden, inner], rounds)
            }
            &Work::Attend { dtype, heads, kv_heads, head_dim, sequences, context, rows } => {
                let geometry = KvGeometry {
                    num_layers: 1,
                    num_kv_heads: kv_heads,
                    head_dim,
                    page_tokens: PAGE_TOKENS,
                    dtype,
                };
                self.measure_attend(geometry, heads, sequences, context, rows, rounds)
            }
            &Work::AddNorm { rows, cols } => {
                let (mut x, y) = (self.random(rows, cols)?, self.random(rows, cols)?);
                let weight = Vector(self.filled(cols, Bits::F32)?);
                let mut out = self.empty();
                let one = |_| self.add_norm(&mut x, &y, &weight, 1e-5, &mut out);
                let seconds = self.replayed(8, rounds, one)?;
                let values = (rows * cols) as u64;
                Ok(Measured {
                    seconds,
                    bytes: values * (4 + 4 + 4 + 4 + 2),
                    operations: 5 * values,
                })
            }
            &Work::Sample { rows, vocab, draw } => {
                let logits = self.random(rows, vocab)?;
                let option =
                    Draw { random: 1 << 63, temperature: 1.0, top_p: 0.9, min_p: 0.0, top_k: 0 };
                let draws = draw.then(|| vec![option; rows]);
                let options = draws.map(|draws| self.draws(&draws)).transpose()?;
                let one = |_| self.launch_choose(&logits, options.as_deref()).map(drop);
                let seconds = self.replayed(4, rounds, one)?;
                let bytes = (rows * vocab * 4) as u64;
                Ok(Measured { seconds, bytes, operations: bytes / 4 })
            }
        }
    }

    /// How many values of `tokens` rows at once differ in a bit from the same rows one by one: products
    /// with random weights. Zero, if the device computes as `fragments.cuh` says.
    ///
    /// # Errors
    /// On device failures.
    pub fn differing_products(
        &self,
        format: WeightFormat,
        rows: usize,
        cols: usize,
        tokens: usize,
    ) -> Result<usize> {
        let matrix = self.random_matrix(format, 1, rows, cols, 7)?;
        let x = self.random(tokens, cols)?;
        let (mut all, mut one) = (self.empty(), self.empty());
        let values = self.to_host(&x)?;
        // Uploaded, so that both are rounded alike.
        self.matmul(&self.upload(&values, cols)?, &[&matrix], &mut [&mut all])?;
        let all = self.to_host(&all)?;
        let mut differing = 0;
        for (row, expected) in values.chunks_exact(cols).zip(all.chunks_exact(rows)) {
            self.matmul(&self.upload(row, cols)?, &[&matrix], &mut [&mut one])?;
            let got = self.to_host(&one)?;
            let differ = |(a, b): (&f32, &f32)| !a.is_finite() || a.to_bits() != b.to_bits();
            differing += expected.iter().zip(&got).filter(|&pair| differ(pair)).count();
        }
        Ok(differing)
    }

    fn measure_copy(&self, bytes: usize, rounds: usize) -> Result<Measured> {
        let from = self.filled::<u32>(bytes.div_ceil(4), Bits::ANY)?;
        let to = Buffer::<u32>::new(&self.gpu, from.len(), "copies")?;
        let one = |_| {
            // SAFETY: both buffers have `bytes` bytes and live as long as the graph.
            unsafe {
                result::memcpy_dtod_async(to.address(), from.address(), bytes, self.gpu.stream())
            }
            .during("copy")
        };
        let seconds = self.replayed(1, rounds, one)?;
        Ok(Measured { seconds, bytes: 2 * bytes as u64, operations: 0 })
    }

    fn measure_matmul(
        &self,
        format: WeightFormat,
        rows: &[usize],
        cols: usize,
        tokens: usize,
        rounds: usize,
    ) -> Result<Measured> {
        let outputs: usize = rows.iter().sum();
        let bytes = outputs * cols * format.bits_per_weight() as usize / 8;
        let copies = if rounds == 0 { 1 } else { copies_of(bytes) };
        let sets = (0..copies)
            .map(|i| {
                rows.iter().map(|&n| self.random_matrix(format, 1, n, cols, i as u32)).collect()
            })
            .collect::<Result<Vec<Vec<Matrix>>>>()?;
        let x = self.random(tokens, cols)?;
        let mut outs: Vec<Tensor> = rows.iter().map(|_| self.empty()).collect();
        let one = |i: usize| {
            let weights: Vec<&Matrix> = sets[i % copies].iter().collect();
            let mut outs: Vec<&mut Tensor> = outs.iter_mut().collect();
            self.matmul(&x, &weights, &mut outs)
        };
        let seconds = self.replayed(copies.max(4), rounds, one)?;
        let weights: usize = sets[0].iter().map(bytes_of).sum();
        let moved = weights + tokens * cols * 2 + tokens * outputs * 4;
        let operations = 2 * (tokens * outputs) as u64 * cols as u64;
        Ok(Measured { seconds, bytes: moved as u64, operations })
    }

    fn measure_experts(
        &self,
        format: WeightFormat,
        experts: usize,
        tokens: usize,
        [hidden, inner]: [usize; 2],
        rounds: usize,
    ) -> Result<Measured> {
        let matrix = |rows, cols, seed| self.random_matrix(format, experts, rows, cols, seed);
        let (gate, up) = (matrix(inner, hidden, 1)?, matrix(inner, hidden, 2)?);
        let down = matrix(hidden, inner, 3)?;
        // Each copy sends its tokens elsewhere.
        let used: usize = [&gate, &up, &down].map(bytes_of).into_iter().sum::<usize>() / experts;
        let copies = if rounds == 0 { 1 } else { copies_of(used * tokens.min(experts)).min(8) };
        let mut touched = 0;
        let routings = (0..copies)
            .map(|copy| {
                let chosen: Vec<u32> = (0..tokens)
                    .map(|t| (hash((copy * tokens + t) as u64) % experts as u64) as u32)
                    .collect();
                let mut distinct = chosen.clone();
                distinct.sort_unstable();
                distinct.dedup();
                touched += distinct.len();
                Ok(Routing {
                    rows: tokens,
                    top_k: 1,
                    num_experts: experts,
                    experts: Buffer::of(&self.gpu, &chosen, "routing")?,
                    weights: Buffer::of(&self.gpu, &vec![0.5; tokens], "routing")?,
                })
            })
            .collect::<Result<Vec<Routing>>>()?;
        let x = self.random(tokens, hidden)?;
        let mut out = self.random(tokens, hidden)?;
        let one = |i: usize| {
            self.run_expert_products(&x, &routings[i % copies], [&gate, &up, &down], &mut out)
        };
        let seconds = self.replayed(copies.max(4), rounds, one)?;
        let bytes = used * touched / copies + tokens * (hidden * (2 + 4 + 4 + 4) + inner * 4);
        let operations = 6 * (tokens * hidden) as u64 * inner as u64;
        Ok(Measured { seconds, bytes: bytes as u64, operations })
    }

    fn measure_attend(
        &self,
        geometry: KvGeometry,
        heads: usize,
        sequences: usize,
        context: usize,
        rows: usize,
        rounds: usize,
    ) -> Result<Measured> {
        let pages = context.div_ceil(PAGE_TOKENS);
        let first = context.saturating_sub(rows) + 1;
        let sealed = if geometry.dtype.is_quantised() { (first - 1) / PAGE_TOKENS } else { 0 };
        let mut pool = self.kv_pool(geometry)?;
        // The page of a sealed one's number is unused: numbers are simple.
        self.kv_reserve(&mut pool, PageForm::Exact, sequences * (pages - sealed))?;
        if sealed > 0 {
            self.kv_reserve(&mut pool, PageForm::Sealed, sequences * sealed)?;
        }
        self.fill_pages(&pool, PageForm::Exact, Bits::BF16)?;
        self.fill_pages(&pool, PageForm::Sealed, Bits::F16)?;
        let span = |sequence: usize| {
            let page = |index: usize| match index < sealed {
                true => PageId::sealed((sequence * sealed + index) as u32),
                false => PageId::exact((sequence * (pages - sealed) + index - sealed) as u32),
            };
            KvSpan {
                rows: sequence * rows..(sequence + 1) * rows,
                pages: (0..pages).map(page).collect(),
                visible: first,
            }
        };
        let spans: Vec<KvSpan> = (0..sequences).map(span).collect();
        let queries = self.random(sequences * rows, heads * geometry.head_dim)?;
        let mut out = self.empty();
        let one = |_| self.attend(&pool, 0, &queries, &spans, 0.088, &mut out);
        let seconds = self.replayed(4, rounds, one)?;
        let stored = sequences
            * (sealed * geometry.page_bytes(PageForm::Sealed)
                + (pages - sealed) * geometry.page_bytes(PageForm::Exact));
        let bytes = stored + queries.len() * (2 + 4);
        let seen: u64 = (0..rows as u64).map(|i| first as u64 + i).sum();
        let operations = 4 * (geometry.head_dim * heads * sequences) as u64 * seen;
        Ok(Measured { seconds, bytes: bytes as u64, operations })
    }

    fn fill_pages(&self, pool: &KvPages, form: PageForm, bits: Bits) -> Result<()> {
        let bytes = pool.geometry().page_bytes(form);
        let page = |index| match form {
            PageForm::Exact => PageId::exact(index),
            PageForm::Sealed => PageId::sealed(index),
        };
        (0..pool.num_pages(form) as u32)
            .try_for_each(|i| self.fill(pool.address(page(i)), bytes / 4, i, bits))
    }

    /// Queues random words.
    fn fill(&self, to: u64, words: usize, seed: u32, Bits { keep, set }: Bits) -> Result<()> {
        let launch = Launch {
            source: &FILL,
            kernel: "fill",
            constants: &[],
            shared: 0,
            blocks: [words.div_ceil(256), 1, 1],
            threads: 256,
        };
        self.launch(launch, &arguments![to, words as u64, seed, keep, set])
    }

    fn filled<T: crate::memory::Plain>(&self, len: usize, bits: Bits) -> Result<Buffer<T>> {
        let buffer = Buffer::new(&self.gpu, len, "random data")?;
        self.fill(buffer.address(), len * std::mem::size_of::<T>() / 4, len as u32, bits)?;
        Ok(buffer)
    }

    /// Random activations, and others as their bf16 form.
    fn random(&self, rows: usize, cols: usize) -> Result<Tensor> {
        let mut x = Tensor::default();
        x.resize(&self.gpu, rows, cols)?;
        self.fill(x.address(), x.len(), 11, Bits::F32)?;
        let halves = x.halves_mut(&self.gpu)?.address();
        self.fill(halves, rows * cols / 2, 12, Bits::BF16)?;
        Ok(x)
    }

    /// Random weights in fragment order.
    fn random_matrix(
        &self,
        format: WeightFormat,
        stack: usize,
        rows: usize,
        cols: usize,
        seed: u32,
    ) -> Result<Matrix> {
        let fragments = Fragments::new(&self.gpu, Fragments::sizes(format, rows, cols), stack)?;
        let Fragments { codes, scales, .. } = &fragments;
        let bits = if format == WeightFormat::Bf16 { Bits::BF16 } else { Bits::ANY };
        self.fill(codes.address(), codes.len() / 4, seed, bits)?;
        self.fill(scales.address(), scales.len(), seed + 1, Bits::SCALES)?;
        self.gpu.note_weights();
        let panels = Buffer::new(&self.gpu, 0, "random data")?;
        let fragments = Some(fragments);
        Ok(Matrix { format, stack, rows, cols, panels, fragments })
    }

    /// Seconds of one `operation`, from `rounds` replays of a graph that holds `count` of them. Without
    /// rounds it is done once, for whoever counts what it does.
    fn replayed(
        &self,
        count: usize,
        rounds: usize,
        mut operation: impl FnMut(usize) -> Result<()>,
    ) -> Result<Vec<f64>> {
        if rounds == 0 {
            operation(0)?;
            self.synchronize()?;
            return Ok(Vec::new());
        }
        // Compiles, and leaves all memory in the list of free memory: a capture may not allocate.
        for i in 0..2 {
            operation(i)?;
        }
        self.synchronize()?;
        let graph = Graph::capture(self, || (0..count).try_for_each(&mut operation))?;
        graph.launch()?;
        (0..rounds).map(|_| graph.seconds().map(|seconds| seconds / count as f64)).collect()
    }
}

/// Operations that can be queued at once.
struct Graph<'a> {
    cuda: &'a Cuda,
    executable: Executable,
    events: [sys::CUevent; 2],
}

impl<'a> Graph<'a> {
    fn capture(cuda: &'a Cuda, record: impl FnOnce() -> Result<()>) -> Result<Self> {
        let executable = Executable::capture(&cuda.gpu, cuda.gpu.stream(), record)?;
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let events = [event().during("make an event")?, event().during("make an event")?];
        Ok(Self { cuda, executable, events })
    }

    fn launch(&self) -> Result<()> {
        self.executable.launch(&self.cuda.gpu)
    }

    fn seconds(&self) -> Result<f64> {
        let stream = self.cuda.gpu.stream();
        let [start, end] = self.events;
        self.cuda.gpu.bind()?;
        // SAFETY: events and stream live as long as `self`.
        unsafe { result::event::record(start, stream) }.during("record an event")?;
        self.launch()?;
        // SAFETY: as above.
        unsafe { result::event::record(end, stream) }.during("record an event")?;
        self.cuda.synchronize()?;
        // SAFETY: both events were recorded, and the stream has finished.
        let milliseconds = unsafe { result::event::elapsed(start, end) }.during("read the time")?;
        Ok(milliseconds as f64 / 1e3)
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `capture`, used by nobody else; failures have nobody to be told.
        unsafe {
            for event in self.events {
                let _ = result::event::destroy(event);
            }
        }
    }
}

/// Copies of so many bytes that the cache does not hold them.
fn copies_of(bytes: usize) -> usize {
    CACHE_BYTES.div_ceil(bytes.max(1)).clamp(1, MOST_COPIES)
}

fn bytes_of(matrix: &Matrix) -> usize {
    let of = |f: &Fragments| f.codes.len() + 4 * f.scales.len();
    matrix.fragments.as_ref().map_or(0, of)
}

fn hash(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
