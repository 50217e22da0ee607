//! What the driver remembers.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::graph::Graph;
use super::module::{Function, Module};
use super::stream::{Event, Stream};
use super::{code, Answer};
use crate::counters::Counts;
use crate::device::NAME;
use crate::exec::{processor_suffices, Checks};
use crate::memory::Memory;

/// Reports that are kept.
const KEPT: usize = 100;

/// Settings, from the environment.
pub struct Settings {
    /// Compute capability.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: u64,
    /// What is watched.
    pub checks: Checks,
    /// How long a kernel may run.
    pub patience: Duration,
    /// Whether to print what was never freed.
    pub leaks: bool,
}

impl Settings {
    fn from_environment() -> Self {
        let get = |name: &str| std::env::var(format!("LLAMA4RS_SIM_{name}")).ok();
        let capability = get("CAPABILITY").and_then(|v| {
            let (major, minor) = v.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let memory = get("MEMORY").and_then(|v| parse_bytes(&v));
        let skip = get("SKIP").unwrap_or_default();
        let watch = |name: &str| !skip.split(',').any(|s| s.trim() == name);
        let seconds = get("TIMEOUT").and_then(|v| v.parse().ok()).unwrap_or(120);
        Self {
            capability: capability.unwrap_or((8, 0)),
            memory: memory.unwrap_or(2 << 30),
            checks: Checks {
                races: watch("races"),
                unwritten: watch("unwritten"),
                counters: watch("counters"),
                footprint: get("FOOTPRINT").is_some_and(|v| v != "0"),
                backwards: get("PRODUCTS").is_some_and(|v| v == "backwards"),
            },
            patience: Duration::from_secs(seconds),
            leaks: get("LEAKS").is_some_and(|v| v != "0"),
        }
    }
}

/// `2G`, `512M` or a number of bytes.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last()? {
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Things that have handles.
pub struct Table<T>(Mutex<HashMap<u64, Arc<T>>>);

impl<T> Table<T> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<T>>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Keeps `value` and gives it a handle.
    pub fn add(&self, value: Arc<T>) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Multiples of 16 above 4096 look like pointers and are none.
        let handle = 4096 + 16 * NEXT.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(handle, value);
        handle
    }

    /// What the handle stands for.
    pub fn get(&self, handle: u64) -> Result<Arc<T>, i32> {
        self.lock().get(&handle).cloned().ok_or(code::INVALID_HANDLE)
    }

    /// Forgets the handle.
    pub fn remove(&self, handle: u64) -> Result<Arc<T>, i32> {
        self.lock().remove(&handle).ok_or(code::INVALID_HANDLE)
    }

    /// Forgets the handles of which `f` holds.
    pub fn drop_if(&self, f: impl Fn(&T) -> bool) {
        self.lock().retain(|_, v| !f(v));
    }
}

/// The driver.
pub struct Driver {
    /// Settings.
    pub settings: Settings,
    /// Device memory.
    pub memory: Memory,
    /// Loaded modules.
    pub modules: Table<Module>,
    /// Kernels that have been asked for.
    pub functions: Table<Function>,
    /// Streams.
    pub streams: Table<Stream>,
    /// The stream that is always there.
    pub null_stream: Arc<Stream>,
    /// Events.
    pub events: Table<Event>,
    /// Graphs.
    pub graphs: Table<Graph>,
    /// Graphs ready to launch.
    pub executables: Table<Graph>,
    /// How often the primary context has been retained.
    pub retained: AtomicU64,
    /// Held while something runs on the device.
    pub busy: Mutex<()>,
    /// Whether launches do nothing.
    pub skips_kernels: AtomicBool,
    /// Host allocations and their sizes.
    pub host: Mutex<HashMap<u64, usize>>,
    reports: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<String, Counts>>,
}

static INITIALISED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// The context that is current in this thread; 0 for none.
pub fn current() -> u64 {
    CURRENT.get()
}

/// Makes a context current.
pub fn set_current(context: u64) {
    CURRENT.set(context);
}

/// The primary context.
pub const PRIMARY: u64 = 0x10;

/// Starts the driver.
pub fn initialise() -> Answer {
    if !processor_suffices() {
        eprintln!("{NAME}: it needs a processor with AVX2 and FMA");
        return Err(code::NOT_SUPPORTED);
    }
    DRIVER.get_or_init(Driver::new).as_ref().map_err(|_| code::OUT_OF_MEMORY)?;
    INITIALISED.store(true, Ordering::Relaxed);
    Ok(())
}

static DRIVER: OnceLock<std::io::Result<Driver>> = OnceLock::new();

/// The driver, once `cuInit` was called.
pub fn driver() -> Result<&'static Driver, i32> {
    if !INITIALISED.load(Ordering::Relaxed) {
        return Err(code::NOT_INITIALIZED);
    }
    DRIVER.get().and_then(|d| d.as_ref().ok()).ok_or(code::NOT_INITIALIZED)
}

/// The driver, if a context is current, too.
pub fn in_context() -> Result<&'static Driver, i32> {
    let driver = driver()?;
    if current() == 0 {
        driver.note("a call needs a context, and none is current in this thread".to_string());
        return Err(code::INVALID_CONTEXT);
    }
    Ok(driver)
}

impl Driver {
    fn new() -> std::io::Result<Self> {
        let settings = Settings::from_environment();
        let memory = Memory::new(settings.memory)?;
        Ok(Self {
            settings,
            memory,
            modules: Table::new(),
            functions: Table::new(),
            streams: Table::new(),
            null_stream: Arc::new(Stream::default()),
            events: Table::new(),
            graphs: Table::new(),
            executables: Table::new(),
            retained: AtomicU64::new(0),
            busy: Mutex::new(()),
            skips_kernels: AtomicBool::new(false),
            host: Mutex::new(HashMap::new()),
            reports: Mutex::new(Vec::new()),
            counts: Mutex::new(BTreeMap::new()),
        })
    }

    /// Prints a report and keeps it.
    pub fn note(&self, report: String) {
        eprintln!("{NAME}: {report}");
        let mut reports = self.reports.lock().unwrap_or_else(|e| e.into_inner());
        if reports.len() == KEPT {
            reports.remove(0);
        }
        reports.push(report);
    }

    /// Notes why a call is refused; `code` is its answer.
    pub fn refuse<T>(&self, code: i32, why: impl Into<String>) -> Result<T, i32> {
        self.note(why.into());
        Err(code)
    }

    /// The reports since they were last cleared.
    pub fn reports(&self) -> MutexGuard<'_, Vec<String>> {
        self.reports.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Counts by kernel.
    pub fn counts(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.counts.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The stream of a handle; 0, 1 and 2 are the default streams.
    pub fn stream(&self, handle: u64) -> Result<Arc<Stream>, i32> {
        if handle <= 2 {
            return Ok(self.null_stream.clone());
        }
        self.streams.get(handle)
    }
}
