//! Products of warpgroups, Hopper's: `matmul_wgmma.cu`, and the check that they may be used.
//!
//! A row's bits must not depend on the kernel, so `wgmma` must add exactly as `mma` does. Nothing documents that it
//! does: each device is asked.

use std::fmt;
use std::path::PathBuf;

use llama4rs_tensor::format::DEFAULT_GROUP;
use llama4rs_tensor::{Error, Result, WeightFormat};

use super::products::{Finish, Input, Job};
use super::shapes::Shape;
use crate::arguments::arguments;
use crate::cuda::{Cuda, Launch};
use crate::driver::DeviceInfo;
use crate::fragments::{Fragments, TILE_COLS};
use crate::kernels::ORDER_STEPS;
use crate::memory::Buffer;
use crate::tensor::Matrix;

/// The environment variable that, set to `0`, keeps to `mma`.
const WGMMA: &str = "LLAMA4RS_CUDA_WGMMA";
/// The architecture that has these products.
const HOPPER: u32 = 9;
/// The format of the check: the default, whose kernels most models need anyway.
const CHECKED_FORMAT: WeightFormat = WeightFormat::Int4 { group: DEFAULT_GROUP };
/// Outputs, inputs and rows of the check: one tile with all of its tokens and one with half of them.
const CHECKED: [usize; 3] = [256, 512, 192];

/// Which instruction the products of prompts are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptProducts {
    /// `wgmma`, which has the bits of `mma`.
    Warpgroups,
    /// `mma`, and why not `wgmma`.
    Warps(String),
}

impl Default for PromptProducts {
    fn default() -> Self {
        PromptProducts::Warps("wgmma was not asked for".to_owned())
    }
}

impl fmt::Display for PromptProducts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PromptProducts::Warpgroups => write!(f, "wgmma (checked: the bits of mma)"),
            PromptProducts::Warps(why) => write!(f, "mma ({why})"),
        }
    }
}

impl PromptProducts {
    /// What a device would use for `fast` arithmetic; one that may have `wgmma` is opened for the check.
    pub fn of(info: &DeviceInfo, nvrtc_folders: &[PathBuf]) -> Self {
        if let Some(why) = unavailable(info) {
            return PromptProducts::Warps(why);
        }
        Cuda::open(info.ordinal, nvrtc_folders)
            .and_then(|cuda| cuda.check_warpgroups())
            .unwrap_or_else(|error| {
                PromptProducts::Warps(format!("the device cannot be opened: {error}"))
            })
    }

    pub(crate) fn by_warpgroups(&self) -> bool {
        *self == PromptProducts::Warpgroups
    }
}

/// Why a device's `wgmma` is not even tried.
fn unavailable(info: &DeviceInfo) -> Option<String> {
    let (major, minor) = info.capability;
    if major != HOPPER {
        return Some(format!("compute capability {major}.{minor} has no wgmma"));
    }
    let off = std::env::var_os(WGMMA).is_some_and(|value| value == "0");
    off.then(|| format!("{WGMMA}=0"))
}

impl Cuda {
    /// Whether this device's `wgmma` may be used.
    ///
    /// # Errors
    /// When it has failed in a way after which the device takes no more work.
    pub(crate) fn check_warpgroups(&self) -> Result<PromptProducts> {
        if let Some(why) = unavailable(self.info()) {
            return Ok(PromptProducts::Warps(why));
        }
        Ok(PromptProducts::Warps(match self.differing_warpgroups() {
            Ok(0) => return Ok(PromptProducts::Warpgroups),
            Ok(count) => {
                let all = CHECKED[0] * CHECKED[2];
                format!("wgmma adds in another way here: {count} of {all} results differ")
            }
            Err(error) => {
                let why = format!("wgmma fails: {error}; {WGMMA}=0 keeps it from being tried");
                self.synchronize().map_err(|_| Error::Device(why.clone()))?;
                why
            }
        }))
    }

    /// What to tell the user of a device that has `wgmma` and may not use it.
    pub fn prompt_warning(&self) -> Option<String> {
        match &self.prompt_products {
            PromptProducts::Warps(why) if unavailable(self.info()).is_none() => {
                Some(format!("prompts take longer than they could on {}: {why}", self.info().name))
            }
            _ => None,
        }
    }

    /// How many products of a random matrix differ in a bit between `wgmma` and `mma`. Activations have a wide range of
    /// exponents, so that what is lost in a sum depends on the order of its terms.
    fn differing_warpgroups(&self) -> Result<usize> {
        let [rows, cols, tokens] = CHECKED;
        let format = CHECKED_FORMAT;
        let panels = Buffer::new(&self.gpu, 0, "the check of wgmma")?;
        let fragments = Fragments::new(&self.gpu, Fragments::sizes(format, rows, cols), 1)?;
        let mut weights =
            Matrix { format, stack: 1, rows, cols, panels, fragments: Some(fragments) };
        self.expect_check(&weights);

        let mut random = Values(1);
        if let Some(fragments) = &mut weights.fragments {
            let codes: Vec<u8> = (0..fragments.codes.len()).map(|_| random.next() as u8).collect();
            fragments.codes.write(&codes)?;
            let pair = |_| u32::from(random.next()) << 16 | u32::from(random.next());
            let scales: Vec<u32> = (0..fragments.scales.len()).map(pair).collect();
            fragments.scales.write(&scales)?;
            self.gpu.note_weights();
        }
        let x: Vec<u16> = (0..tokens * cols).map(|_| random.next()).collect();
        let x = Buffer::of(&self.gpu, &x, "the check of wgmma")?;
        let weights = &weights;
        let input = Input { x: x.address(), norm: None, rows: tokens, cols, routed: None };
        let products = |shape: Shape| -> Result<Vec<f32>> {
            let out = Buffer::<f32>::new(&self.gpu, tokens * rows, "the check of wgmma")?;
            let job = Job { weights, up: None, out: out.address(), routed: false, first_row: 0 };
            self.launch_products(shape, &input, &[job], Finish::F32)?;
            out.read(0, tokens * rows)
        };
        let (expected, got) = (products(Shape::Tile128)?, products(Shape::Wgmma128)?);
        let pairs = expected.iter().zip(&got);
        Ok(pairs.filter(|(expected, got)| expected.to_bits() != got.to_bits()).count())
    }

    /// The rows of `x` that some jobs need, as `matmul_wgmma.cu` reads them.
    pub(crate) fn in_step_order(&self, input: &Input<'_>, jobs: &[Job<'_>]) -> Result<Buffer<u16>> {
        let rows_of = |job: &Job<'_>| match &input.routed {
            Some(routed) if job.routed => routed.tiles.order.len() / routed.divisor,
            _ => input.rows,
        };
        let rows = jobs.iter().map(|job| job.first_row + rows_of(job)).max().unwrap_or(0);
        let tiles = input.cols.div_ceil(TILE_COLS);
        let ordered = Buffer::new(&self.gpu, rows * tiles * TILE_COLS, "activations")?;
        let count = rows * tiles * TILE_COLS / 32;
        let launch = Launch {
            source: &ORDER_STEPS,
            kernel: "order_steps",
            constants: &[],
            shared: 0,
            blocks: [count.div_ceil(256), 1, 1],
            threads: 256,
        };
        self.launch(launch, &arguments![&ordered, input.x, input.cols, tiles, count as u64])?;
        Ok(ordered)
    }
}

/// Random bf16 of few bits over a wide range of exponents: sums of these cancel often, wholly or in part.
struct Values(u64);

impl Values {
    fn next(&mut self) -> u16 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        let exponent = match bits >> 8 & 7 {
            0 => 127 - 24 + (bits >> 11) % 48,
            1..=3 => 127,
            _ => 127 - 4 + (bits >> 11) % 8,
        };
        let mantissa = if bits >> 17 & 3 == 0 { bits >> 19 & 0x7F } else { bits >> 19 & 0x60 };
        ((bits & 1) << 15 | exponent << 7 | mantissa) as u16
    }
}
