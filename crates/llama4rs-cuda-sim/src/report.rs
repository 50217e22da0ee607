//! What went wrong, in words, and the number that the driver returns for it.

use std::fmt;

/// Kinds of errors that a kernel makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An address outside every allocation, or past the block's memory.
    OutOfBounds,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// Memory that was freed.
    UseAfterFree,
    /// Bytes that nobody wrote.
    Uninitialised,
    /// Two threads touched shared memory with nothing to order them.
    Race,
    /// Threads of a block, or lanes of a mask, do not meet.
    Divergence,
    /// A lane that is not in its own mask, or masks that differ.
    Mask,
    /// The kernel ended before its copies did.
    UnfinishedCopy,
    /// Registers of a warpgroup's products were touched while these were under way, or without a fence.
    UnderWay,
    /// Products of a warpgroup read what was not published to them.
    Unpublished,
    /// A launch that may begin before the ones before have ended did not wait for them.
    TooEarly,
    /// `assert` failed.
    Assert,
    /// `trap`.
    Trap,
    /// The kernel does not seem to end.
    Endless,
    /// The launch asks for more than the device has.
    Limits,
}

impl FaultKind {
    /// The driver's error code.
    pub fn code(self) -> i32 {
        match self {
            FaultKind::OutOfBounds | FaultKind::UseAfterFree => 700,
            FaultKind::Misaligned => 716,
            FaultKind::Assert => 710,
            FaultKind::Trap => 719,
            FaultKind::Endless => 702,
            FaultKind::Limits => 1,
            _ => 719,
        }
    }
}

/// An error of a kernel before it is known where it happened.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// The lane that made it, if one did.
    pub lane: Option<usize>,
    /// What happened.
    pub what: String,
}

impl Fault {
    /// A fault, boxed because it is rare.
    pub fn new(kind: FaultKind, lane: Option<usize>, what: String) -> Box<Self> {
        Box::new(Self { kind, lane, what })
    }
}

/// An error of a kernel and its place.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its kind.
    pub kind: FaultKind,
    /// Name of the kernel.
    pub kernel: String,
    /// The block.
    pub block: [u32; 3],
    /// The thread, if one is to blame.
    pub thread: Option<[u32; 3]>,
    /// Line of the PTX text.
    pub line: u32,
    /// The line itself.
    pub text: String,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let triple = |v: [u32; 3]| format!("({}, {}, {})", v[0], v[1], v[2]);
        write!(f, "{:?} in kernel `{}`, block {}", self.kind, self.kernel, triple(self.block))?;
        if let Some(thread) = self.thread {
            write!(f, ", thread {}", triple(thread))?;
        }
        if self.line > 0 {
            write!(f, ", PTX line {} (`{}`)", self.line, self.text)?;
        }
        write!(f, ": {}", self.what)
    }
}
