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
//!
//! A step belongs to the thread that began it, which has it at hand without a lock until it ends; other
//! threads' work goes past it meanwhile.

use std::any::Any;
use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::CUdeviceptr;
use llama4rs_tensor::{Error, Result};

use crate::arguments::Packed;
use crate::cuda::Launch;
use crate::error::{device, During};
use crate::gpu::Gpu;
use crate::graph::Graphs;
use crate::memory::Pinned;
use crate::regions::{Arena, Region, Shared};

thread_local! {
    /// The step that this thread has under way.
    static STEP: RefCell<Option<Box<Steps>>> = const { RefCell::new(None) };
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
    /// Where the device is on the host: its name.
    gpu: usize,
    /// Whether launches are recorded; else they are queued as they come.
    records: bool,
    /// Part of the step was submitted: no graph has the rest.
    is_cut: bool,
    generation: u64,
    lists: Vec<List>,
    made: Vec<Made>,
    inputs: Shared,
    results: Shared,
    arena: Arena,
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
    /// Gets ready for a step.
    fn begin(&mut self, gpu: &Gpu, records: bool) -> Result<()> {
        self.gpu = name_of(gpu);
        if gpu.memory_moved.swap(false, Ordering::Relaxed) {
            self.graphs.forget();
        }
        self.fit_regions(gpu)?;
        if self.submitted > self.finished {
            // The pinned copy of its inputs may be read still.
            self.wait(gpu)?;
        }
        self.graphs.destroy_retired();
        self.graphs.begin();
        (self.records, self.is_cut) = (records && !self.has_no_graphs, false);
        self.generation += 1;
        self.lists.clear();
        self.arena.restart();
        self.inputs.restart();
        self.results.restart();
        Ok(())
    }

    /// Replaces the regions in which the last step found no room.
    fn fit_regions(&mut self, gpu: &Gpu) -> Result<()> {
        let names = ["scratch of a step", "inputs of a step", "results of a step"];
        for (which, name) in names.into_iter().enumerate() {
            let releases = gpu.free_memory().releases();
            let Some(bytes) = self.region(which).wanted(releases) else { continue };
            let held = crate::memory::rounded(bytes);
            let host = if which > 0 { Pinned::new(bytes).map(Some) } else { Ok(None) };
            let place = host.and_then(|host| Ok((host, gpu.allocate(held, name)?)));
            let (host, address) = match place {
                Ok(place) => place,
                // Without it, what finds no room takes memory of its own, as in the last step.
                Err(Error::OutOfMemory { .. }) => {
                    let releases = gpu.free_memory().releases();
                    self.region(which).refuse(bytes, releases);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let old = std::mem::replace(self.region(which), Region::new(address, held));
            if old.bytes > 0 {
                gpu.free_memory().put(old.bytes, old.address);
            }
            let old_host = match which {
                0 => None,
                1 => std::mem::replace(&mut self.inputs.host, host),
                _ => std::mem::replace(&mut self.results.host, host),
            };
            self.graphs.forget();
            // Copies from or to the old pinned memory may be under way.
            self.wait(gpu)?;
            drop(old_host);
        }
        if self.graphs.has_retired() {
            self.wait(gpu)?;
        }
        Ok(())
    }

    /// The arena's, the inputs' or the results'.
    fn region(&mut self, which: usize) -> &mut Region {
        match which {
            0 => &mut self.arena.region,
            1 => &mut self.inputs.region,
            _ => &mut self.results.region,
        }
    }

    /// Waits for everything that was submitted.
    fn wait(&mut self, gpu: &Gpu) -> Result<()> {
        gpu.wait_for_stream()?;
        self.finished = self.submitted;
        Ok(())
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
        if !self.records {
            return Ok(());
        }
        self.is_cut = true;
        self.send_inputs(gpu)?;
        self.graphs.cut(gpu)
    }

    /// Submits what is queued: the whole step, unless it was cut.
    fn submit(&mut self, gpu: &Gpu) -> Result<()> {
        if !self.records || self.graphs.is_empty() {
            return Ok(());
        }
        if gpu.memory_moved.swap(false, Ordering::Relaxed) {
            self.graphs.forget();
        }
        if self.is_cut {
            return self.cut(gpu);
        }
        self.send_inputs(gpu)?;
        self.submitted += 1;
        let Self { graphs, has_no_graphs, capture_failed, .. } = self;
        graphs.submit(gpu, &mut |error| {
            *has_no_graphs = true;
            *capture_failed = Some(error);
        })
    }

    /// A place for `bytes` in the inputs, with room for `room` bytes: the place of an equal list of the same
    /// name, if that `repeats`.
    fn take_input(
        &mut self,
        name: &'static str,
        bytes: &[u8],
        room: usize,
        repeats: bool,
    ) -> Option<CUdeviceptr> {
        let Self { lists, inputs, .. } = self;
        let address = inputs.region.address;
        let host = inputs.host();
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
        Some(address + at as u64)
    }

    /// `bytes` of the arena, if there is room.
    fn take_scratch(&mut self, bytes: usize) -> Option<(CUdeviceptr, Home)> {
        let home = Home::Arena(self.generation);
        if let Some(address) = self.arena.take_again(bytes) {
            return Some((address, home));
        }
        // What found no room in the arena either and was given back meanwhile: launches come in order.
        if let Some(known) = self.dropped.iter().position(|&(held, _)| held == bytes) {
            let (_, address) = self.dropped.swap_remove(known);
            return Some((address, Home::Free));
        }
        Some((self.arena.take(bytes)?, home))
    }

    /// Bytes of the results of step `generation`; the first call of a step waits for all of them.
    fn read_result(
        &mut self,
        gpu: &Gpu,
        generation: u64,
        address: CUdeviceptr,
        to: &mut [u8],
    ) -> Result<()> {
        if self.generation != generation {
            return Err(device("the results of a step were read after the next one had begun"));
        }
        let at = (address - self.results.region.address) as usize;
        if at + to.len() > self.results.copied {
            self.cut(gpu)?;
            gpu.bind()?;
            let Shared { region, host, copied } = &mut self.results;
            let room = &mut host.as_mut().map_or(&mut [][..], Pinned::bytes)[..region.used];
            // SAFETY: the region has the bytes, and the pinned copy is read after the wait below.
            unsafe { result::memcpy_dtoh_async(room, region.address, gpu.stream()) }
                .during("copy from the device")?;
            *copied = region.used;
            self.wait(gpu)?;
        }
        to.copy_from_slice(&self.results.host()[at..][..to.len()]);
        Ok(())
    }
}

/// A number that no other device has.
fn name_of(gpu: &Gpu) -> usize {
    std::ptr::from_ref(gpu) as usize
}

impl Gpu {
    fn steps(&self) -> MutexGuard<'_, Option<Box<Steps>>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `use_it` makes of the step that this thread has under way on this device; it must not drop
    /// buffers.
    fn in_step<T>(&self, use_it: impl FnOnce(&mut Steps) -> T) -> Option<T> {
        let found = STEP.try_with(|step| {
            let mut step = step.borrow_mut();
            step.as_deref_mut().filter(|steps| steps.gpu == name_of(self)).map(use_it)
        });
        // A thread that ends has no step.
        found.unwrap_or(None)
    }

    /// The same if that step is recorded.
    fn in_recorded_step<T>(&self, use_it: impl FnOnce(&mut Steps) -> Option<T>) -> Option<T> {
        self.in_step(|steps| if steps.records { use_it(steps) } else { None }).flatten()
    }

    /// The same of what the device's steps share, unless another thread has a step under way.
    fn with_steps<T>(&self, use_it: impl FnOnce(&mut Steps) -> T) -> Option<T> {
        if self.in_step(|_| ()).is_some() {
            return self.in_step(use_it);
        }
        self.steps().as_deref_mut().map(use_it)
    }

    /// Begins a step of this thread, which records its launches if that is wanted; `None` when
    /// another step is under way.
    pub fn begin_step(&self, records: bool) -> Result<Option<Running<'_>>> {
        if STEP.with_borrow(Option::is_some) {
            return Ok(None);
        }
        let Some(mut steps) = self.steps().take() else { return Ok(None) };
        let ready = steps.begin(self, records);
        STEP.set(Some(steps));
        let running = Running { gpu: self };
        ready.map(|()| Some(running))
    }

    /// Submits what this thread's step has queued: something that goes past the queue comes next.
    pub fn flush(&self) -> Result<()> {
        self.in_step(|steps| steps.cut(self)).unwrap_or(Ok(()))
    }

    /// Memory that lasts has moved: its place must not be used by graphs any more.
    pub fn forget_graphs(&self) -> Result<()> {
        self.memory_moved.store(true, Ordering::Relaxed);
        self.flush()
    }

    /// Waits for all work; an error of an earlier kernel comes out here.
    pub fn synchronize(&self) -> Result<()> {
        let waited = self.with_steps(|steps| {
            steps.cut(self)?;
            steps.wait(self)
        });
        waited.unwrap_or_else(|| self.wait_for_stream())
    }

    /// Queues a launch.
    pub fn launch(&self, launch: &Launch<'_>, arguments: Packed<'_>) -> Result<()> {
        let recorded = self.in_recorded_step(|steps| {
            steps.graphs.push(launch, arguments);
            Some(())
        });
        if recorded.is_some() {
            return Ok(());
        }
        let &Launch { source, kernel, constants, shared, blocks, threads } = launch;
        let kernel = self.library.kernel(self, source, kernel, constants, shared)?;
        kernel.launch(self, self.stream(), blocks, threads, arguments)
    }

    /// `bytes` of the arena, if this thread records a step and there is room.
    pub fn take_scratch(&self, bytes: usize) -> Option<(CUdeviceptr, Home)> {
        self.in_recorded_step(|steps| steps.take_scratch(bytes))
    }

    /// `bytes` that the host will read, if this thread has a step under way and there is room.
    pub fn take_result(&self, bytes: usize) -> Option<(CUdeviceptr, Home)> {
        self.in_step(|steps| {
            let at = steps.results.region.take(bytes)?;
            Some((steps.results.region.address + at as u64, Home::Results(steps.generation)))
        })
        .flatten()
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
        let at = self.in_recorded_step(|steps| steps.take_input(name, bytes, room, repeats))?;
        Some((at, Home::Inputs))
    }

    /// What `make` gives, which the step that this thread records makes only once `from` the same: the
    /// addresses and sizes of what it reads, which stay as they are while the step lasts.
    pub fn once_a_step<T: Send + Sync + 'static>(
        &self,
        from: [usize; 4],
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        let known = self.in_recorded_step(|steps| {
            let mut fitting = steps.made.iter().filter(|made| made.from == from);
            fitting.find_map(|made| made.value.clone().downcast().ok())
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let value = Arc::new(make()?);
        self.in_recorded_step(|steps| {
            steps.made.push(Made { from, value: value.clone() });
            Some(())
        });
        Ok(value)
    }

    /// Takes a buffer's memory back.
    pub fn give_back(&self, home: Home, bytes: usize, address: CUdeviceptr) {
        match home {
            Home::Free => {
                let kept = self.in_recorded_step(|steps| {
                    steps.dropped.push((bytes, address));
                    Some(())
                });
                if kept.is_none() {
                    self.free_memory().put(bytes, address);
                }
            }
            Home::Arena(step) => {
                self.in_step(|steps| {
                    if step == steps.generation {
                        steps.arena.give_back(bytes, address);
                    }
                });
            }
            Home::Inputs | Home::Results(_) => {}
        }
    }

    /// Bytes of the results of step `generation`; the first call of a step waits for all of them.
    pub fn read_result(&self, generation: u64, address: CUdeviceptr, to: &mut [u8]) -> Result<()> {
        self.with_steps(|steps| steps.read_result(self, generation, address, to))
            .unwrap_or_else(|| Err(device("another thread's step is under way")))
    }

    /// Why graphs cannot be made, once.
    pub fn take_capture_failure(&self) -> Option<Error> {
        self.with_steps(|steps| steps.capture_failed.take()).flatten()
    }

    /// Gives everything to the list of free memory; the stream must have finished.
    pub fn release_steps(&mut self) {
        let steps = self.steps.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(steps) = steps else { return };
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for region in [&steps.arena.region, &steps.inputs.region, &steps.results.region] {
            if region.bytes > 0 {
                free.put(region.bytes, region.address);
            }
        }
    }
}

impl Running<'_> {
    /// Submits what is queued.
    pub fn finish(self) -> Result<()> {
        self.gpu.in_step(|steps| steps.submit(self.gpu)).unwrap_or(Ok(()))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(mut steps) = STEP.take() else { return };
        steps.records = false;
        let mut free = self.gpu.free_memory();
        steps.dropped.drain(..).for_each(|(bytes, address)| free.put(bytes, address));
        drop(free);
        // It may hold buffers, which go to the list of free memory.
        let made = std::mem::take(&mut steps.made);
        *self.gpu.steps() = Some(steps);
        drop(made);
    }
}
