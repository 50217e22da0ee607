//! Choosing tokens on the device: `sample.cu`. Only their numbers come back.

use std::sync::Arc;

use llama4rs_tensor::check::require;
use llama4rs_tensor::{Draw, Result};

use crate::arguments::{arguments, Arguments};
use crate::cuda::{Cuda, Launch};
use crate::kernels::SAMPLE;
use crate::memory::Buffer;
use crate::tensor::Tensor;

/// Blocks that share a row of `argmax_parts`.
const PARTS: usize = 32;
/// Widest rows of logits: sums of that many 2^40 fit in 64 bits.
const MOST_TOKENS: usize = 1 << 23;

/// Tokens that the device chose, one for each row of logits.
pub struct Tokens(pub(crate) Buffer<u32>);

impl Cuda {
    fn launch_sample(
        &self,
        kernel: &'static str,
        blocks: [usize; 2],
        threads: u32,
        all: &impl Arguments,
    ) -> Result<()> {
        let [x, y] = blocks;
        let blocks = [x, y, 1];
        self.launch(
            Launch { source: &SAMPLE, kernel, constants: &[], shared: 0, blocks, threads },
            all,
        )
    }

    /// [`llama4rs_tensor::Backend::choose`].
    pub(crate) fn run_choose(&self, logits: &Tensor, draws: &[Draw]) -> Result<Tokens> {
        let rows = logits.rows();
        let expected = || format!("{rows} draws");
        require(draws.len() == rows, "choose", expected, || draws.len().to_string())?;
        let wrong = draws.iter().find(|draw| !draw.is_valid());
        let expected = || "temperature >= 0, top_p in (0, 1], min_p in [0, 1]".to_owned();
        require(wrong.is_none(), "choose", expected, || format!("{wrong:?}"))?;
        let greedy = draws.iter().all(|draw| draw.temperature == 0.0);
        let options = if greedy { None } else { Some(self.draws(draws)?) };
        self.launch_choose(logits, options.as_deref()).map(Tokens)
    }

    /// Options on the device.
    pub(crate) fn draws(&self, draws: &[Draw]) -> Result<Arc<Buffer<u32>>> {
        let words = draws.iter().flat_map(|draw| {
            let powers = if draw.temperature == 0.0 { 0.0 } else { draw.powers_of_two() };
            let [a, b, c] = [powers, draw.top_p, draw.min_p].map(f32::to_bits);
            [draw.random as u32, (draw.random >> 32) as u32, a, b, c, draw.top_k]
        });
        self.list("draws", &words.collect::<Vec<u32>>())
    }

    /// The tokens of all rows, drawn if there are [draws](Self::draws); they stay on the device.
    pub(crate) fn launch_choose(
        &self,
        logits: &Tensor,
        draws: Option<&Buffer<u32>>,
    ) -> Result<Buffer<u32>> {
        let (rows, vocab) = (logits.rows(), logits.cols());
        let fits = (1..MOST_TOKENS).contains(&vocab) || rows == 0;
        let expected = || format!("1 to {MOST_TOKENS} logits a row");
        require(fits, "choose", expected, || vocab.to_string())?;
        let tokens = Buffer::<u32>::result(&self.gpu, rows, "sampling")?;
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
