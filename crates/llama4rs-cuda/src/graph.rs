//! Launches that wait for each other: recorded, compared with earlier ones, made into CUDA graphs.

use std::ffi::c_void;
use std::ops::Range;

use cudarc::driver::{result, sys};
use llama4rs_tensor::{Error, Result};

use crate::error::During;
use crate::gpu::Gpu;
use crate::module::{Argument, Kernel};

/// Launches in order, with the bytes of their arguments.
#[derive(Default, PartialEq)]
pub(crate) struct Recording {
    launches: Vec<Recorded>,
    /// Where each argument begins in `words`.
    arguments: Vec<u32>,
    words: Vec<u64>,
}

#[derive(PartialEq)]
struct Recorded {
    kernel: Kernel,
    blocks: [usize; 3],
    threads: u32,
    arguments: Range<usize>,
}

impl Recording {
    pub fn clear(&mut self) {
        self.launches.clear();
        self.arguments.clear();
        self.words.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.launches.is_empty()
    }

    pub fn push(
        &mut self,
        kernel: Kernel,
        blocks: [usize; 3],
        threads: u32,
        arguments: &[Argument],
    ) {
        let first = self.arguments.len();
        for argument in arguments {
            self.arguments.push(self.words.len() as u32);
            self.words.extend_from_slice(argument.words());
        }
        let arguments = first..self.arguments.len();
        self.launches.push(Recorded { kernel, blocks, threads, arguments });
    }

    /// Queues all launches on a stream.
    pub fn submit(&self, gpu: &Gpu, stream: sys::CUstream) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = Vec::new();
        self.launches.iter().try_for_each(|launch| {
            pointers.clear();
            pointers.extend(
                self.arguments[launch.arguments.clone()]
                    .iter()
                    .map(|&at| std::ptr::from_ref(&self.words[at as usize]).cast_mut().cast()),
            );
            launch.kernel.launch_on(gpu, stream, launch.blocks, launch.threads, &mut pointers)
        })
    }
}

/// A graph that can be launched.
pub(crate) struct Executable(sys::CUgraphExec);

// SAFETY: a graph's handle may be used by any thread with the context current.
unsafe impl Send for Executable {}

impl Executable {
    /// Makes a graph of what `record` launches on `stream`, which nobody else uses meanwhile. Nothing runs.
    pub fn capture(
        gpu: &Gpu,
        stream: sys::CUstream,
        record: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        gpu.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the device.
        unsafe { result::stream::begin_capture(stream, mode) }.during("begin a capture")?;
        let recorded = record();
        // SAFETY: the capture was begun above.
        let graph = unsafe { result::stream::end_capture(stream) }.during("end a capture");
        let graph = match (recorded, graph) {
            (Ok(()), graph) => graph?,
            (Err(error), graph) => {
                // SAFETY: it came from the driver. A failure has nobody to be told.
                let _ = graph.map(|graph| unsafe { sys::cuGraphDestroy(graph) });
                return Err(error);
            }
        };
        let mut executable = std::ptr::null_mut();
        // SAFETY: `graph` came from the driver; the place for the answer is valid.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) }
            .result()
            .during("make a graph");
        // SAFETY: the executable does not need the graph. A failure has nobody to be told.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        made.map(|()| Self(executable))
    }

    /// Queues all launches of the graph. What their arguments point to must be there still.
    pub fn launch(&self, gpu: &Gpu) -> Result<()> {
        gpu.bind()?;
        // SAFETY: the graph lives as long as `self`; the caller's promise.
        unsafe { sys::cuGraphLaunch(self.0, gpu.stream()) }.result().during("launch a graph")
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: made in `capture`; whoever drops it has waited for its last launch.
        // Failures have nobody to be told.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

/// Recordings that are remembered at most, and those of them that came only once.
const MOST_GRAPHS: usize = 64;
const MOST_CANDIDATES: usize = 8;

/// Recent steps, the last one first, and the graphs of those that came twice.
///
/// A graph is launched only for a recording that equals its own, so it does
/// exactly what the launches one by one would do.
#[derive(Default)]
pub(crate) struct Graphs {
    steps: Vec<(Recording, Option<Executable>)>,
    /// May be under way still.
    retired: Vec<Executable>,
}

impl Graphs {
    /// Submits `recording`, as a graph if it came before, and leaves another to be filled in its place.
    /// An error of a capture is `failed`'s; the launches are then queued one by one.
    pub fn submit(
        &mut self,
        gpu: &Gpu,
        recording: &mut Recording,
        failed: &mut dyn FnMut(Error),
    ) -> Result<()> {
        let Some(known) = self.steps.iter().position(|(known, _)| known == recording) else {
            recording.submit(gpu, gpu.stream())?;
            self.remember(std::mem::take(recording));
            return Ok(());
        };
        self.steps[..=known].rotate_right(1);
        let (step, graph) = &mut self.steps[0];
        if graph.is_none() {
            let stream = gpu.capture_stream();
            match Executable::capture(gpu, stream, || step.submit(gpu, stream)) {
                Ok(made) => *graph = Some(made),
                Err(error) => failed(error),
            }
        }
        match graph {
            Some(graph) => graph.launch(gpu),
            None => step.submit(gpu, gpu.stream()),
        }
    }

    /// The oldest make room.
    fn remember(&mut self, recording: Recording) {
        self.steps.insert(0, (recording, None));
        let candidate = |(_, graph): &(Recording, Option<Executable>)| graph.is_none();
        if self.steps.iter().filter(|step| candidate(step)).count() > MOST_CANDIDATES {
            if let Some(oldest) = self.steps.iter().rposition(candidate) {
                self.steps.remove(oldest);
            }
        }
        if self.steps.len() > MOST_GRAPHS {
            self.retired.extend(self.steps.pop().and_then(|(_, graph)| graph));
        }
    }

    /// Forgets everything: what it was recorded with is no longer there.
    pub fn forget(&mut self) {
        self.retired.extend(self.steps.drain(..).filter_map(|(_, graph)| graph));
    }

    /// Whether [`forget`](Self::forget) or age left graphs to [destroy](Self::destroy_retired).
    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Gives forgotten graphs back; the stream must have finished.
    pub fn destroy_retired(&mut self) {
        self.retired.clear();
    }
}
