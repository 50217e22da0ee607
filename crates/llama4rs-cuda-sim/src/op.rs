//! What instructions do.

use crate::program::{Slot, Width};

/// Integer operations with two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Int2 {
    Add,
    Sub,
    Mul,
    MulHiS,
    MulHiU,
    DivS,
    DivU,
    RemS,
    RemU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
    Shl,
    ShrS,
    ShrU,
    AddSat,
    SubSat,
}

/// Integer operations with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Int1 {
    Neg,
    Not,
    Cnot,
    Abs,
    Brev,
    Popc,
    Clz,
    FindU,
    FindS,
    ShiftU,
    ShiftS,
}

/// Floating-point operations with two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Float2 {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    CopySign,
}

/// Floating-point operations with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Float1 {
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// Direction of rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// Towards zero.
    Zero,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
}

/// Modifiers of floating-point operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatMode {
    /// Direction of rounding.
    pub round: Round,
    /// Subnormal operands and results count as zero.
    pub flush: bool,
    /// The result is clamped to [0, 1], NaN to 0.
    pub saturate: bool,
    /// Negative results and NaN become 0.
    pub relu: bool,
}

impl FloatMode {
    /// Rounds to nearest and does nothing else.
    pub const PLAIN: Self =
        Self { round: Round::Nearest, flush: false, saturate: false, relu: false };
}

/// The two 16-bit floating-point types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// Types of comparisons and conversions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Type {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Type {
    /// Its bytes.
    pub fn bytes(self) -> usize {
        match self {
            Type::U8 | Type::S8 => 1,
            Type::U16 | Type::S16 | Type::F16 | Type::Bf16 => 2,
            Type::U32 | Type::S32 | Type::F32 => 4,
            Type::U64 | Type::S64 | Type::F64 => 8,
        }
    }

    /// Whether it is a signed integer.
    pub fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    /// Whether it is a floating-point type.
    pub fn float(self) -> bool {
        matches!(self, Type::F16 | Type::Bf16 | Type::F32 | Type::F64)
    }
}

/// Comparisons. The `u` forms of floats are true if an operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// How predicates are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Logic {
    And,
    Or,
    Xor,
}

/// A conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// Type of the result.
    pub to: Type,
    /// Type of the operand.
    pub from: Type,
    /// Modifiers.
    pub mode: FloatMode,
    /// Rounds to a whole number (`rni` and its kin between floats).
    pub whole: bool,
    /// Clamps to the largest finite value.
    pub finite: bool,
}

/// Where an access goes once the instruction has been decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Target {
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Where it goes.
    pub target: Target,
    /// Bytes of an element.
    pub bytes: u8,
    /// Elements.
    pub count: u8,
    /// Whether short elements are sign-extended.
    pub signed: bool,
    /// Added to the address.
    pub offset: i32,
}

/// What an atomic operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Atomic {
    Add,
    AddF32,
    AddF64,
    AddHalf(Half, bool),
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
    MinS,
    MinU,
    MaxS,
    MaxU,
}

/// Which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// Votes of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// Shapes of tensor-core products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mma {
    /// m16n8k16 or m16n8k8 of 16-bit floats, sums in f32.
    Half(Half, u8),
    /// m16n8k16 or m16n8k32 of bytes, sums in s32: depth, A signed, B signed.
    Bytes(u8, bool, bool),
    /// m16n8k16 or m16n8k8 of f16 with sums in f16.
    F16(u8),
}

/// Instructions of warpgroups: four warps, the first of which is a multiple of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warpgroup {
    /// Orders accesses to registers before products that follow.
    Fence,
    /// m64nNk16, sums in f32: the type and N. `a` are the fragments of A, `b` describes B in shared
    /// memory, the sums `d` are also read, as `e`, where predicate `c` holds.
    Product(Half, u16),
    /// The products since the last one are a group.
    Commit,
    /// Waits until at most so many groups are under way.
    Wait(u32),
}

/// What a barrier also does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Barrier {
    Sync,
    Arrive,
    And,
    Or,
    Popc,
}

/// Values that the hardware provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are those of PTX
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    Clock,
    Clock64,
    GlobalTimer,
    DynamicShared,
    TotalShared,
    Zero,
    One,
}

/// What an instruction does. `d` is written, `a`, `b`, `c`, `e` are read.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // each is the PTX instruction of the same name
pub enum Op {
    Int2(Int2, Width),
    Int1(Int1, Width),
    MulWide {
        signed: bool,
        from: Width,
    },
    MadLo(Width),
    MadHi {
        signed: bool,
        width: Width,
    },
    MadWide {
        signed: bool,
        from: Width,
    },
    Sad {
        signed: bool,
        width: Width,
    },
    Bfe {
        signed: bool,
        width: Width,
    },
    Bfi(Width),
    Lop3(u8),
    Prmt(u8),
    Shf {
        left: bool,
        wrap: bool,
    },
    Dp4a {
        a_signed: bool,
        b_signed: bool,
    },
    Dp2a {
        a_signed: bool,
        b_signed: bool,
        high: bool,
    },
    Float2(Float2, Width, FloatMode),
    Float1(Float1, Width, FloatMode),
    Fma(Width, FloatMode),
    Half2 {
        f: Float2,
        half: Half,
        pair: bool,
        mode: FloatMode,
    },
    Half1 {
        f: Float1,
        half: Half,
        pair: bool,
    },
    HalfFma {
        half: Half,
        pair: bool,
        mode: FloatMode,
    },
    Convert(Conversion),
    /// Two f32 to one pair; `a` is the high half.
    ConvertPair(Half, FloatMode),
    /// Comparison, combined with predicate `c` (negated or not); `e` gets the complement's combination.
    Setp {
        compare: Compare,
        kind: Type,
        logic: Option<Logic>,
        negated: bool,
        other: Slot,
    },
    /// Comparison as -1 or 0, or as 1.0 or 0.0.
    Set {
        compare: Compare,
        kind: Type,
        float: bool,
    },
    PredicateLogic(Logic),
    PredicateNot,
    PredicateMove,
    Selp {
        width: Width,
        negated: bool,
    },
    Slct {
        width: Width,
        float: bool,
    },
    Move(Width),
    Pack {
        to: Width,
        from: Width,
    },
    Unpack {
        to: Width,
        from: Width,
    },
    Special(Special),
    Load(Access),
    Store(Access),
    Atomic {
        op: Atomic,
        access: Access,
    },
    ToGeneric(Target),
    FromGeneric(Target),
    IsSpace(Target),
    CpAsync {
        bytes: u8,
        to_offset: i32,
        from_offset: i32,
    },
    CpAsyncCommit,
    CpAsyncWait(u32),
    Ldmatrix {
        count: u8,
        transposed: bool,
        offset: i32,
    },
    Stmatrix {
        count: u8,
        transposed: bool,
        offset: i32,
    },
    Movmatrix,
    Mma(Mma),
    Warpgroup(Warpgroup),
    /// What was written to shared memory before is there for products of warpgroups.
    ProxyFence,
    /// `e` is the mask.
    Shuffle {
        kind: Shuffle,
        valid: Slot,
    },
    Vote {
        kind: Vote,
        negated: bool,
    },
    MatchAny(Width),
    MatchAll {
        width: Width,
        same: Slot,
    },
    Redux {
        op: Int2,
    },
    ActiveMask,
    Elect {
        leader: Slot,
    },
    Barrier {
        kind: Barrier,
        negated: bool,
    },
    WarpBarrier,
    Branch(u32),
    /// Jump to `Kernel::tables[index..][a]`.
    BranchTable {
        start: u32,
        length: u32,
    },
    Call(u32),
    Return,
    Exit,
    Trap,
    AssertFail,
    Print,
    Pause,
    Fence,
    /// Waits for the launches before (`griddepcontrol.wait`).
    WaitForLaunches,
    Nothing,
}
