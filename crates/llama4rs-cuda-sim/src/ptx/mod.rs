//! PTX as text and as a tree.

mod lexer;
mod parser;

use std::fmt;

pub use parser::parse;

/// A module could not be read.
#[derive(Clone, Debug)]
pub struct PtxError {
    /// Line of the PTX text, from 1; 0 if no line is to blame.
    pub line: u32,
    /// What was wrong.
    pub what: String,
}

impl PtxError {
    /// An error at `line`.
    pub fn new(line: u32, what: String) -> Self {
        Self { line, what }
    }
}

impl fmt::Display for PtxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for PtxError {}

/// Where a variable lives or an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Device memory.
    Global,
    /// Device memory that kernels do not write.
    Const,
    /// The block's memory.
    Shared,
    /// A thread's own memory.
    Local,
    /// Arguments of kernels and functions.
    Param,
    /// An address that says itself which of these it is in.
    Generic,
}

/// A variable outside or inside a function.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its memory.
    pub space: Space,
    /// Its name.
    pub name: String,
    /// Alignment in bytes.
    pub align: usize,
    /// Size in bytes; 0 for an array whose size the launch decides.
    pub bytes: usize,
    /// First bytes of its value; the rest is zero.
    pub init: Vec<u8>,
    /// Eight-byte addresses of other variables inside the value: offset, name, addend.
    pub addresses: Vec<(usize, String, i64)>,
    /// Declared here, defined by the launch or elsewhere.
    pub external: bool,
}

/// A kernel or a device function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Whether the host can launch it.
    pub entry: bool,
    /// Results, then parameters.
    pub results: Vec<Variable>,
    /// Parameters in order.
    pub params: Vec<Variable>,
    /// `.maxntid` or `.reqntid`, as a number of threads.
    pub max_threads: Option<u32>,
    /// The body; none for a declaration.
    pub body: Option<Vec<Statement>>,
}

/// One statement and its line.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// What it is.
    pub kind: StatementKind,
}

/// The statements of a body.
#[derive(Clone, Debug)]
pub enum StatementKind {
    /// A label.
    Label(String),
    /// Registers: type, name, and for `%r<8>` their number.
    Registers(String, String, Option<u32>),
    /// A shared, local or parameter variable.
    Variable(Variable),
    /// `{`
    Open,
    /// `}`
    Close,
    /// `name: .branchtargets a, b;`
    Targets(String, Vec<String>),
    /// An instruction.
    Instruction(Instruction),
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Predicate and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// Opcode with all modifiers.
    pub opcode: String,
    /// Operands in order.
    pub operands: Vec<Operand>,
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, special register, label, function or variable.
    Name(String),
    /// A variable and an offset.
    Offset(String, i64),
    /// A negated predicate.
    Not(String),
    /// A whole number.
    Int(i64),
    /// `0f...`: the bits of an f32.
    F32(u32),
    /// `0d...`: the bits of an f64.
    F64(u64),
    /// `[base + offset]`
    Address(Box<Operand>, i64),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `(a, b)`
    List(Vec<Operand>),
    /// `a|p`
    Pair(Box<Operand>, Box<Operand>),
}

/// A whole module.
#[derive(Clone, Debug)]
pub struct Module {
    /// The text.
    pub source: std::sync::Arc<str>,
    /// Such as `sm_80`.
    pub target: String,
    /// Variables outside functions.
    pub variables: Vec<Variable>,
    /// Kernels and functions.
    pub functions: Vec<Function>,
}

/// Bytes of a PTX type such as `.u32`.
pub fn type_bytes(name: &str) -> Option<usize> {
    let digits = name.trim_start_matches('.').trim_start_matches(|c: char| c.is_ascii_alphabetic());
    match digits {
        "8" => Some(1),
        "16" => Some(2),
        "32" | "16x2" => Some(4),
        "64" => Some(8),
        "128" => Some(16),
        _ => None,
    }
}
