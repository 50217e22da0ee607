//! Choosing tokens on the device: `sample.cu`. Only their numbers come back.

use llama4rs_tensor::check::require;
use llama4rs_tensor::Result;

use crate::cuda::{Cuda, Launch};
use crate::kernels::SAMPLE;
use crate::memory::Buffer;
use crate::module::{arguments, Argument};
use crate::tensor::Tensor;

/// Blocks that share a row of `argmax_parts`.
const PARTS: usize = 32;
/// Widest rows of logits: sums of that many 2^40 fit in 64 bits.
const MOST_TOKENS: usize = 1 << 23;

/// How one row's token is drawn; the meaning of the fields is that of the engine's sampling options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 64 random bits.
    pub random: u64,
    /// Above zero: logits are divided by it.
    pub temperature: f32,
    /// Mass that is kept; 1 keeps all.
    pub top_p: f32,
    /// Least share of the best token's probability.
    pub min_p: f32,
    /// Tokens that are kept; 0 keeps all.
    pub top_k: u32,
}

impl Cuda {
    fn launch_sample(
        &self,
        kernel: &'static str,
        blocks: [usize; 2],
        threads: u32,
        all: &[Argument],
    ) -> Result<()> {
        let [x, y] = blocks;
        let blocks = [x, y, 1];
        self.launch(
            Launch { source: &SAMPLE, kernel, constants: &[], shared: 0, blocks, threads },
            all,
        )
    }

    /// The largest logit of each row, the lowest token of equal ones; values that are no numbers never win.
    ///
    /// # Errors
    /// On device failures.
    pub fn argmax(&self, logits: &Tensor) -> Result<Vec<u32>> {
        self.choose(logits, None)?.read(0, logits.rows())
    }

    /// Draws a token from each row's truncated distribution, `draws[i]` for row `i`.
    ///
    /// The distribution is that of the engine's sampler. The draw takes the kept
    /// tokens by number, so it is a function of the row and `draws[i]` alone.
    ///
    /// # Errors
    /// On options out of range, a number of draws that is not that of rows, and device failures.
    pub fn sample(&self, logits: &Tensor, draws: &[Draw]) -> Result<Vec<u32>> {
        let rows = logits.rows();
        let expected = || format!("{rows} draws");
        require(draws.len() == rows, "sample", expected, || draws.len().to_string())?;
        self.choose(logits, Some(&self.draws(draws)?))?.read(0, rows)
    }

    /// Options on the device, checked.
    pub(crate) fn draws(&self, draws: &[Draw]) -> Result<Buffer<u32>> {
        let in_range = |draw: &&Draw| {
            draw.temperature > 0.0
                && draw.temperature.is_finite()
                && draw.top_p > 0.0
                && draw.top_p <= 1.0
                && (0.0..=1.0).contains(&draw.min_p)
        };
        let wrong = draws.iter().find(|draw| !in_range(draw));
        let expected = || "temperature > 0, top_p in (0, 1], min_p in [0, 1]".to_owned();
        require(wrong.is_none(), "sample", expected, || format!("{wrong:?}"))?;
        let words = draws.iter().flat_map(|draw| {
            let Draw { random, temperature, top_p, min_p, top_k } = *draw;
            let [a, b, c] = [temperature, top_p, min_p].map(f32::to_bits);
            [random as u32, (random >> 32) as u32, a, b, c, top_k]
        });
        Buffer::of(&self.gpu, &words.collect::<Vec<u32>>(), "sampling")
    }

    /// The tokens of all rows, drawn if there are [draws](Self::draws); they stay on the device.
    pub(crate) fn choose(
        &self,
        logits: &Tensor,
        draws: Option<&Buffer<u32>>,
    ) -> Result<Buffer<u32>> {
        let (rows, vocab) = (logits.rows(), logits.cols());
        let fits = (1..MOST_TOKENS).contains(&vocab) || rows == 0;
        let expected = || format!("1 to {MOST_TOKENS} logits a row");
        require(fits, "sample", expected, || vocab.to_string())?;
        let tokens = Buffer::<u32>::new(&self.gpu, rows, "sampling")?;
        match draws {
            Some(options) => {
                let all = arguments![logits.address(), options, &tokens, vocab];
                self.launch_sample("sample", [rows, 1], 1024, &all)?;
            }
            None => {
                let parts = Buffer::<u32>::new(&self.gpu, rows * PARTS * 2, "sampling")?;
                let all = arguments![logits.address(), &parts, vocab];
                self.launch_sample("argmax_parts", [PARTS, rows], 256, &all)?;
                self.launch_sample("argmax", [rows, 1], 32, &arguments![&parts, &tokens])?;
            }
        }
        Ok(tokens)
    }
}
