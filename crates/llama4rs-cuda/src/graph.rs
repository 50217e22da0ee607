//! Recordings that come again, made into CUDA graphs.

use std::sync::atomic::Ordering;

use cudarc::driver::{result, sys};
use llama4rs_tensor::{Error, Result};

use crate::arguments::Packed;
use crate::cuda::Launch;
use crate::error::During;
use crate::gpu::Gpu;
use crate::recording::{Place, Recording};

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

/// The launches of a step, and those of recent ones, the last one first, with the graphs of those that
/// came twice.
///
/// As long as a step's launches are those of an earlier one, they are compared and not written down. A
/// graph is launched only for a step whose launches equal its own, so it does exactly what they would
/// do one by one.
#[derive(Default)]
pub(crate) struct Graphs {
    /// The launches so far, unless an earlier step is followed.
    recording: Recording,
    /// The earlier step that has had the same launches so far, up to this place.
    followed: Option<(usize, Place)>,
    steps: Vec<(Recording, Option<Executable>)>,
    /// May be under way still.
    retired: Vec<Executable>,
}

impl Graphs {
    /// Begins a step.
    pub fn begin(&mut self) {
        self.recording.clear();
        self.followed = (!self.steps.is_empty()).then(|| (0, Place::default()));
    }

    /// The next launch of the step.
    pub fn push(&mut self, launch: &Launch<'_>, arguments: Packed<'_>) {
        let Some((known, place)) = self.followed else {
            return self.recording.push(launch, arguments);
        };
        if let Some(next) = self.steps[known].0.follow(place, launch, arguments) {
            self.followed = Some((known, next));
            return;
        }
        self.write_down();
        self.recording.push(launch, arguments);
        let begins = |(step, _): &(Recording, _)| step.begins_with(&self.recording);
        if let Some(known) = self.steps.iter().position(begins) {
            self.followed = Some((known, self.recording.end()));
        }
    }

    /// The launches so far as a recording of their own.
    fn write_down(&mut self) {
        if let Some((known, place)) = self.followed.take() {
            self.recording.copy(&self.steps[known].0, place);
        }
    }

    /// Whether the step has no launches.
    pub fn is_empty(&self) -> bool {
        match self.followed {
            Some((_, place)) => place == Place::default(),
            None => self.recording.is_empty(),
        }
    }

    /// Submits the launches so far, launch by launch. Those to come are a recording of their own.
    pub fn cut(&mut self, gpu: &Gpu) -> Result<()> {
        self.write_down();
        let outcome = self.recording.submit(gpu, gpu.stream());
        self.recording.clear();
        outcome
    }

    /// Submits the step, as a graph if it came before.
    /// An error of a capture is `failed`'s; the launches are then queued one by one.
    pub fn submit(&mut self, gpu: &Gpu, failed: &mut dyn FnMut(Error)) -> Result<()> {
        let Some(known) = self.known() else {
            self.recording.submit(gpu, gpu.stream())?;
            self.remember();
            return Ok(());
        };
        self.steps[..=known].rotate_right(1);
        let (step, graph) = &mut self.steps[0];
        if graph.is_none() {
            let stream = gpu.capture_stream();
            let capture = || Executable::capture(gpu, stream, || step.submit(gpu, stream));
            let early = gpu.programmatic.load(Ordering::Relaxed);
            let made = capture().or_else(|error| match early {
                true => {
                    gpu.end_programmatic(error);
                    capture()
                }
                false => Err(error),
            });
            match made {
                Ok(made) => *graph = Some(made),
                Err(error) => failed(error),
            }
        }
        match graph {
            Some(graph) => graph.launch(gpu),
            None => step.submit(gpu, gpu.stream()),
        }
    }

    /// The earlier step that equals this one; without one this is written down.
    fn known(&mut self) -> Option<usize> {
        if let Some((known, place)) = self.followed {
            if self.steps[known].0.end() == place {
                return Some(known);
            }
        }
        self.write_down();
        self.steps.iter().position(|(step, _)| *step == self.recording)
    }

    /// Keeps the recording; the oldest make room.
    fn remember(&mut self) {
        self.steps.insert(0, (std::mem::take(&mut self.recording), None));
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

    /// Forgets earlier steps: what they were recorded with is no longer there.
    pub fn forget(&mut self) {
        self.write_down();
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arguments::{Arguments, List};
    use crate::kernels::{NORM, ROWS};

    /// One of few launches, each of which differs from the others in something.
    fn push(graphs: &mut Graphs, which: usize) {
        let value = |bit: usize| which >> bit & 1;
        let constants = [("A", value(2) as u32), ("B", 1)];
        let launch = Launch {
            source: if value(0) == 0 { &ROWS } else { &NORM },
            kernel: if value(1) == 0 { "one" } else { "other" },
            constants: &constants[..1 + value(3)],
            shared: value(4),
            blocks: [1, 1, 1 + value(5)],
            threads: 32,
        };
        let mut all = List::new();
        let added = all.push(5u64).and_then(|()| all.push(value(6) as u64));
        assert!(added.is_ok());
        graphs.push(&launch, all.packed());
    }

    proptest! {
        #[test]
        fn equal_steps_are_found_and_others_are_not(
            steps in prop::collection::vec(prop::collection::vec(0usize..3, 0..6), 1..40),
            bit in 0usize..7,
            forgets in prop::collection::vec(prop::bool::weighted(0.02), 200),
        ) {
            let (mut graphs, mut forgets) = (Graphs::default(), forgets.into_iter());
            let mut remembered: Vec<Vec<usize>> = Vec::new();
            for step in steps {
                let launches: Vec<usize> = step.iter().map(|&which| which << bit & 127).collect();
                graphs.begin();
                for &which in &launches {
                    if forgets.next().unwrap_or(false) {
                        graphs.forget();
                        remembered.clear();
                    }
                    push(&mut graphs, which);
                }
                prop_assert_eq!(graphs.is_empty(), launches.is_empty());
                match graphs.known() {
                    Some(known) => prop_assert_eq!(&remembered[known], &launches),
                    None => {
                        prop_assert!(!remembered.contains(&launches));
                        graphs.remember();
                        remembered.insert(0, launches);
                        // As in `remember`: none has a graph.
                        remembered.truncate(MOST_CANDIDATES);
                    }
                }
            }
        }
    }
}
