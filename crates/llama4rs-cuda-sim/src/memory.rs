//! Device memory: one reserved range of addresses, of which allocations are parts.
//!
//! A device address is not a host address: host code that follows one faults, as
//! with a real device. Allocations have gaps between them, and an address is not
//! given out again before the whole range has been used, so that an access past
//! an end or after a free finds nothing. Fresh memory is filled with `0xff` (NaN
//! in every float format), and a bit per byte tells whether it was ever written.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use memmap2::{MmapOptions, MmapRaw};

/// First device address.
pub const DEVICE_BASE: u64 = 0x3000_0000_0000;
/// Generic addresses of shared memory.
pub const SHARED_WINDOW: u64 = 0x1000_0000_0000;
/// Generic addresses of local memory.
pub const LOCAL_WINDOW: u64 = 0x1100_0000_0000;
/// Generic addresses of kernel parameters.
pub const PARAM_WINDOW: u64 = 0x1200_0000_0000;
/// Bytes of each window.
pub const WINDOW: u64 = 1 << 32;

/// Allocations begin at multiples of this, as on a device.
const ALIGN: u64 = 512;
/// Unused addresses behind each allocation.
const GAP: u64 = 512;
/// Addresses reserved for each byte of memory: as many as the host grants.
const ADDRESSES: [u64; 4] = [16, 8, 4, 2];
/// Bytes that memory moves at once.
const SECTOR: u64 = 32;
/// Freed allocations that reports remember.
const REMEMBERED: usize = 4096;

/// What an allocation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The program asked for it.
    Buffer,
    /// A module's variable.
    Variable,
    /// Host memory that the device can reach.
    Host,
}

/// A part of memory that may be used.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What it is for.
    pub purpose: Purpose,
    /// Number of the allocation, counted from 1.
    pub number: u64,
}

struct Heap {
    live: BTreeMap<u64, Region>,
    freed: VecDeque<Region>,
    /// Where the next allocation may begin.
    next: u64,
    used: u64,
    count: u64,
    /// `live` as a sorted list, until it changes.
    snapshot: Option<Arc<Vec<Region>>>,
}

/// The memory of the device.
pub struct Memory {
    bytes: MmapRaw,
    /// One bit for each byte that was written.
    written: MmapRaw,
    /// One bit for each sector that the kernel of the moment has read.
    footprint: MmapRaw,
    /// For each sector the launch that wrote it last.
    writers: MmapRaw,
    /// Launches so far, and those for whose end the host has waited.
    launches: AtomicU32,
    settled: AtomicU32,
    /// Bytes that may be allocated.
    capacity: u64,
    heap: Mutex<Heap>,
}

impl Memory {
    /// Memory of `capacity` bytes; pages take room only once they are used.
    pub fn new(capacity: u64) -> std::io::Result<Self> {
        let reserve = |bytes: u64| {
            MmapOptions::new().len(bytes as usize).no_reserve_swap().map_anon().map(MmapRaw::from)
        };
        let both = |times: u64| {
            let addresses = capacity.saturating_mul(times).next_multiple_of(1 << 16);
            let notes = [
                reserve(addresses / 8)?,
                reserve(addresses / SECTOR / 8)?,
                reserve(addresses / SECTOR * 4)?,
            ];
            Ok((reserve(addresses)?, notes))
        };
        let granted = ADDRESSES.into_iter().map(both).find(std::io::Result::is_ok);
        let (bytes, [written, footprint, writers]) = granted.unwrap_or_else(|| both(1))?;
        let heap = Heap {
            live: BTreeMap::new(),
            freed: VecDeque::new(),
            next: DEVICE_BASE,
            used: 0,
            count: 0,
            snapshot: None,
        };
        let [launches, settled] = [AtomicU32::new(0), AtomicU32::new(0)];
        let heap = Mutex::new(heap);
        Ok(Self { bytes, written, footprint, writers, launches, settled, capacity, heap })
    }

    fn heap(&self) -> MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn end(&self) -> u64 {
        DEVICE_BASE + self.bytes.len() as u64
    }

    /// Bytes in all, and bytes that are free.
    pub fn room(&self) -> (u64, u64) {
        (self.capacity, self.capacity - self.heap().used.min(self.capacity))
    }

    /// Takes `bytes`; none if there is no room.
    pub fn allocate(&self, bytes: u64, purpose: Purpose) -> Option<u64> {
        let mut heap = self.heap();
        let size = bytes.max(1).checked_next_multiple_of(ALIGN)?;
        if heap.used.checked_add(size)? > self.capacity {
            return None;
        }
        let start = self.place(&heap, size + GAP)?;
        heap.next = start + size + GAP;
        heap.used += size;
        heap.count += 1;
        let region = Region { start, end: start + bytes.max(1), purpose, number: heap.count };
        heap.live.insert(start, region);
        heap.snapshot = None;
        drop(heap);
        self.poison(start, size);
        Some(start)
    }

    /// Behind the last allocation, or, at the end of the addresses, in the first gap.
    fn place(&self, heap: &Heap, size: u64) -> Option<u64> {
        if heap.next + size <= self.end() {
            let follows = heap.live.range(heap.next..).next();
            if follows.is_none_or(|(&start, _)| heap.next + size <= start) {
                return Some(heap.next);
            }
        }
        let mut at = DEVICE_BASE;
        for region in heap.live.values().filter(|r| r.purpose != Purpose::Host) {
            if at + size <= region.start {
                return Some(at);
            }
            at = region.end.next_multiple_of(ALIGN) + GAP;
        }
        (at + size <= self.end()).then_some(at)
    }

    fn poison(&self, start: u64, size: u64) {
        let at = (start - DEVICE_BASE) as usize;
        // SAFETY: the range lies inside the maps, and belongs to this allocation alone.
        unsafe {
            self.bytes.as_mut_ptr().add(at).write_bytes(0xff, size as usize);
            self.written.as_mut_ptr().add(at / 8).write_bytes(0, size as usize / 8);
        }
    }

    /// Makes `bytes` of host memory at `start` known to the device.
    pub fn register_host(&self, start: u64, bytes: u64) {
        let mut heap = self.heap();
        heap.count += 1;
        let number = heap.count;
        let end = start + bytes.max(1);
        heap.live.insert(start, Region { start, end, purpose: Purpose::Host, number });
        heap.snapshot = None;
    }

    /// Gives an allocation back; false if none begins there.
    pub fn free(&self, start: u64) -> Option<Region> {
        let mut heap = self.heap();
        let region = heap.live.remove(&start)?;
        if region.purpose != Purpose::Host {
            heap.used -= (region.end - region.start).next_multiple_of(ALIGN);
            self.give_pages_back(region);
        }
        heap.freed.push_front(region);
        heap.freed.truncate(REMEMBERED);
        heap.snapshot = None;
        Some(region)
    }

    /// A large allocation's pages go back to the host.
    fn give_pages_back(&self, region: Region) {
        const LARGE: u64 = 1 << 20;
        if region.end - region.start < LARGE {
            return;
        }
        let from = (region.start - DEVICE_BASE).next_multiple_of(4096) as usize;
        let length = (region.end - DEVICE_BASE) as usize & !4095;
        // SAFETY: only whole pages of this allocation, which nobody uses any more,
        // are dropped; the map is anonymous, so they read as zero afterwards.
        unsafe {
            let _ = self.bytes.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                from,
                length - from,
            );
        }
    }

    /// The allocations, sorted by address.
    pub fn regions(&self) -> Arc<Vec<Region>> {
        let mut heap = self.heap();
        if heap.snapshot.is_none() {
            heap.snapshot = Some(Arc::new(heap.live.values().copied().collect()));
        }
        heap.snapshot.clone().expect("it was just made")
    }

    /// The allocation that holds all of `start..start + bytes`.
    pub fn region(&self, start: u64, bytes: u64) -> Option<Region> {
        find(&self.regions(), start).filter(|r| start + bytes <= r.end)
    }

    /// Allocations of the program that are still there.
    pub fn live_buffers(&self) -> Vec<Region> {
        self.heap().live.values().filter(|r| r.purpose == Purpose::Buffer).copied().collect()
    }

    /// What lies at or near an address that is no good.
    pub fn describe(&self, address: u64) -> String {
        let heap = self.heap();
        let freed = heap.freed.iter().find(|r| (r.start..r.end).contains(&address));
        if let Some(r) = freed.filter(|_| find_live(&heap, address).is_none()) {
            return format!(
                "inside allocation {} of {} bytes at {:#x}, which was freed",
                r.number,
                r.end - r.start,
                r.start
            );
        }
        let below = heap.live.range(..=address).next_back().map(|(_, r)| r);
        let above = heap.live.range(address..).next().map(|(_, r)| r);
        let distance = |r: &Region| {
            if address < r.start {
                r.start - address
            } else {
                address.saturating_sub(r.end - 1)
            }
        };
        let nearest = below.into_iter().chain(above).min_by_key(|r| distance(r));
        let Some(r) = nearest else { return "nothing is allocated".to_string() };
        let size = r.end - r.start;
        let place = if address < r.start {
            format!("{} bytes before", r.start - address)
        } else if address >= r.end {
            format!("{} bytes after the end of", address - r.end)
        } else {
            format!("at byte {} of", address - r.start)
        };
        format!("{place} allocation {} of {size} bytes at {:#x}", r.number, r.start)
    }

    /// The host address of a device address that some region holds.
    #[inline(always)]
    pub fn host(&self, region: &Region, address: u64) -> *mut u8 {
        if region.purpose == Purpose::Host {
            address as *mut u8
        } else {
            self.bytes.as_mut_ptr().wrapping_add((address - DEVICE_BASE) as usize)
        }
    }

    #[inline(always)]
    fn written_byte(&self, address: u64) -> &AtomicU8 {
        let at = ((address - DEVICE_BASE) / 8) as usize;
        debug_assert!(at < self.written.len());
        // SAFETY: the map has a bit for every device address, lives as long as
        // `self`, and is only touched through atomics once memory is shared.
        unsafe { AtomicU8::from_ptr(self.written.as_mut_ptr().add(at)) }
    }

    /// Whether all of the up to 16 bytes at `address`, aligned to their number, were written.
    #[inline(always)]
    pub fn is_written(&self, address: u64, bytes: u32) -> bool {
        if bytes >= 8 {
            (0..u64::from(bytes / 8))
                .all(|i| self.written_byte(address + 8 * i).load(Ordering::Relaxed) == 0xff)
        } else {
            let mask = (((1u32 << bytes) - 1) << (address & 7)) as u8;
            self.written_byte(address).load(Ordering::Relaxed) & mask == mask
        }
    }

    /// Notes that these bytes were written.
    #[inline(always)]
    pub fn set_written(&self, address: u64, bytes: u32) {
        if bytes >= 8 {
            for i in 0..u64::from(bytes / 8) {
                self.written_byte(address + 8 * i).store(0xff, Ordering::Relaxed);
            }
            return;
        }
        let mask = (((1u32 << bytes) - 1) << (address & 7)) as u8;
        let byte = self.written_byte(address);
        if byte.load(Ordering::Relaxed) & mask != mask {
            byte.fetch_or(mask, Ordering::Relaxed);
        }
    }

    /// Notes that a kernel read the sectors of `bytes` bytes at `address`.
    #[inline]
    pub fn note_read(&self, address: u64, bytes: u64) {
        let Some(first) = address.checked_sub(DEVICE_BASE) else { return };
        for sector in first / SECTOR..=(first + bytes - 1) / SECTOR {
            let (at, mask) = ((sector / 8) as usize, 1u8 << (sector % 8));
            if at < self.footprint.len() {
                // SAFETY: the map is that long, and only touched through atomics during a launch.
                let byte = unsafe { AtomicU8::from_ptr(self.footprint.as_mut_ptr().add(at)) };
                if byte.load(Ordering::Relaxed) & mask == 0 {
                    byte.fetch_or(mask, Ordering::Relaxed);
                }
            }
        }
    }

    /// The number of a launch that begins, from 1 on.
    pub fn begin_launch(&self) -> u32 {
        self.launches.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The host has waited for all launches so far.
    pub fn settle(&self) {
        self.settled.store(self.launches.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn writers_of(&self, address: u64, bytes: u64) -> impl Iterator<Item = &AtomicU32> {
        let first = address.checked_sub(DEVICE_BASE);
        let sectors =
            first.into_iter().flat_map(move |first| first / SECTOR..=(first + bytes - 1) / SECTOR);
        let places =
            sectors.map(|sector| 4 * sector as usize).filter(|at| at + 4 <= self.writers.len());
        // SAFETY: the map is that long, lives as long as `self`, and is only touched through atomics.
        places.map(|at| unsafe { AtomicU32::from_ptr(self.writers.as_mut_ptr().add(at).cast()) })
    }

    /// Notes that a launch wrote `bytes` bytes at `address`.
    pub fn note_writer(&self, address: u64, bytes: u64, launch: u32) {
        self.writers_of(address, bytes).for_each(|writer| writer.store(launch, Ordering::Relaxed));
    }

    /// Whether another launch than `launch`, for which the host has not waited, wrote to the sectors of
    /// these bytes.
    pub fn is_unsettled(&self, address: u64, bytes: u64, launch: u32) -> bool {
        let settled = self.settled.load(Ordering::Relaxed);
        let writers = self.writers_of(address, bytes).map(|writer| writer.load(Ordering::Relaxed));
        writers.into_iter().any(|writer| writer > settled && writer != launch)
    }

    /// How many different sectors were noted; forgets them.
    pub fn take_footprint(&self) -> u64 {
        let mut sectors = 0;
        for region in self.regions().iter().filter(|r| r.purpose != Purpose::Host) {
            let place = |address: u64| (address - DEVICE_BASE) / SECTOR / 8;
            for at in place(region.start)..=place(region.end - 1) {
                // SAFETY: as in `note_read`; regions lie inside of the map.
                let byte =
                    unsafe { AtomicU8::from_ptr(self.footprint.as_mut_ptr().add(at as usize)) };
                sectors += u64::from(byte.swap(0, Ordering::Relaxed).count_ones());
            }
        }
        sectors
    }

    /// Notes that a range of any length was written, or copies the notes of another.
    pub fn note_range(
        &self,
        region: &Region,
        start: u64,
        bytes: u64,
        from: Option<(&Region, u64)>,
    ) {
        if region.purpose == Purpose::Host {
            return;
        }
        let source = from.filter(|(r, _)| r.purpose != Purpose::Host).map(|(_, at)| at);
        let mut at = 0;
        while at < bytes {
            let here = start + at;
            let whole = here.is_multiple_of(8) && bytes - at >= 8;
            match source {
                None if whole => {
                    // Whole bytes of notes at once.
                    let run = (bytes - at) / 8;
                    let first = self.written_byte(here).as_ptr();
                    // SAFETY: `run` bytes of notes belong to this range.
                    unsafe { first.write_bytes(0xff, run as usize) };
                    at += run * 8;
                    continue;
                }
                Some(source) if whole && (source + at).is_multiple_of(8) => {
                    let notes = self.written_byte(source + at).load(Ordering::Relaxed);
                    self.written_byte(here).store(notes, Ordering::Relaxed);
                    at += 8;
                    continue;
                }
                Some(source) if !self.is_written(source + at, 1) => {
                    let mask = !(1u8 << (here & 7));
                    self.written_byte(here).fetch_and(mask, Ordering::Relaxed);
                }
                _ => self.set_written(here, 1),
            }
            at += 1;
        }
    }
}

fn find_live(heap: &Heap, address: u64) -> Option<&Region> {
    heap.live.range(..=address).next_back().map(|(_, r)| r).filter(|r| address < r.end)
}

/// The region that holds `address`.
#[inline(always)]
pub fn find(regions: &[Region], address: u64) -> Option<Region> {
    let after = regions.partition_point(|r| r.start <= address);
    let region = regions.get(after.checked_sub(1)?)?;
    (address < region.end).then_some(*region)
}
