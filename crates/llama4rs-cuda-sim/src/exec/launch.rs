//! A launch: blocks over host threads.
//!
//! Blocks run in the order of their numbers, several at a time, each to its end.
//! In a cooperative launch all blocks are there at once and take turns, so that
//! they may wait for each other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::block::{Block, Progress};
use crate::counters::Counts;
use crate::memory::{Memory, Region};
use crate::program::Kernel;
use crate::report::{FaultKind, Report};

/// What is watched.
#[derive(Clone, Copy, Debug)]
pub struct Checks {
    /// Races and unwritten bytes in shared memory.
    pub races: bool,
    /// Unwritten bytes in device memory.
    pub unwritten: bool,
    /// Sectors and wavefronts.
    pub counters: bool,
    /// Different sectors of a launch.
    pub footprint: bool,
    /// Products of warpgroups add from the last input on, unlike those of warps: as a device might.
    pub backwards: bool,
}

/// What all blocks of a launch know.
pub struct Env<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic: usize,
    /// The parameters as the kernel sees them.
    pub params: &'a [u8],
    /// Device memory.
    pub memory: &'a Memory,
    /// The allocations at the time of the launch.
    pub regions: Arc<Vec<Region>>,
    /// What is watched.
    pub checks: Checks,
    /// Whether all blocks must be there at once.
    pub cooperative: bool,
    /// Whether it may begin before the launches before it have ended, and must wait for them.
    pub programmatic: bool,
    /// The number of the launch, if what it writes is noted; else 0.
    pub number: u32,
    /// When the kernel counts as endless.
    pub deadline: Instant,
}

impl Env<'_> {
    /// Threads of a block.
    pub fn threads(&self) -> usize {
        self.block.iter().map(|&n| n as usize).product()
    }

    /// Coordinates of a thread.
    pub fn thread(&self, number: usize) -> [u32; 3] {
        coordinates(number as u64, self.block)
    }

    fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }
}

fn coordinates(number: u64, size: [u32; 3]) -> [u32; 3] {
    let (x, y) = (u64::from(size[0]), u64::from(size[1]));
    [(number % x) as u32, (number / x % y) as u32, (number / (x * y)) as u32]
}

/// Whether the processor has what warps are compiled for.
pub fn processor_suffices() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
    }
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// Runs a launch to its end.
pub fn launch(env: &Env) -> Result<Counts, Box<Report>> {
    let work = Work {
        next: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        report: Mutex::new(None),
        counts: Mutex::new(Counts { launches: 1, ..Counts::default() }),
    };
    let blocks = env.blocks();
    // A small launch is over before another thread would wake up.
    let small =
        blocks == 1 || blocks * env.threads() as u64 * env.kernel.code.len() as u64 <= 1 << 16;
    let workers = if small { 1 } else { (rayon::current_num_threads() as u64).min(blocks) };
    if workers == 1 {
        work.take(env, 1);
    } else {
        rayon::scope(|scope| {
            (0..workers).for_each(|_| scope.spawn(|_| work.take(env, workers)));
        });
    }
    if env.checks.footprint {
        let distinct_sectors = env.memory.take_footprint();
        work.add(&Counts { distinct_sectors, ..Counts::default() });
    }
    match work.report.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(report) => Err(report),
        None => Ok(work.counts.into_inner().unwrap_or_else(|e| e.into_inner())),
    }
}

/// What the workers of a launch share.
struct Work {
    /// The first block that nobody has taken.
    next: AtomicU64,
    failed: AtomicBool,
    report: Mutex<Option<Box<Report>>>,
    counts: Mutex<Counts>,
}

impl Work {
    fn take(&self, env: &Env, workers: u64) {
        let outcome =
            if env.cooperative { self.take_turns(env, workers) } else { self.one_by_one(env) };
        if let Err(report) = outcome {
            self.failed.store(true, Ordering::Relaxed);
            let mut first = self.report.lock().unwrap_or_else(|e| e.into_inner());
            first.get_or_insert(report);
        }
    }

    fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn add(&self, counts: &Counts) {
        self.counts.lock().unwrap_or_else(|e| e.into_inner()).add(counts);
    }

    fn one_by_one(&self, env: &Env) -> Result<(), Box<Report>> {
        let mut block = Block::new(env);
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= env.blocks() || self.failed() {
                break;
            }
            block.start(env, coordinates(number, env.grid));
            while block.turn(env)? == Progress::Running {
                if Instant::now() > env.deadline {
                    return Err(endless(env, &block));
                }
                if self.failed() {
                    return Ok(());
                }
            }
        }
        self.add(&block.common.counts);
        Ok(())
    }

    fn take_turns(&self, env: &Env, workers: u64) -> Result<(), Box<Report>> {
        let share = env.blocks().div_ceil(workers);
        let from = self.next.fetch_add(share, Ordering::Relaxed);
        let mut blocks: VecDeque<Block> = VecDeque::new();
        for number in from..(from + share).min(env.blocks()) {
            let mut block = Block::new(env);
            block.start(env, coordinates(number, env.grid));
            blocks.push_back(block);
        }
        while let Some(mut block) = blocks.pop_front() {
            if self.failed() {
                return Ok(());
            }
            match block.turn(env)? {
                Progress::Ended => self.add(&block.common.counts),
                Progress::Running => {
                    if Instant::now() > env.deadline {
                        return Err(endless(env, &block));
                    }
                    if blocks.is_empty() {
                        std::thread::yield_now();
                    }
                    blocks.push_back(block);
                }
            }
        }
        Ok(())
    }
}

fn endless(env: &Env, block: &Block) -> Box<Report> {
    Box::new(Report {
        kind: FaultKind::Endless,
        kernel: env.kernel.name.clone(),
        block: block.common.id,
        thread: None,
        line: 0,
        text: String::new(),
        what: format!(
            "the kernel does not seem to end{}",
            if env.cooperative {
                ""
            } else {
                " (blocks that wait for others need a cooperative launch)"
            }
        ),
    })
}
