//! The device: instructions, threads and working memory.

use llama4rs_tensor::Result;

use crate::kernels::attend_all;
use crate::kernels::attention::AttentionScratch;
use crate::kernels::experts::ExpertScratch;
use crate::kernels::matmul::MatmulScratch;
use crate::parallel::{Spare, Threads};
use crate::simd::Dispatch;
use crate::{Arithmetic, InstructionSet};

/// A CPU that runs models.
pub struct Cpu {
    pub(crate) set: InstructionSet,
    pub(crate) dispatch: Dispatch,
    pub(crate) arithmetic: Arithmetic,
    pub(crate) threads: Threads,
    pub(crate) matmul_scratch: Spare<MatmulScratch>,
    pub(crate) expert_scratch: Spare<ExpertScratch>,
    pub(crate) attention_scratch: Spare<AttentionScratch>,
    pub(crate) attend_all_scratch: Spare<attend_all::Scratch>,
}

impl Cpu {
    /// A CPU with the best instructions it has and [`Arithmetic::Fast`]. `None`
    /// threads means as many as the process may run at once.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let available = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Self::with_instruction_set(threads.unwrap_or_else(available), InstructionSet::detect())
    }

    /// A CPU with given instructions, for tests and comparisons.
    pub fn with_instruction_set(threads: usize, set: InstructionSet) -> Result<Self> {
        let dispatch = Dispatch::checked(set)?;
        Ok(Self {
            set,
            dispatch,
            arithmetic: Arithmetic::default(),
            threads: Threads::new(threads)?,
            matmul_scratch: Spare::default(),
            expert_scratch: Spare::default(),
            attention_scratch: Spare::default(),
            attend_all_scratch: Spare::default(),
        })
    }

    /// The same CPU with another arithmetic.
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// How products are computed.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// What experts are computed with.
    pub(crate) fn how(&self) -> (Dispatch, Arithmetic, &Threads) {
        (self.dispatch, self.arithmetic, &self.threads)
    }

    /// A name for the results, bit by bit: the same name, the same bits. The system's
    /// trigonometric functions, which angles come from, may differ between architectures.
    pub fn numerics(&self) -> String {
        format!("cpu {} {} {}", crate::NUMERICS, self.arithmetic, std::env::consts::ARCH)
    }

    /// The instructions in use.
    pub fn instruction_set(&self) -> InstructionSet {
        self.set
    }

    /// The number of threads.
    pub fn num_threads(&self) -> usize {
        self.threads.count()
    }
}
