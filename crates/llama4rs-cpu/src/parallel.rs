//! Splitting work over threads, sharing what they write, reusing what they need.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Mutex;

use llama4rs_tensor::{Error, Result};

use crate::team::{Order, Team};

/// The threads of a CPU: the calling one and its helpers.
pub struct Threads {
    team: Team,
}

impl Threads {
    /// As many threads as `count` says, the calling one included.
    pub fn new(count: usize) -> Result<Self> {
        if count == 0 {
            return Err(Error::shape("threads", "at least one thread", 0));
        }
        let team = Team::new(count - 1)
            .map_err(|e| Error::shape("threads", format!("{count} threads to start"), e))?;
        Ok(Self { team })
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.team.helpers() + 1
    }

    /// Calls `work` once for each of `0..tasks`, in any order, and waits.
    ///
    /// A thread takes the next task when it is done with one, so tasks may differ in size.
    pub fn for_each(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        self.run(tasks, Order::Front, work);
    }

    /// The same, but half of the threads take the last task that is left: where the first tasks
    /// compute and the last ones wait for memory, both happen at once.
    pub fn for_each_from_both_ends(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        self.run(tasks, Order::BothEnds, work);
    }

    fn run(&self, tasks: usize, order: Order, work: impl Fn(usize) + Sync) {
        if tasks > 1 {
            self.team.run(tasks, order, &work);
        } else {
            (0..tasks).for_each(work);
        }
    }

    /// Cuts `0..len` into equal ranges of at least `grain` and calls `work` for each.
    pub fn for_ranges(&self, len: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
        let parts = (len / grain.max(1)).clamp(1, self.count() * 4);
        let part = len.div_ceil(parts).max(1);
        self.for_each(len.div_ceil(part), |i| work(i * part..len.min((i + 1) * part)));
    }
}

/// A slice that several tasks write to, each its own elements.
#[derive(Clone, Copy)]
pub struct Shared<'a, T> {
    pointer: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks reach disjoint elements, by the promise of `Shared::part`.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `slice` for as long as it is borrowed.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { pointer: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Writes one element.
    ///
    /// # Safety
    /// It is inside of the slice; no part that lives holds it, and no other
    /// thread reaches it meanwhile.
    #[inline(always)]
    pub unsafe fn set(&self, index: usize, value: T)
    where
        T: Copy,
    {
        debug_assert!(index < self.len, "element of a shared slice");
        // SAFETY: the caller's promise.
        unsafe { self.pointer.add(index).write(value) };
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// While the result lives, no other part overlaps it.
    ///
    /// # Panics
    /// When the range is not inside of the slice.
    #[inline(always)]
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part of a shared slice");
        // SAFETY: inside of the slice, and the caller promises exclusiveness.
        unsafe {
            std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.end - range.start)
        }
    }
}

/// Working memory that outlives the operations which use it.
#[derive(Default)]
pub struct Spare<T>(Mutex<Vec<T>>);

impl<T: Default> Spare<T> {
    /// Lends a `T` to `work`: one that was used before if there is one.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let mut item = self.list().pop().unwrap_or_default();
        let result = work(&mut item);
        self.list().push(item);
        result
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
