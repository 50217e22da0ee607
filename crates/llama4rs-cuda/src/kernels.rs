//! The kernels' sources, and the code that was made of them.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use llama4rs_tensor::Result;

use crate::compiler::Compiler;
use crate::gpu::Gpu;
use crate::module::{Kernel, Module};
use crate::nvrtc::{Architecture, Compiled, Nvrtc};

const PRELUDE: &str = include_str!("../kernels/prelude.cuh");

/// One file of kernels, and the constants that it is compiled with.
#[derive(Clone, Copy, Debug)]
pub struct KernelSource {
    /// The file's name.
    pub name: &'static str,
    /// What the file is compiled behind, after the prelude: names and texts.
    headers: &'static [(&'static str, &'static str)],
    text: &'static str,
    /// Constants `(name, value)` that the tests and the resource budget use; a
    /// launch brings its own.
    pub examples: &'static [&'static [(&'static str, u32)]],
}

/// Files of `kernels/`, each with its headers and the constants that its examples are compiled with.
macro_rules! sources {
    ($($constant:ident = $name:literal $(after [$($header:literal),*])?, $examples:expr;)*) => {
        $(pub(crate) static $constant: KernelSource = KernelSource {
            name: $name,
            headers: &[$($(($header, include_str!(concat!("../kernels/", $header)))),*)?],
            text: include_str!(concat!("../kernels/", $name)),
            examples: $examples,
        };)*

        /// Every file of kernels.
        pub fn all_kernels() -> &'static [&'static KernelSource] {
            static ALL: &[&KernelSource] = &[$(&$constant),*];
            ALL
        }
    };
}

sources! {
    ROWS = "rows.cu", &[&[]];
    NORM = "norm.cu", &[&[]];
    EMBED = "embed.cu", &[&[("FORMAT", 3), ("GROUP", 64)]];
    MATMUL_EXACT = "matmul_exact.cu", &[
        &[("FORMAT", 0), ("GROUP", 0), ("TOKENS", 8), ("VECTOR", 1)],
        &[("FORMAT", 1), ("GROUP", 0), ("TOKENS", 8), ("VECTOR", 1)],
        &[("FORMAT", 2), ("GROUP", 64), ("TOKENS", 8), ("VECTOR", 1)],
        &[("FORMAT", 3), ("GROUP", 64), ("TOKENS", 1), ("VECTOR", 1)],
        &[("FORMAT", 3), ("GROUP", 128), ("TOKENS", 8), ("VECTOR", 1)],
    ];
    EXPERTS = "experts.cu", &[&[]];
    KV_PAGES = "kv_pages.cu", &[
        &[("HEAD_DIM", 128), ("KV_HEADS", 8), ("PAGE_TOKENS", 64), ("KV_BF16", 1), ("CODE_BITS", 4)],
    ];
    REPACK = "repack.cu" after ["fragments.cuh"], &[&[]];
    EMBED_FRAGMENTS = "embed_fragments.cu" after ["fragments.cuh"], &[
        &[("FORMAT", 1), ("GROUP", 0)],
        &[("FORMAT", 2), ("GROUP", 64)],
        &[("FORMAT", 3), ("GROUP", 32)],
    ];
    MATMUL_DECODE = "matmul_decode.cu" after ["fragments.cuh", "norm.cuh", "residual.cuh", "matmul.cuh"], &[
        &[("FORMAT", 1), ("GROUP", 0), ("FINISH", 2), ("ROW_PANELS", 2)],
        &[("FORMAT", 2), ("GROUP", 64), ("FINISH", 0), ("ROW_PANELS", 1)],
        &[("FORMAT", 3), ("GROUP", 32), ("FINISH", 2), ("ROW_PANELS", 2)],
        &[("FORMAT", 3), ("GROUP", 64), ("FINISH", 0), ("ROW_PANELS", 1)],
        &[("FORMAT", 3), ("GROUP", 64), ("FINISH", 2), ("ROW_PANELS", 2)],
        &[("FORMAT", 3), ("GROUP", 128), ("FINISH", 0), ("ROW_PANELS", 1)],
        &[("FORMAT", 3), ("GROUP", 128), ("FINISH", 2), ("ROW_PANELS", 2)],
        &[("FORMAT", 2), ("GROUP", 128), ("FINISH", 3), ("ROW_PANELS", 1)],
        &[("FORMAT", 3), ("GROUP", 64), ("FINISH", 3), ("ROW_PANELS", 1)],
        &[("FORMAT", 3), ("GROUP", 128), ("FINISH", 3), ("ROW_PANELS", 1)],
    ];
    MATMUL_TILE = "matmul_tile.cu" after ["fragments.cuh", "norm.cuh", "residual.cuh", "matmul.cuh"], &[
        &[("FORMAT", 1), ("GROUP", 0), ("FINISH", 0)],
        &[("FORMAT", 2), ("GROUP", 64), ("FINISH", 2)],
        &[("FORMAT", 3), ("GROUP", 32), ("FINISH", 2)],
        &[("FORMAT", 3), ("GROUP", 64), ("FINISH", 0)],
        &[("FORMAT", 3), ("GROUP", 128), ("FINISH", 2)],
    ];
    MATMUL_WGMMA = "matmul_wgmma.cu" after ["fragments.cuh", "norm.cuh", "residual.cuh", "matmul.cuh"], &[
        &[("FORMAT", 1), ("GROUP", 0), ("FINISH", 0)],
        &[("FORMAT", 2), ("GROUP", 64), ("FINISH", 2)],
        &[("FORMAT", 3), ("GROUP", 32), ("FINISH", 2)],
        &[("FORMAT", 3), ("GROUP", 64), ("FINISH", 0)],
        &[("FORMAT", 3), ("GROUP", 128), ("FINISH", 0)],
        &[("FORMAT", 3), ("GROUP", 128), ("FINISH", 2)],
    ];
    ORDER_STEPS = "order_steps.cu", &[&[]];
    ROUTE = "route.cu" after ["norm.cuh"], &[&[]];
    ATTENTION_DECODE = "attention_decode.cu" after ["attention.cuh"], &[
        &[("HEAD_DIM", 128), ("ROW_TILES", 1), ("SEALED_PAGES", 0)],
        &[("HEAD_DIM", 128), ("ROW_TILES", 1), ("SEALED_PAGES", 1)],
        &[("HEAD_DIM", 128), ("ROW_TILES", 2), ("SEALED_PAGES", 1)],
        &[("HEAD_DIM", 64), ("ROW_TILES", 1), ("SEALED_PAGES", 0)],
    ];
    ATTENTION_PREFILL = "attention_prefill.cu" after ["attention.cuh"], &[
        &[("HEAD_DIM", 128), ("SEALED_PAGES", 0), ("PREFILL", 0)],
        &[("HEAD_DIM", 128), ("SEALED_PAGES", 0), ("PREFILL", 1)],
        &[("HEAD_DIM", 128), ("SEALED_PAGES", 0), ("PREFILL", 2)],
        &[("HEAD_DIM", 128), ("SEALED_PAGES", 1), ("PREFILL", 0)],
        &[("HEAD_DIM", 128), ("SEALED_PAGES", 1), ("PREFILL", 1)],
        &[("HEAD_DIM", 128), ("SEALED_PAGES", 1), ("PREFILL", 2)],
    ];
    ROPE_CACHE = "rope_cache.cu", &[&[("HEAD_DIM", 128)]];
    RESIDUAL_NORM = "residual_norm.cu" after ["norm.cuh"], &[&[("WIDTH", 5120)]];
    SAMPLE = "sample.cu", &[&[]];
    FILL = "fill.cu", &[&[]];
    ATTENTION_EXACT = "attention_exact.cu", &[
        &[("HEAD_DIM", 128), ("GROUP_HEADS", 5), ("ROWS", 1), ("KV_BF16", 1), ("CODE_BITS", 0)],
        &[("HEAD_DIM", 128), ("GROUP_HEADS", 5), ("ROWS", 3), ("KV_BF16", 1), ("CODE_BITS", 8)],
        &[("HEAD_DIM", 88), ("GROUP_HEADS", 1), ("ROWS", 16), ("KV_BF16", 0), ("CODE_BITS", 0)],
    ];
}

/// Constants of one compilation.
pub(crate) type Constants = Vec<(&'static str, u32)>;

impl KernelSource {
    /// Compiles the file with some constants.
    pub fn compile(
        &self,
        nvrtc: &Nvrtc,
        architecture: &Architecture,
        constants: &[(&str, u32)],
    ) -> Result<Compiled> {
        nvrtc.compile(self.name, &self.full_text(), architecture, &options(architecture, constants))
    }

    /// Bytes of the file and its headers, which say roughly how long it takes to compile.
    pub(crate) fn source_bytes(&self) -> usize {
        self.text.len() + self.headers.iter().map(|(_, text)| text.len()).sum::<usize>()
    }

    pub(crate) fn full_text(&self) -> String {
        let mut text = PRELUDE.to_owned();
        for (name, part) in self.headers.iter().chain(&[(self.name, self.text)]) {
            text += &format!("\n#line 1 \"{name}\"\n{part}");
        }
        text
    }
}

pub(crate) fn options(architecture: &Architecture, constants: &[(&str, u32)]) -> Vec<String> {
    // 177: a header's constant that this file has no use for.
    // The execution space is that of lambdas with types for arguments.
    let always = [
        "--std=c++17",
        "--fmad=false",
        "--diag-suppress=177",
        "--device-as-default-execution-space",
    ];
    let mut options: Vec<String> = always.map(str::to_owned).to_vec();
    if matches!(architecture, Architecture::Binary(_)) {
        options.push("--ptxas-options=-v".to_owned());
    }
    options.extend(constants.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

/// The compiler, and what was loaded onto a device.
pub(crate) struct Library {
    compiler: Compiler,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<(&'static str, Constants), Module>,
    /// Few enough to be looked through, which needs no key.
    kernels: Vec<LoadedKernel>,
    unexpected: Vec<&'static str>,
}

struct LoadedKernel {
    file: &'static str,
    name: &'static str,
    constants: Constants,
    shared: usize,
    kernel: Kernel,
}

impl Library {
    pub fn new(nvrtc: Nvrtc, architecture: Architecture) -> Self {
        Self { compiler: Compiler::new(nvrtc, architecture), loaded: Mutex::default() }
    }

    /// The version of the compiler.
    pub fn compiler_version(&self) -> (u32, u32) {
        self.compiler.version()
    }

    /// A kernel of `source` compiled with `constants`, which may use `shared`
    /// bytes of dynamic shared memory; the first call compiles and loads.
    pub fn kernel(
        &self,
        gpu: &Gpu,
        source: &'static KernelSource,
        name: &'static str,
        constants: &[(&'static str, u32)],
        shared: usize,
    ) -> Result<Kernel> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let Loaded { modules, kernels, unexpected } = &mut *loaded;
        let known = kernels.iter().position(|known| {
            known.shared == shared
                && known.constants == constants
                && (known.name, known.file) == (name, source.name)
        });
        if let Some(known) = known {
            let kernel = kernels[known].kernel;
            // Those in use gather at the beginning.
            kernels.swap(known, known / 2);
            return Ok(kernel);
        }
        let module = match modules.entry((source.name, constants.to_vec())) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                if !self.compiler.expects(source, constants) {
                    unexpected.push(source.name);
                }
                let load = |code: Vec<u8>| Module::load(gpu, source.name, &code);
                let module = self.compiler.code(source, constants).and_then(load);
                // What was kept may be of no use to another driver.
                let again = |_| self.compiler.new_code(source, constants).and_then(load);
                entry.insert(module.or_else(again)?)
            }
        };
        let kernel = module.kernel(gpu, name, shared)?;
        let (file, constants) = (source.name, constants.to_vec());
        kernels.push(LoadedKernel { file, name, constants, shared, kernel });
        Ok(kernel)
    }

    /// Begins to compile a file of kernels that will be needed.
    pub fn expect(&self, source: &'static KernelSource, constants: &[(&'static str, u32)]) {
        self.compiler.expect(source, constants.to_vec());
    }

    /// Files of kernels that were loaded and not expected.
    pub fn unexpected(&self) -> Vec<&'static str> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.unexpected.clone()
    }

    /// Waits for what is expected; see [`Compiler::wait`].
    pub fn wait(&self, progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) {
        self.compiler.wait(progress);
    }

    /// Gives all code back to the driver.
    pub fn unload(&mut self) {
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(loaded).modules.into_values().for_each(Module::unload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_waits_for_the_launches_before_it() {
        for source in all_kernels() {
            let kernels = source.text.split("\nKERNEL").skip(1);
            for kernel in kernels {
                let body = kernel.split_once(") {").map(|(_, body)| body.trim_start());
                // The products of few rows wait once their first weights are on their way.
                let first = ["begin_launch();", "matmul_decode<"];
                let waits = body.is_some_and(|body| first.iter().any(|it| body.starts_with(it)));
                assert!(waits, "{}: KERNEL{}", source.name, kernel.lines().next().unwrap_or(""));
            }
        }
    }
}
