//! A team of helper threads for work of a few microseconds.
//!
//! A decode step is hundreds of small parallel loops with next to nothing in
//! between. Waking sleeping threads costs more than such a loop, so helpers look
//! for the next job for a while before they sleep, and the caller works, too. A
//! helper that comes late, or not at all, costs nothing: the caller does the
//! tasks itself and waits only for helpers that hold one.
//!
//! ```text
//! caller:  job = ..., gate = OPEN, epoch += 1;  tasks...;  gate -= OPEN;  wait for gate == 0
//! helper:  see a new epoch;  gate += 1 if OPEN;  tasks...;  gate -= 1
//! ```

use std::cell::UnsafeCell;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::thread::JoinHandle;

/// Set in the gate while helpers may join; the rest of the gate counts them.
const OPEN: usize = 1 << (usize::BITS - 1);
/// How often a helper looks for a job before it sleeps: some 50 microseconds.
const LOOKS: usize = 2000;

/// One task taken from the back.
const BACK: u64 = 1 << 32;
/// More than all tasks of a job.
const ALL: u64 = 1 << 30;

/// Which tasks a thread takes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// All threads take the first that is left.
    Front,
    /// Every second thread takes the last that is left.
    BothEnds,
}

/// Helper threads that run one job at a time together with the caller.
pub struct Team {
    state: Arc<State>,
    /// Held by the caller whose job runs.
    caller: Mutex<()>,
    helpers: Vec<JoinHandle<()>>,
    /// The process that has the helpers.
    process: u32,
}

/// What the threads share.
struct State {
    /// Counts jobs.
    epoch: AtomicUsize,
    /// [`OPEN`] and the number of helpers that work on the job.
    gate: AtomicUsize,
    /// How many tasks have been taken from the front, and times [`BACK`] from the back.
    taken: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Helpers that sleep, or are about to.
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
}

/// A job whose borrow has been hidden; [`Team::run`] outlasts every use.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    order: Order,
}

// SAFETY: `job` is written only while the gate is closed and empty, and read
// only by threads that came through the open gate; what it points to is `Sync`.
unsafe impl Sync for State {}
// SAFETY: as above.
unsafe impl Send for State {}

impl Team {
    /// Starts `helpers` threads.
    pub fn new(helpers: usize) -> std::io::Result<Self> {
        let state = Arc::new(State {
            epoch: AtomicUsize::new(0),
            gate: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        });
        let process = std::process::id();
        let mut team = Self { state, caller: Mutex::new(()), helpers: Vec::new(), process };
        for i in 0..helpers {
            let state = team.state.clone();
            let builder = std::thread::Builder::new().name(format!("llama4rs-cpu-{i}"));
            team.helpers.push(builder.spawn(move || state.help(i % 2 == 0))?);
        }
        Ok(team)
    }

    /// Number of helper threads.
    pub fn helpers(&self) -> usize {
        self.helpers.len()
    }

    /// Calls `work` for each of `0..tasks` and waits. When another thread's job
    /// runs (or this is called by a task), the caller works alone.
    pub fn run(&self, tasks: usize, order: Order, work: &(dyn Fn(usize) + Sync)) {
        assert!((tasks as u64) < ALL, "too many tasks");
        let _caller = match self.caller.try_lock() {
            Ok(guard) if !self.helpers.is_empty() => guard,
            Err(TryLockError::Poisoned(guard)) if !self.helpers.is_empty() => guard.into_inner(),
            _ => return (0..tasks).for_each(work),
        };
        let state = &*self.state;
        // SAFETY: only the lifetime changes; `Closing` below ends every use of
        // the job before `work` is gone, in a panic as well.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        // SAFETY: the gate is closed and empty: nobody reads the job.
        unsafe { *state.job.get() = Some(Job { work, tasks, order }) };
        state.taken.store(0, Ordering::Relaxed);
        state.gate.store(OPEN, Ordering::Release);
        state.epoch.fetch_add(1, Ordering::SeqCst);
        if state.sleepers.load(Ordering::SeqCst) > 0 {
            drop(state.lie_down());
            state.alarm.notify_all();
        }
        let closing = Closing(state);
        state.work_on(Job { work, tasks, order }, false);
        drop(closing);
        if state.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a task of a helper thread panicked"));
        }
    }
}

/// Closes the gate and waits for the helpers inside.
struct Closing<'a>(&'a State);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        // After a panic of the caller: leave no task to the helpers.
        self.0.taken.fetch_add(ALL, Ordering::Relaxed);
        self.0.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.0.gate.load(Ordering::Acquire) != 0 {
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // After a fork the helpers are not there: nothing would answer to `join`.
            return self.helpers.drain(..).for_each(std::mem::forget);
        }
        self.state.stop.store(true, Ordering::SeqCst);
        self.state.epoch.fetch_add(1, Ordering::SeqCst);
        drop(self.state.lie_down());
        self.state.alarm.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its tasks, so this cannot fail.
            let _ = helper.join();
        }
    }
}

impl State {
    fn lie_down(&self) -> MutexGuard<'_, ()> {
        self.bed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes tasks until none is left.
    fn work_on(&self, job: Job, from_back: bool) {
        // SAFETY: the caller waits for everyone inside of the gate before the
        // work goes out of scope.
        let work = unsafe { &*job.work };
        let from_back = from_back && job.order == Order::BothEnds;
        loop {
            // One counter for both ends: whoever raises their sum to `tasks` at most has a task
            // that nobody else has.
            let taken = self.taken.fetch_add(if from_back { BACK } else { 1 }, Ordering::Relaxed);
            let (front, back) = ((taken % BACK) as usize, (taken / BACK) as usize);
            if front + back >= job.tasks {
                return;
            }
            work(if from_back { job.tasks - 1 - back } else { front });
        }
    }

    /// The life of a helper.
    fn help(&self, from_back: bool) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_epoch_after(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let join = |gate: usize| (gate & OPEN != 0).then_some(gate + 1);
            if self.gate.fetch_update(Ordering::AcqRel, Ordering::Relaxed, join).is_err() {
                continue;
            }
            // The job cannot change while we are inside, nor can its epoch.
            seen = self.epoch.load(Ordering::SeqCst);
            // SAFETY: inside of the gate the job is only read.
            if let Some(job) = unsafe { *self.job.get() } {
                if catch_unwind(AssertUnwindSafe(|| self.work_on(job, from_back))).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.gate.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Looks for an epoch other than `seen`, first awake, then asleep.
    fn wait_for_epoch_after(&self, seen: usize) -> usize {
        for _ in 0..LOOKS {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        let mut bed = self.lie_down();
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let epoch = loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                break epoch;
            }
            bed = self.alarm.wait(bed).unwrap_or_else(|poisoned| poisoned.into_inner());
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for (helpers, order) in
            (0..4).flat_map(|helpers| [(helpers, Order::Front), (helpers, Order::BothEnds)])
        {
            let team = Team::new(helpers).unwrap();
            for tasks in (0..100).chain([10_000]) {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                team.run(tasks, order, &|task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn two_threads_meet_from_both_ends() {
        let team = Team::new(1).unwrap();
        let here = std::thread::current().id();
        let (front, back) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        team.run(100, Order::BothEnds, &|task| {
            if std::thread::current().id() != here {
                back.lock().unwrap().push(task);
                return;
            }
            // The first task waits for the helper, which may sleep.
            let start = std::time::Instant::now();
            while back.lock().unwrap().is_empty() && start.elapsed().as_secs() < 10 {
                std::thread::yield_now();
            }
            front.lock().unwrap().push(task);
        });
        let (front, back) = (front.into_inner().unwrap(), back.into_inner().unwrap());
        assert!(!back.is_empty(), "the helper woke up");
        assert!(front.iter().copied().eq(0..front.len()), "{front:?}");
        assert!(back.iter().copied().eq((front.len()..100).rev()), "{back:?}");
    }

    #[test]
    fn jobs_within_jobs_and_from_several_threads() {
        let team = &Team::new(3).unwrap();
        let count = &AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    for _ in 0..200 {
                        team.run(5, Order::Front, &|_| {
                            team.run(3, Order::Front, &|_| {
                                count.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 4 * 200 * 5 * 3);
    }

    #[test]
    fn helpers_wake_up_after_a_pause() {
        let team = Team::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let here = std::thread::current().id();
            let helped = AtomicBool::new(false);
            team.run(1000, Order::Front, &|_| {
                std::thread::sleep(std::time::Duration::from_micros(20));
                helped.fetch_or(std::thread::current().id() != here, Ordering::Relaxed);
            });
            assert!(helped.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2).unwrap();
        for bad in [0, 50, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(100, Order::Front, &|task| assert!(task != bad, "on purpose"));
            }));
            assert!(result.is_err());
        }
        let count = AtomicUsize::new(0);
        team.run(100, Order::Front, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 100);
    }
}
