//! What streams carry: launches, copies, fills, calls of the host.

use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use super::module::Function;
use super::state::Driver;
use super::{code, Answer};
use crate::exec::{launch, Env};
use crate::memory::Region;

/// A pointer of the caller, who keeps it valid until the work is done.
#[derive(Clone, Copy)]
pub struct HostPointer(pub *mut u8);

// SAFETY: the pointer is only followed while its work runs, which the caller orders.
unsafe impl Send for HostPointer {}
// SAFETY: as above.
unsafe impl Sync for HostPointer {}

/// A function of the host.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

/// A launch with its parameters.
#[derive(Clone)]
pub struct Launch {
    pub function: Arc<Function>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic: usize,
    pub params: Vec<u8>,
    pub cooperative: bool,
    /// Whether it may begin before the launches before it have ended.
    pub programmatic: bool,
}

/// Something for a stream to do.
#[derive(Clone)]
pub enum Work {
    Launch(Launch),
    CopyIn {
        to: u64,
        from: HostPointer,
        bytes: u64,
    },
    CopyOut {
        to: HostPointer,
        from: u64,
        bytes: u64,
    },
    CopyWithin {
        to: u64,
        from: u64,
        bytes: u64,
    },
    /// `count` values of `width` bytes.
    Fill {
        to: u64,
        value: u32,
        width: usize,
        count: u64,
    },
    Host(HostFunction, HostPointer),
}

impl Work {
    /// Copies and fills of no bytes, whatever their addresses.
    fn is_nothing(&self) -> bool {
        match self {
            Work::CopyIn { bytes, .. }
            | Work::CopyOut { bytes, .. }
            | Work::CopyWithin { bytes, .. }
            | Work::Fill { count: bytes, .. } => *bytes == 0,
            Work::Launch(_) | Work::Host(..) => false,
        }
    }
}

impl Driver {
    /// Does the work now.
    pub fn run(&self, work: &Work) -> Answer {
        if work.is_nothing() {
            return Ok(());
        }
        if let Work::Host(function, data) = work {
            // SAFETY: the caller gave the function for this.
            unsafe { function(data.0.cast()) };
            return Ok(());
        }
        let _busy = self.busy.lock().unwrap_or_else(|e| e.into_inner());
        match work {
            Work::Launch(launch) => self.run_launch(launch),
            Work::CopyIn { to, from, bytes } => {
                let region = self.range(*to, *bytes, "a copy to the device")?;
                // SAFETY: the range was checked; the caller vouches for the source.
                unsafe { self.memory.host(&region, *to).copy_from(from.0, *bytes as usize) };
                self.memory.note_range(&region, *to, *bytes, None);
                Ok(())
            }
            Work::CopyOut { to, from, bytes } => {
                let region = self.range(*from, *bytes, "a copy from the device")?;
                // SAFETY: as above, the other way round.
                unsafe { to.0.copy_from(self.memory.host(&region, *from), *bytes as usize) };
                Ok(())
            }
            Work::CopyWithin { to, from, bytes } => self.copy_within(*to, *from, *bytes),
            Work::Fill { to, value, width, count } => self.fill(*to, *value, *width, *count),
            Work::Host(..) => unreachable!("done above"),
        }
    }

    /// The allocation of a range that is copied or filled.
    fn range(&self, start: u64, bytes: u64, what: &str) -> Result<Region, i32> {
        if let Some(region) = self.memory.region(start, bytes) {
            return Ok(region);
        }
        let near = self.memory.describe(start);
        self.refuse(code::INVALID_VALUE, format!("{what}: {bytes} bytes at {start:#x}: {near}"))
    }

    fn copy_within(&self, to: u64, from: u64, bytes: u64) -> Answer {
        let source = self.range(from, bytes, "the source of a copy")?;
        let target = self.range(to, bytes, "the target of a copy")?;
        let overlap = to < from + bytes && from < to + bytes;
        if overlap && to != from {
            return self.refuse(code::INVALID_VALUE, "source and target of a copy overlap");
        }
        // SAFETY: both ranges were checked.
        unsafe {
            self.memory
                .host(&target, to)
                .copy_from(self.memory.host(&source, from), bytes as usize);
        }
        self.memory.note_range(&target, to, bytes, Some((&source, from)));
        Ok(())
    }

    fn fill(&self, to: u64, value: u32, width: usize, count: u64) -> Answer {
        let bytes = count * width as u64;
        let region = self.range(to, bytes, "a memset")?;
        if !to.is_multiple_of(width as u64) {
            return self.refuse(
                code::INVALID_VALUE,
                format!("a memset of {width}-byte values at {to:#x}"),
            );
        }
        let at = self.memory.host(&region, to);
        let value = &value.to_le_bytes()[..width];
        if width == 1 {
            // SAFETY: the range was checked.
            unsafe { at.write_bytes(value[0], bytes as usize) };
        } else {
            for i in 0..count as usize {
                // SAFETY: as above.
                unsafe { at.add(i * width).copy_from_nonoverlapping(value.as_ptr(), width) };
            }
        }
        self.memory.note_range(&region, to, bytes, None);
        Ok(())
    }

    fn run_launch(&self, l: &Launch) -> Answer {
        if self.skips_kernels.load(Ordering::Relaxed) {
            return Ok(());
        }
        let env = Env {
            kernel: &l.function.kernel,
            grid: l.grid,
            block: l.block,
            dynamic: l.dynamic,
            params: &l.params,
            memory: &self.memory,
            regions: self.memory.regions(),
            checks: self.settings.checks,
            cooperative: l.cooperative,
            programmatic: l.programmatic,
            number: if self.has_programmatic_launches() { self.memory.begin_launch() } else { 0 },
            deadline: Instant::now() + self.settings.patience,
        };
        match launch(&env) {
            Ok(counts) => {
                self.counts().entry(l.function.kernel.name.clone()).or_default().add(&counts);
                Ok(())
            }
            Err(report) => self.refuse(report.kind.code(), report.to_string()),
        }
    }
}
