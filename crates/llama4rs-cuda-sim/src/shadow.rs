//! Who touched which byte of shared memory, and when.
//!
//! For each grain (the smallest access of the kernel, at most 16 bytes) the last
//! writer and the readers since are kept as tags: the thread and its warp's epoch.
//! Epochs come from one counter of the block. A block barrier gives all warps the
//! same new epoch, `__syncwarp` gives one to its warp, and a barrier of some warps
//! lets those know each other's epochs. An access that follows another thread's
//! without one of these in between is a race.

use crate::program::LANES;

/// Marks a grain into which a `cp.async` is still under way.
const IN_FLIGHT: u32 = 1 << 31;
/// Marks a grain that was written by an atomic operation.
const ATOMIC: u32 = 1 << 30;
/// Marks a grain that several lanes of the warp have read.
const LANES_READ: u32 = 1 << 30;
/// Marks a grain that several warps have read.
const WARPS_READ: u32 = 1 << 31;
const EPOCH_BITS: u32 = 20;
const FLAGS: u32 = IN_FLIGHT | ATOMIC;

fn tag(thread: u32, epoch: u32) -> u32 {
    epoch << 10 | thread
}

fn epoch(tag: u32) -> u32 {
    (tag & !FLAGS) >> 10
}

fn thread(tag: u32) -> u32 {
    tag & 1023
}

/// What went wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The bytes were never written.
    Unwritten,
    /// A `cp.async` of this thread into the bytes has not been waited for.
    InFlight(u32),
    /// This thread wrote them and nothing orders that before the access.
    Written(u32),
    /// Another thread read them before this write; none if several did.
    Read(Option<u32>),
    /// This thread wrote them and no `fence.proxy.async` of it came before the access.
    Unpublished(u32),
    /// This thread wrote them while products that read them were under way.
    Overwritten(u32),
}

/// The kind of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Touch {
    Read,
    Write,
    Atomic,
    /// An atomic operation that needs no old value.
    Swap,
    /// A `cp.async` begins to write.
    Begin,
    /// A `cp.async` of this thread has been waited for.
    End,
}

/// The notes of one block.
pub struct Shadow {
    shift: u32,
    writes: Vec<u32>,
    reads: Vec<u32>,
    /// Counter of the block.
    now: u32,
    /// Epoch of each warp.
    warps: Vec<u32>,
    /// Accesses before this epoch are ordered before everything.
    settled: u32,
    /// `known[w][u]`: the last epoch of warp `u` that warp `w` knows to be over.
    known: Vec<[u32; LANES]>,
    /// Whether barriers of some warps occur; several readers cannot be told apart then.
    partial: bool,
    /// Only where products of warpgroups read.
    proxy: Option<Proxy>,
}

/// What ordinary writes made visible to the products of warpgroups.
struct Proxy {
    /// For each grain the writer's fence behind the last write; 0 without one.
    fences: Vec<u32>,
    /// Grains that each warp wrote since its last fence.
    written: Vec<Vec<usize>>,
}

impl Shadow {
    /// Notes on `bytes` of memory, all of it unwritten.
    pub fn new(bytes: usize, grain: usize, warps: usize, partial: bool, products: bool) -> Self {
        let shift = grain.min(16).trailing_zeros();
        let grains = bytes.div_ceil(1 << shift);
        let known = if partial { vec![[0; LANES]; warps] } else { Vec::new() };
        Self {
            shift,
            writes: vec![0; grains],
            reads: vec![0; grains],
            now: 1,
            warps: vec![1; warps],
            settled: 1,
            known,
            partial,
            proxy: products
                .then(|| Proxy { fences: vec![0; grains], written: vec![Vec::new(); warps] }),
        }
    }

    /// Forgets everything, for the next block.
    pub fn reset(&mut self) {
        self.writes.fill(0);
        self.reads.fill(0);
        self.now = 1;
        self.settled = 1;
        self.warps.fill(1);
        self.known.iter_mut().for_each(|k| k.fill(0));
        if let Some(proxy) = &mut self.proxy {
            proxy.fences.fill(0);
            proxy.written.iter_mut().for_each(Vec::clear);
        }
    }

    /// Whether the counter has room for more barriers.
    pub fn exhausted(&self) -> bool {
        self.now + 1 >= 1 << EPOCH_BITS
    }

    /// All warps met.
    pub fn block_barrier(&mut self) {
        self.now += 1;
        self.settled = self.now;
        self.warps.fill(self.now);
    }

    /// The lanes of a warp met.
    pub fn warp_barrier(&mut self, warp: usize) {
        self.now += 1;
        self.warps[warp] = self.now;
    }

    /// The warps of a mask met.
    pub fn partial_barrier(&mut self, mask: u32) {
        let members: Vec<usize> = super::exec::lanes_of(mask).collect();
        let mut joint = [0; LANES];
        for &w in &members {
            for u in 0..LANES {
                joint[u] = joint[u].max(self.known[w][u]);
            }
        }
        for &w in &members {
            joint[w] = joint[w].max(self.warps[w]);
        }
        for &w in &members {
            self.known[w] = joint;
            self.now += 1;
            self.warps[w] = self.now;
        }
    }

    /// Whether what `tag` notes is ordered before an access of `me` now.
    fn ordered(&self, tag: u32, me: u32) -> bool {
        let (e, other) = (epoch(tag), thread(tag));
        if e < self.settled || other == me {
            return true;
        }
        let (mine, theirs) = (me as usize / LANES, other as usize / LANES);
        if mine == theirs {
            e < self.warps[mine]
        } else {
            self.partial && e <= self.known[mine][theirs]
        }
    }

    /// Notes an access of thread `me` to `bytes` at `at`. `same(offset, bytes)` tells
    /// whether a write leaves the grain as it is, which is no race.
    #[inline(always)]
    pub fn touch(
        &mut self,
        touch: Touch,
        me: u32,
        at: usize,
        bytes: usize,
        same: impl Fn(usize, usize) -> bool,
    ) -> Result<(), Conflict> {
        let first = at >> self.shift;
        let last = (at + bytes - 1) >> self.shift;
        for grain in first..=last {
            match touch {
                Touch::Read => self.read(grain, me)?,
                _ => {
                    let offset = (grain - first) << self.shift;
                    let size = (1usize << self.shift).min(bytes);
                    self.write(touch, grain, me, || same(offset, size))?;
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn read(&mut self, grain: usize, me: u32) -> Result<(), Conflict> {
        let write = self.writes[grain];
        // Nearly always: written before the last barrier, and no copy under way.
        if write.wrapping_sub(1 << 10) >= (self.settled << 10).wrapping_sub(1 << 10) {
            self.check_read(write, me)?;
        }
        let mine = tag(me, self.warps[me as usize / LANES]);
        let old = self.reads[grain];
        self.reads[grain] =
            if epoch(old) < self.settled || old == mine { mine } else { self.join_read(old, mine) };
        Ok(())
    }

    /// The lanes of `mask` publish what they wrote to the products of warpgroups.
    pub fn publish(&mut self, warp: usize, mask: u32) {
        let epoch = self.warps[warp];
        let Some(proxy) = &mut self.proxy else { return };
        let writes = &self.writes;
        proxy.written[warp].retain(|&grain| {
            let writer = thread(writes[grain]);
            if writer as usize / LANES != warp {
                return false; // written again by another warp, whose fence it is now
            }
            let ours = mask >> (writer as usize % LANES) & 1 == 1;
            if ours {
                proxy.fences[grain] = tag(writer, epoch);
            }
            !ours
        });
    }

    fn grains(&self, at: usize, bytes: usize) -> std::ops::RangeInclusive<usize> {
        at >> self.shift..=(at + bytes - 1) >> self.shift
    }

    /// Products begin to read `bytes` at `at` on behalf of thread `me`: what is noted there goes to `writes`.
    pub fn begin_products(
        &mut self,
        me: u32,
        at: usize,
        bytes: usize,
        writes: &mut Vec<u32>,
    ) -> Result<(), Conflict> {
        for grain in self.grains(at, bytes) {
            self.read(grain, me)?;
            let fence = self.proxy.as_ref().map_or(0, |proxy| proxy.fences[grain]);
            if fence == 0 || !self.ordered(fence, me) {
                return Err(Conflict::Unpublished(thread(self.writes[grain])));
            }
            writes.push(self.writes[grain]);
        }
        Ok(())
    }

    /// Products have read `bytes` at `at`: what was noted there has not changed since they began.
    pub fn end_products(
        &mut self,
        me: u32,
        at: usize,
        bytes: usize,
        writes: &mut impl Iterator<Item = u32>,
    ) -> Result<(), Conflict> {
        for grain in self.grains(at, bytes) {
            if writes.next() != Some(self.writes[grain]) {
                return Err(Conflict::Overwritten(thread(self.writes[grain])));
            }
            self.read(grain, me)?;
        }
        Ok(())
    }

    fn unpublish(&mut self, grain: usize, me: u32) {
        if let Some(proxy) = &mut self.proxy {
            proxy.fences[grain] = 0;
            proxy.written[me as usize / LANES].push(grain);
        }
    }

    fn check_read(&self, write: u32, me: u32) -> Result<(), Conflict> {
        if write == 0 {
            return Err(Conflict::Unwritten);
        }
        if write & IN_FLIGHT != 0 {
            return Err(Conflict::InFlight(thread(write)));
        }
        if !self.ordered(write, me) {
            return Err(Conflict::Written(thread(write)));
        }
        Ok(())
    }

    fn join_read(&self, old: u32, mine: u32) -> u32 {
        if old & WARPS_READ != 0 || thread(old) / 32 != thread(mine) / 32 {
            return mine | WARPS_READ;
        }
        if thread(old) == thread(mine) && old & LANES_READ == 0 || epoch(old) < epoch(mine) {
            return mine;
        }
        mine | LANES_READ
    }

    #[inline(always)]
    fn write(
        &mut self,
        touch: Touch,
        grain: usize,
        me: u32,
        same: impl Fn() -> bool,
    ) -> Result<(), Conflict> {
        let write = self.writes[grain];
        let mut mine = tag(me, self.warps[me as usize / LANES]);
        if touch == Touch::End {
            self.writes[grain] = mine;
            self.unpublish(grain, me);
            return Ok(());
        }
        if write & IN_FLIGHT != 0 {
            return Err(Conflict::InFlight(thread(write)));
        }
        let atomic = matches!(touch, Touch::Atomic | Touch::Swap);
        if touch == Touch::Atomic && write == 0 {
            return Err(Conflict::Unwritten);
        }
        let atomics = atomic && write & ATOMIC != 0;
        let settled = write == 0 || atomics || self.ordered(write, me);
        if !settled && !same() {
            return Err(Conflict::Written(thread(write)));
        }
        let read = self.reads[grain];
        if read != 0 && epoch(read) >= self.settled {
            self.check_readers(read, me, &same)?;
        }
        if touch == Touch::Begin {
            mine |= IN_FLIGHT;
        } else if atomic && (write & ATOMIC != 0 || epoch(write) < epoch(mine)) {
            // Not over this thread's own plain write, which is nobody else's to update yet.
            mine |= ATOMIC;
        }
        self.writes[grain] = mine;
        self.unpublish(grain, me);
        Ok(())
    }

    fn check_readers(&self, read: u32, me: u32, same: &impl Fn() -> bool) -> Result<(), Conflict> {
        if read & WARPS_READ != 0 {
            return if self.partial || same() { Ok(()) } else { Err(Conflict::Read(None)) };
        }
        let mine = me as usize / LANES;
        let lanes = read & LANES_READ != 0 && thread(read) as usize / LANES == mine;
        let over = if lanes { epoch(read) < self.warps[mine] } else { self.ordered(read, me) };
        if over || same() {
            return Ok(());
        }
        Err(Conflict::Read((!lanes).then(|| thread(read))))
    }

    /// Whether a `cp.async` into this byte is under way.
    pub fn in_flight(&self, at: usize) -> bool {
        self.writes[at >> self.shift] & IN_FLIGHT != 0
    }
}
