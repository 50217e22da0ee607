//! One step of the model: its work is queued on the host and submitted at once.
//!
//! ```text
//! begin                  the arena is empty
//!   operations           launches are recorded; what the host brings goes to `inputs`, what comes and
//!                        goes to the arena, what the host will read to `results`
//! finish                 inputs ──copy──► device, then the launches: as a graph if they came before
//! the first read         device ──copy──► results, the only wait
//! ```
//!
//! Addresses in the arena, in `inputs` and in `results` follow from the order of the operations, so a step
//! with the same shapes records the same launches, whatever its tokens, positions and pages are:
//! these are data in `inputs`. Lists that grow with the text have room for more.
//!
//! Whatever goes past the queue (a copy, a fill, a wait) submits first what was queued.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::CUdeviceptr;
use llama4rs_tensor::{Error, Result};

use crate::error::{device, During};
use crate::gpu::Gpu;
use crate::graph::{Graphs, Recording};
use crate::memory::Pinned;
use crate::module::{Argument, Kernel};

/// Everything in the regions begins at multiples of this.
const ALIGNMENT: usize = 256;
/// The least region.
const LEAST_BYTES: usize = 64 << 10;

/// A number that no other living thread has.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here) as usize)
}

/// Device memory that is handed out from its beginning.
#[derive(Default)]
struct Region {
    address: CUdeviceptr,
    bytes: usize,
    used: usize,
    /// Bytes that did not fit.
    missing: usize,
}

impl Region {
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        if self.used + bytes > self.bytes {
            self.missing += bytes;
            return None;
        }
        let at = self.used;
        self.used += bytes;
        Some(at)
    }

    fn restart(&mut self) {
        (self.used, self.missing) = (0, 0);
    }

    /// The size that would have been enough, if it was not.
    fn wanted(&self) -> Option<usize> {
        let bytes = self.used + self.missing;
        (self.missing > 0).then(|| bytes.next_power_of_two().max(LEAST_BYTES))
    }
}

/// A region with its copy on the host.
#[derive(Default)]
struct Shared {
    region: Region,
    host: Option<Pinned>,
    /// Bytes that were copied already.
    copied: usize,
}

impl Shared {
    fn host(&mut self) -> &mut [u8] {
        self.host.as_mut().map_or(&mut [], Pinned::bytes)
    }

    fn restart(&mut self) {
        self.region.restart();
        self.copied = 0;
    }
}

/// A list in `inputs`.
struct List {
    name: &'static str,
    at: usize,
    bytes: usize,
}

/// What was made once for a step, and from what.
struct Made {
    from: [usize; 4],
    value: Arc<dyn Any + Send + Sync>,
}

/// What the steps of a device share.
#[derive(Default)]
pub(crate) struct Steps {
    /// Whose step is under way: other threads' work goes past it.
    owner: Option<usize>,
    /// Whether launches are recorded; else they are queued as they come.
    records: bool,
    /// Part of the step was submitted: no graph has the rest.
    is_cut: bool,
    generation: u64,
    recording: Recording,
    lists: Vec<List>,
    made: Vec<Made>,
    inputs: Shared,
    results: Shared,
    arena: Region,
    /// Of the arena, by size.
    free: BTreeMap<usize, Vec<CUdeviceptr>>,
    /// Given back during the step; recorded launches may use it.
    dropped: Vec<(usize, CUdeviceptr)>,
    /// Steps submitted, and those of them that are known to have finished.
    submitted: u64,
    finished: u64,
    graphs: Graphs,
    /// No capture is tried again once one has failed.
    has_no_graphs: bool,
    capture_failed: Option<Error>,
}

/// Where a buffer's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// The list of free memory.
    Free,
    /// The arena of this step.
    Arena(u64),
    /// The inputs of a step.
    Inputs,
    /// The results of this step.
    Results(u64),
}

/// A step that is under way; dropped without [`finish`](Self::finish) its queue is forgotten.
pub(crate) struct Running<'a> {
    gpu: &'a Gpu,
}

impl Steps {
    fn is_mine(&self) -> bool {
        self.owner == Some(this_thread())
    }

    fn records_mine(&self) -> bool {
        self.records && self.is_mine()
    }

    /// Copies inputs that are not on the device yet.
    fn send_inputs(&mut self, gpu: &Gpu) -> Result<()> {
        let Shared { region, host, copied } = &mut self.inputs;
        let (Some(host), true) = (host, *copied < region.used) else { return Ok(()) };
        gpu.bind()?;
        let bytes = &host.bytes()[*copied..region.used];
        // SAFETY: the region has the bytes; the pinned copy is not written before the stream has finished.
        unsafe { result::memcpy_htod_async(region.address + *copied as u64, bytes, gpu.stream()) }
            .during("copy to the device")?;
        *copied = region.used;
        self.submitted += 1;
        Ok(())
    }

    /// Submits what is queued, launch by launch.
    fn cut(&mut self, gpu: &Gpu) -> Result<()> {
        if !self.records_mine() {
            return Ok(());
        }
        self.is_cut = true;
        self.send_inputs(gpu)?;
        let outcome = self.recording.submit(gpu, gpu.stream());
        self.recording.clear();
        outcome
    }

    /// Ends the step, whose queue is empty or not needed. What was made for it is to be dropped
    /// when `self` is free again: it may hold buffers.
    fn end(&mut self, gpu: &Gpu) -> Vec<Made> {
        self.owner = None;
        self.recording.clear();
        let mut free = gpu.free.lock().unwrap_or_else(PoisonError::into_inner);
        self.dropped.drain(..).for_each(|(bytes, address)| free.put(bytes, address));
        std::mem::take(&mut self.made)
    }
}

impl Gpu {
    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a step of this thread, which records its launches if that is wanted; `None` when
    /// another step is under way.
    pub fn begin_step(self: &Arc<Self>, records: bool) -> Result<Option<Running<'_>>> {
        if self.steps().owner.is_some() {
            return Ok(None);
        }
        self.fit_regions()?;
        let mut steps = self.steps();
        if steps.owner.is_some() {
            return Ok(None);
        }
        if steps.submitted > steps.finished {
            // The pinned copy of its inputs may be read still.
            self.wait_for(&mut steps)?;
        }
        steps.graphs.destroy_retired();
        steps.owner = Some(this_thread());
        (steps.records, steps.is_cut) = (records && !steps.has_no_graphs, false);
        steps.generation += 1;
        steps.lists.clear();
        steps.free.clear();
        steps.arena.restart();
        steps.inputs.restart();
        steps.results.restart();
        Ok(Some(Running { gpu: self }))
    }

    /// Replaces the regions in which the last step found no room.
    fn fit_regions(self: &Arc<Self>) -> Result<()> {
        let wanted = {
            let mut steps = self.steps();
            let wanted =
                [steps.arena.wanted(), steps.inputs.region.wanted(), steps.results.region.wanted()];
            let moves = wanted.iter().any(Option::is_some);
            if moves {
                steps.graphs.forget();
            }
            if moves || steps.graphs.has_retired() {
                self.wait_for(&mut steps)?;
            }
            wanted
        };
        let names = ["scratch of a step", "inputs of a step", "results of a step"];
        for (which, (wanted, name)) in wanted.into_iter().zip(names).enumerate() {
            let Some(bytes) = wanted else { continue };
            let held = crate::memory::rounded(bytes);
            let host = if which > 0 { Pinned::new(bytes).map(Some) } else { Ok(None) };
            let place = host.and_then(|host| Ok((host, self.allocate(held, name)?)));
            let (host, address) = match place {
                Ok(place) => place,
                // Without it, what finds no room takes memory of its own, as in the last step.
                Err(Error::OutOfMemory { .. }) => continue,
                Err(error) => return Err(error),
            };
            let mut steps = self.steps();
            let region = match which {
                0 => &mut steps.arena,
                1 => &mut steps.inputs.region,
                _ => &mut steps.results.region,
            };
            let old =
                std::mem::replace(region, Region { address, bytes: held, used: 0, missing: 0 });
            match which {
                0 => {}
                1 => steps.inputs.host = host,
                _ => steps.results.host = host,
            }
            if old.bytes > 0 {
                let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
                free.put(old.bytes, old.address);
            }
        }
        Ok(())
    }

    /// Waits for everything that was submitted.
    fn wait_for(&self, steps: &mut Steps) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream()) }.during("finish its work")?;
        steps.finished = steps.submitted;
        Ok(())
    }

    /// Submits what this thread's step has queued: something that goes past the queue comes next.
    pub fn flush(&self) -> Result<()> {
        self.steps().cut(self)
    }

    /// Memory that lasts has moved: its place must not be used by graphs any more.
    pub fn forget_graphs(&self) -> Result<()> {
        let mut steps = self.steps();
        steps.graphs.forget();
        steps.cut(self)
    }

    /// Waits for all work; an error of an earlier kernel comes out here.
    pub fn synchronize(&self) -> Result<()> {
        let submitted = {
            let mut steps = self.steps();
            steps.cut(self)?;
            steps.submitted
        };
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream()) }.during("finish its work")?;
        let mut steps = self.steps();
        steps.finished = steps.finished.max(submitted);
        Ok(())
    }

    /// Queues a launch.
    pub fn launch(
        &self,
        kernel: Kernel,
        blocks: [usize; 3],
        threads: u32,
        arguments: &[Argument],
    ) -> Result<()> {
        let mut steps = self.steps();
        if steps.records_mine() {
            steps.recording.push(kernel, blocks, threads, arguments);
            return Ok(());
        }
        drop(steps);
        kernel.launch(self, blocks, threads, arguments)
    }

    /// `bytes` of the arena, if this thread records a step and there is room.
    pub fn take_scratch(&self, bytes: usize) -> Option<(CUdeviceptr, Home)> {
        let mut steps = self.steps();
        if !steps.records_mine() {
            return None;
        }
        let home = Home::Arena(steps.generation);
        if let Some(address) = steps.free.get_mut(&bytes).and_then(Vec::pop) {
            return Some((address, home));
        }
        // What found no room in the arena either and was given back meanwhile: launches come in order.
        if let Some(known) = steps.dropped.iter().position(|&(held, _)| held == bytes) {
            let (_, address) = steps.dropped.swap_remove(known);
            return Some((address, Home::Free));
        }
        let at = steps.arena.take(bytes)?;
        Some((steps.arena.address + at as u64, home))
    }

    /// `bytes` that the host will read, if this thread has a step under way and there is room.
    pub fn take_result(&self, bytes: usize) -> Option<(CUdeviceptr, Home)> {
        let mut steps = self.steps();
        if !steps.is_mine() {
            return None;
        }
        let at = steps.results.region.take(bytes)?;
        Some((steps.results.region.address + at as u64, Home::Results(steps.generation)))
    }

    /// A place for `bytes` in the inputs of the step that this thread records, with room for `room` bytes: the
    /// place of an equal list of the same name, if that `repeats`.
    pub fn take_input(
        &self,
        name: &'static str,
        bytes: &[u8],
        room: usize,
        repeats: bool,
    ) -> Option<(CUdeviceptr, Home)> {
        let mut steps = self.steps();
        if !steps.records_mine() {
            return None;
        }
        let Steps { lists, inputs, .. } = &mut *steps;
        let address = inputs.region.address;
        let host = inputs.host.as_mut().map_or(&mut [][..], Pinned::bytes);
        let is_known = |list: &&List| {
            list.name == name
                && list.bytes == bytes.len()
                && host[list.at..][..list.bytes] == *bytes
        };
        let known = lists.iter().rev().find(is_known).filter(|_| repeats);
        let at = match known {
            Some(list) => list.at,
            None => {
                let at = inputs.region.take(room.max(bytes.len()))?;
                inputs.host()[at..][..bytes.len()].copy_from_slice(bytes);
                lists.push(List { name, at, bytes: bytes.len() });
                at
            }
        };
        Some((address + at as u64, Home::Inputs))
    }

    /// What `make` gives, which the step that this thread records makes only once `from` the same: the
    /// addresses and sizes of what it reads, which stay as they are while the step lasts.
    pub fn once_a_step<T: Send + Sync + 'static>(
        &self,
        from: [usize; 4],
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        let known = {
            let steps = self.steps();
            let of_step = steps.made.iter().filter(|_| steps.records_mine());
            let mut fitting = of_step.filter(|made| made.from == from);
            fitting.find_map(|made| made.value.clone().downcast().ok())
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let value = Arc::new(make()?);
        let mut steps = self.steps();
        if steps.records_mine() {
            steps.made.push(Made { from, value: value.clone() });
        }
        Ok(value)
    }

    /// Takes a buffer's memory back.
    pub fn give_back(&self, home: Home, bytes: usize, address: CUdeviceptr) {
        let mut steps = self.steps();
        match home {
            Home::Free if steps.records_mine() => steps.dropped.push((bytes, address)),
            Home::Free => {
                drop(steps);
                let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
                free.put(bytes, address);
            }
            Home::Arena(step) if step == steps.generation => {
                steps.free.entry(bytes).or_default().push(address);
            }
            Home::Arena(_) | Home::Inputs | Home::Results(_) => {}
        }
    }

    /// Bytes of the results of step `generation`; the first call of a step waits for all of them.
    pub fn read_result(&self, generation: u64, address: CUdeviceptr, to: &mut [u8]) -> Result<()> {
        let mut steps = self.steps();
        if steps.generation != generation {
            return Err(device("the results of a step were read after the next one had begun"));
        }
        let at = (address - steps.results.region.address) as usize;
        if at + to.len() > steps.results.copied {
            steps.cut(self)?;
            self.bind()?;
            let Shared { region, host, copied } = &mut steps.results;
            let room = &mut host.as_mut().map_or(&mut [][..], Pinned::bytes)[..region.used];
            // SAFETY: the region has the bytes, and the pinned copy is read after the wait below.
            unsafe { result::memcpy_dtoh_async(room, region.address, self.stream()) }
                .during("copy from the device")?;
            *copied = region.used;
            self.wait_for(&mut steps)?;
        }
        to.copy_from_slice(&steps.results.host()[at..][..to.len()]);
        Ok(())
    }

    /// Why graphs cannot be made, once.
    pub fn take_capture_failure(&self) -> Option<Error> {
        self.steps().capture_failed.take()
    }

    /// Gives everything to the list of free memory; the stream must have finished.
    pub fn release_steps(&mut self) {
        let steps = std::mem::take(self.steps.get_mut().unwrap_or_else(PoisonError::into_inner));
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for region in [steps.arena, steps.inputs.region, steps.results.region] {
            if region.bytes > 0 {
                free.put(region.bytes, region.address);
            }
        }
    }
}

impl Running<'_> {
    /// Submits what is queued.
    pub fn finish(self) -> Result<()> {
        let gpu = self.gpu;
        let mut steps = gpu.steps();
        if steps.recording.is_empty() {
            return Ok(());
        }
        if steps.is_cut {
            return steps.cut(gpu);
        }
        steps.send_inputs(gpu)?;
        steps.submitted += 1;
        let Steps { graphs, recording, has_no_graphs, capture_failed, .. } = &mut *steps;
        graphs.submit(gpu, recording, &mut |error| {
            *has_no_graphs = true;
            *capture_failed = Some(error);
        })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let made = self.gpu.steps().end(self.gpu);
        drop(made);
    }
}
