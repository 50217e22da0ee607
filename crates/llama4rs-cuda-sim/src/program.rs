//! A kernel ready to run: flat instructions over numbered registers.
//!
//! Registers are arrays of 32 lanes in three files by width; predicates are
//! 32-bit masks. A constant is a register that every warp shares.

pub use crate::op::*;

/// Lanes of a warp.
pub const LANES: usize = 32;

/// Width of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 16 bits.
    W16,
    /// 32 bits.
    W32,
    /// 64 bits.
    W64,
}

impl Width {
    /// Its bits.
    pub fn bits(self) -> u32 {
        match self {
            Width::W16 => 16,
            Width::W32 => 32,
            Width::W64 => 64,
        }
    }

    /// Its bytes.
    pub fn bytes(self) -> usize {
        self.bits() as usize / 8
    }
}

/// A reference to a register, a predicate, a constant or a list of registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(u32);

/// What a [`Slot`] refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// Nothing.
    None,
    /// A register of the warp.
    Register(Width),
    /// A constant of the kernel.
    Constant(Width),
    /// A predicate.
    Predicate,
    /// `Kernel::lists[index..index + length]`.
    List,
}

impl Slot {
    /// No operand.
    pub const NONE: Slot = Slot(0);
    const CONSTANT: u32 = 1 << 31;

    fn tagged(tag: u32, index: usize) -> Self {
        debug_assert!(index < 1 << 28);
        Slot(tag << 28 | index as u32)
    }

    /// A register.
    pub fn register(width: Width, index: usize) -> Self {
        Self::tagged(width as u32 + 1, index)
    }

    /// A constant.
    pub fn constant(width: Width, index: usize) -> Self {
        Slot(Self::register(width, index).0 | Self::CONSTANT)
    }

    /// A predicate.
    pub fn predicate(index: usize) -> Self {
        Self::tagged(4, index)
    }

    /// A list of `length` slots, at most 255, from `start`.
    pub fn list(start: usize, length: usize) -> Self {
        debug_assert!(length < 256 && start < 1 << 20);
        Self::tagged(5, length << 20 | start)
    }

    /// What it refers to.
    pub fn kind(self) -> SlotKind {
        let width = match self.0 >> 28 & 7 {
            0 => return SlotKind::None,
            1 => Width::W16,
            2 => Width::W32,
            3 => Width::W64,
            4 => return SlotKind::Predicate,
            _ => return SlotKind::List,
        };
        if self.is_constant() {
            SlotKind::Constant(width)
        } else {
            SlotKind::Register(width)
        }
    }

    /// Whether it is a constant.
    #[inline(always)]
    pub fn is_constant(self) -> bool {
        self.0 & Self::CONSTANT != 0
    }

    /// Its number.
    #[inline(always)]
    pub fn index(self) -> usize {
        (self.0 & 0xff_ffff) as usize
    }

    /// The places of a list.
    #[inline(always)]
    pub fn range(self) -> std::ops::Range<usize> {
        let start = (self.0 & 0xf_ffff) as usize;
        start..start + (self.0 >> 20 & 255) as usize
    }

    /// Whether there is an operand.
    #[inline(always)]
    pub fn is_some(self) -> bool {
        self.0 != 0
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind() {
            SlotKind::List => write!(f, "List{:?}", self.range()),
            kind => write!(f, "{kind:?}#{}", self.index()),
        }
    }
}

/// No predicate before the instruction.
pub const UNGUARDED: u32 = u32::MAX;

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// [`UNGUARDED`], or twice the predicate's number, plus one if it is negated.
    pub guard: u32,
    /// Line of the PTX text.
    pub line: u32,
    /// The result.
    pub d: Slot,
    /// First operand.
    pub a: Slot,
    /// Second operand.
    pub b: Slot,
    /// Third operand.
    pub c: Slot,
    /// Fourth operand.
    pub e: Slot,
}

/// A kernel and the functions that it calls.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Instructions; the kernel begins at 0.
    pub code: Vec<Inst>,
    /// Lists of operands.
    pub lists: Vec<Slot>,
    /// Targets of branch tables.
    pub tables: Vec<u32>,
    /// Number of registers of each width, and of predicates.
    pub registers: [usize; 3],
    /// Number of predicates; 0 is always false, 1 always true.
    pub predicates: usize,
    /// Constants of each width, one value for all lanes.
    pub constants: Constants,
    /// Offset and size of each parameter.
    pub params: Vec<(usize, usize)>,
    /// Bytes of all parameters.
    pub param_bytes: usize,
    /// Bytes of static shared memory.
    pub shared_bytes: usize,
    /// Alignment of dynamic shared memory.
    pub dynamic_align: usize,
    /// Bytes of local memory of a thread.
    pub local_bytes: usize,
    /// Bytes of the smallest access to shared memory: the grain of the race check.
    pub grain: usize,
    /// From the launch bounds.
    pub max_threads: Option<u32>,
    /// The module's text, for reports.
    pub source: std::sync::Arc<str>,
    /// Whether barriers with a number of threads occur.
    pub partial_barriers: bool,
    /// Instructions that touch registers of warpgroups' products; empty without products.
    pub watched: Vec<bool>,
}

impl Kernel {
    /// A line of the text.
    pub fn line(&self, number: u32) -> &str {
        let line = self.source.lines().nth((number as usize).wrapping_sub(1));
        line.unwrap_or_default().trim()
    }
}

/// Constants, spread over all lanes.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Constants {
    pub w16: Vec<[u16; LANES]>,
    pub w32: Vec<[u32; LANES]>,
    pub w64: Vec<[u64; LANES]>,
}
