//! One opened device: its context, its stream, what was loaded onto it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};
use llama4rs_tensor::{Error, Result};

use crate::driver::{devices, driver_version, DeviceInfo, OLDEST_ARCHITECTURE};
use crate::error::{device, During};
use crate::kernels::Library;
use crate::memory::FreeMemory;
use crate::nvrtc::{Architecture, Nvrtc};
use crate::step::Steps;
use crate::upload::Staging;

/// The environment variable that, set to `0`, has every launch begin after the one before it has ended.
const EARLY: &str = "LLAMA4RS_CUDA_PDL";
/// What knows launches that begin early: Hopper, and drivers that put them into graphs.
const EARLY_ARCHITECTURE: (u32, u32) = (9, 0);
const EARLY_DRIVER: (u32, u32) = (12, 3);

/// Whether launches on a device shall begin early.
fn launches_early(info: &DeviceInfo) -> Result<bool> {
    let wanted = std::env::var_os(EARLY).is_none_or(|value| value != "0");
    Ok(wanted && info.capability >= EARLY_ARCHITECTURE && driver_version()? >= EARLY_DRIVER)
}

/// A device that is in use.
pub(crate) struct Gpu {
    pub info: DeviceInfo,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Where graphs are captured; nothing runs on it.
    capture_stream: sys::CUstream,
    pub free: Mutex<FreeMemory>,
    pub staging: Mutex<Option<Staging>>,
    /// `None` while a thread has a step under way.
    pub steps: Mutex<Option<Box<Steps>>>,
    /// Memory that lasts has moved since graphs were last used.
    pub memory_moved: AtomicBool,
    pub library: Library,
    /// Whether launches may begin while those before them drain.
    pub programmatic: AtomicBool,
    /// Why that was given up, until somebody asks.
    programmatic_failed: Mutex<Option<Error>>,
    /// How often weights were queued to be written, and how many of these times have been waited for.
    weights_queued: AtomicU64,
    weights_written: AtomicU64,
}

// SAFETY: contexts and streams may be used by any thread that makes the context
// current, which `bind` does.
unsafe impl Send for Gpu {}
// SAFETY: the driver's calls on a stream are thread-safe.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens device `ordinal` and loads the compiler, looking into `nvrtc_folders` first.
    pub fn open(ordinal: usize, nvrtc_folders: &[std::path::PathBuf]) -> Result<Arc<Self>> {
        let all = devices()?;
        let count = all.len();
        let info = all.into_iter().nth(ordinal).ok_or_else(|| {
            device(format!("there is no CUDA device {ordinal}: this machine has {count}"))
        })?;
        if info.capability < OLDEST_ARCHITECTURE {
            return Err(device(format!(
                "{} has compute capability {}.{}, and {}.{} (Ampere) is needed",
                info.name,
                info.capability.0,
                info.capability.1,
                OLDEST_ARCHITECTURE.0,
                OLDEST_ARCHITECTURE.1
            )));
        }
        let nvrtc = Nvrtc::load(nvrtc_folders)?;
        nvrtc.check_driver(driver_version()?)?;
        let architecture = Architecture::of(&info);
        let handle = result::device::get(ordinal as i32).during("open the device")?;
        // SAFETY: `handle` came from the driver; released in `drop`.
        let context =
            unsafe { result::primary_ctx::retain(handle) }.during("make the device's context")?;
        // SAFETY: the context was just retained.
        let streams = unsafe { result::ctx::set_current(context) }
            .and_then(|()| {
                let stream = || result::stream::create(result::stream::StreamKind::NonBlocking);
                Ok([stream()?, stream()?])
            })
            .during("make a stream");
        let [stream, capture_stream] = match streams {
            Ok(streams) => streams,
            Err(error) => {
                // SAFETY: retained above; nothing uses it. A failure has nobody to be told.
                let _ = unsafe { result::primary_ctx::release(handle) };
                return Err(error);
            }
        };
        let programmatic = AtomicBool::new(launches_early(&info)?);
        Ok(Arc::new(Self {
            programmatic,
            programmatic_failed: Mutex::default(),
            weights_queued: AtomicU64::default(),
            weights_written: AtomicU64::default(),
            info,
            handle,
            context,
            stream,
            capture_stream,
            free: Mutex::default(),
            staging: Mutex::default(),
            steps: Mutex::new(Some(Box::default())),
            memory_moved: AtomicBool::new(false),
            library: Library::new(nvrtc, architecture),
        }))
    }

    /// Makes the device's context the calling thread's; every call to the driver needs it.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.during("use the device's context")
    }

    /// The stream of all work.
    pub fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// A stream to capture graphs with.
    pub fn capture_stream(&self) -> sys::CUstream {
        self.capture_stream
    }

    /// Whether a launch on `stream` may begin while the one before it drains.
    ///
    /// Products read weights before they wait for that one (`kernels/matmul_decode.cu`), which must not be what
    /// writes them: so not before the host has waited for all weights. What is captured runs as a
    /// graph, which begins after all that was queued before.
    pub fn may_begin_early(&self, stream: sys::CUstream) -> bool {
        let are_written = || {
            let queued = self.weights_queued.load(Ordering::Acquire);
            self.weights_written.load(Ordering::Acquire) >= queued
        };
        self.programmatic.load(Ordering::Relaxed)
            && (stream == self.capture_stream || are_written())
    }

    /// What writes weights has been queued, and nothing yet that reads them.
    pub fn note_weights(&self) {
        self.weights_queued.fetch_add(1, Ordering::AcqRel);
    }

    /// Waits for what was queued on the stream.
    pub fn wait_for_stream(&self) -> Result<()> {
        self.bind()?;
        // Those that are queued while this waits may be under way still.
        let queued = self.weights_queued.load(Ordering::Acquire);
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.during("finish its work")?;
        self.weights_written.fetch_max(queued, Ordering::AcqRel);
        Ok(())
    }

    /// Launches begin after those before them from now on.
    pub fn end_programmatic(&self, reason: Error) {
        self.programmatic.store(false, Ordering::Relaxed);
        *self.programmatic_failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Why launches do not begin early any more, once.
    pub fn take_programmatic_failure(&self) -> Option<Error> {
        self.programmatic_failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Memory that nobody uses.
    pub fn free_memory(&self) -> MutexGuard<'_, FreeMemory> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free and total bytes of the device's memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        result::mem_get_info().during("read how much memory is free")
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let finished = self.synchronize();
        self.staging.get_mut().unwrap_or_else(|p| p.into_inner()).take();
        self.release_steps();
        self.free.get_mut().unwrap_or_else(|p| p.into_inner()).release();
        self.library.unload();
        // A stream or context that cannot be given back has nobody to be told.
        if finished.is_ok() {
            for stream in [self.stream, self.capture_stream] {
                // SAFETY: created in `open`, used by nobody else any more.
                let _ = unsafe { result::stream::destroy(stream) };
            }
        }
        // SAFETY: retained in `open`.
        let _ = unsafe { result::primary_ctx::release(self.handle) };
    }
}
