//! The device as the model sees it.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::Result;

use crate::arguments::Arguments;
use crate::gpu::Gpu;
use crate::kernels::KernelSource;
use crate::memory::Buffer;
use crate::ops::residual::MOST_WIDTH;
use crate::ops::warpgroups::PromptProducts;
use crate::upload::Uploads;
use crate::DeviceInfo;

/// Words that a growing list has room for.
const LEAST_ROOM: usize = 64;
/// At least one for each panel of the widest residual stream. Attention takes one for each row and key/value head,
/// in several launches if these are more.
pub(crate) const TICKETS: usize = 4 * MOST_WIDTH / PANEL_ROWS;
/// The environment variable that, set to `0`, has every kernel launched on its own.
const GRAPHS: &str = "LLAMA4RS_CUDA_GRAPHS";

/// A GPU that runs models.
pub struct Cuda {
    pub(crate) gpu: Arc<Gpu>,
    /// Whether products and attention use tensor cores.
    pub(crate) tensor_cores: bool,
    /// Whether small steps are submitted as graphs.
    pub(crate) graphs: bool,
    /// Zeros with which blocks of a launch find out who is the last (`is_last_block` of the prelude). Launches
    /// come one after the other, and each leaves them as zeros; what is recorded and never submitted does
    /// not touch them.
    pub(crate) tickets: Buffer<u32>,
    pub(crate) prompt_products: PromptProducts,
    uploads: Mutex<Uploads>,
}

/// How a kernel is compiled and launched.
pub(crate) struct Launch<'a> {
    pub source: &'static KernelSource,
    pub kernel: &'static str,
    pub constants: &'a [(&'static str, u32)],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    pub blocks: [usize; 3],
    pub threads: u32,
}

impl Cuda {
    /// Opens device `ordinal`. NVRTC is looked for in `nvrtc_folders` before the
    /// system's folders.
    ///
    /// # Errors
    /// Without a driver, a device or NVRTC, or when one of them is too old.
    pub fn open(ordinal: usize, nvrtc_folders: &[PathBuf]) -> Result<Self> {
        let gpu = Gpu::open(ordinal, nvrtc_folders)?;
        let graphs = std::env::var_os(GRAPHS).is_none_or(|value| value != "0");
        let mut tickets = Buffer::lasting(&gpu, TICKETS, "tickets")?;
        tickets.clear()?;
        let prompt_products = PromptProducts::default();
        let uploads = Mutex::default();
        Ok(Self { gpu, tensor_cores: false, graphs, tickets, prompt_products, uploads })
    }

    /// The same device with tensor cores for products and attention, or without.
    ///
    /// With them activations are rounded to bf16 on their way into products with
    /// `bf16`, `int8` and `int4` weights and into attention over bf16 and int8
    /// pages; sums stay in single precision. Matrices that were brought to the
    /// device before keep their order.
    ///
    /// On Hopper the products of prompts are `wgmma`'s, if a check now finds that these have the bits of
    /// `mma`'s; [`Cuda::prompt_products`] says what was found.
    ///
    /// # Errors
    /// When the check leaves the device unusable.
    pub fn with_tensor_cores(self, tensor_cores: bool) -> Result<Self> {
        let prompt_products = match tensor_cores {
            true => self.check_warpgroups()?,
            false => PromptProducts::default(),
        };
        Ok(Self { tensor_cores, prompt_products, ..self })
    }

    /// The same device with the products of prompts by `mma`. The bits are the same.
    pub fn without_warpgroups(self) -> Self {
        Self { prompt_products: PromptProducts::default(), ..self }
    }

    /// Which instruction the products of prompts are made of, and why.
    pub fn prompt_products(&self) -> &PromptProducts {
        &self.prompt_products
    }

    /// The same device with small steps submitted as graphs, or launch by launch. The bits are the same.
    pub fn with_graphs(self, graphs: bool) -> Self {
        Self { graphs, ..self }
    }

    /// The same device with launches that begin while those before them drain, where it can (from Hopper on), or
    /// without. The bits are the same.
    pub fn with_early_launches(self, early: bool) -> Self {
        if !early {
            self.gpu.programmatic.store(false, Ordering::Relaxed);
        }
        self
    }

    /// A name for the results, bit by bit: the same name, the same bits. Functions
    /// that the device approximates may differ between architectures, code between
    /// compilers.
    pub fn numerics(&self) -> String {
        let (major, minor) = self.info().capability;
        let arithmetic = if self.tensor_cores { "fast" } else { "exact" };
        let compiler = self.gpu.library.compiler_version();
        format!("cuda {} {arithmetic} {major}.{minor} {compiler:?}", crate::NUMERICS)
    }

    /// What the driver says about the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.gpu.info
    }

    /// Free and total bytes of the device's memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.gpu.memory()
    }

    /// Waits for all work; an error of an earlier kernel comes out here.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu.synchronize()
    }

    /// Files of kernels that were compiled when they were needed: nobody [expected](llama4rs_tensor::Backend::expect)
    /// them.
    pub fn unexpected_kernels(&self) -> Vec<&'static str> {
        self.gpu.library.unexpected()
    }

    /// Queues a kernel.
    pub(crate) fn launch(&self, launch: Launch<'_>, arguments: &impl Arguments) -> Result<()> {
        match launch.blocks.contains(&0) {
            true => Ok(()),
            false => self.gpu.launch(&launch, arguments.packed()),
        }
    }

    /// A list on the device, where it lasts until the next step begins. `name` says which of a step's
    /// lists it is; all layers bring that of a pool again.
    pub(crate) fn list(&self, name: &'static str, list: &[u32]) -> Result<Arc<Buffer<u32>>> {
        self.growing_list(name, list, 0)
    }

    /// A list of which the part behind its first `fixed` values grows with the text: it has room for more,
    /// so that it seldom moves those behind it.
    pub(crate) fn growing_list(
        &self,
        name: &'static str,
        list: &[u32],
        fixed: usize,
    ) -> Result<Arc<Buffer<u32>>> {
        let room = fixed + (list.len() - fixed).next_power_of_two().max(LEAST_ROOM);
        if let Some(input) = Buffer::input(&self.gpu, name, list, room, true) {
            return Ok(Arc::new(input));
        }
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).get(&self.gpu, list)
    }
}
