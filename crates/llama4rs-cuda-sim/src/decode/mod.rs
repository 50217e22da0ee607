//! From the tree of a module to kernels that can run.
//!
//! Everything that can be settled before a launch is settled here: names become
//! numbers, constants become shared registers, functions are placed behind the
//! kernel that calls them. An instruction that the device does not know fails
//! here, by name, and not in the middle of a launch.

mod arithmetic;
mod control;
mod data;
mod half;
mod operands;
mod warp;
mod warpgroup;

use std::collections::HashMap;

use crate::allocate;
use crate::program::{Constants, Inst, Kernel, Op, Slot, Width, UNGUARDED};
use crate::ptx::{
    Function, Instruction, Module, PtxError, Space, Statement, StatementKind, Variable,
};

pub use warpgroup::product_registers;

/// Shared addresses begin here, so that a null pointer is never one.
pub const SHARED_START: u64 = 1024;
/// Local addresses begin here, for the same reason.
const LOCAL_START: usize = 16;

type Decoded<T> = Result<T, PtxError>;

/// What a name stands for.
#[derive(Clone, Copy)]
enum Binding {
    Register(Slot),
    Variable(Space, u64),
}

/// Where a function's results, parameters and code are.
struct Callee {
    code: Option<u32>,
    /// Holds the place to return to.
    back: Slot,
    results: Vec<u64>,
    params: Vec<u64>,
}

/// Makes every kernel of `module`; `globals` are the addresses of its variables.
pub fn kernels(module: &Module, globals: &HashMap<String, u64>) -> Decoded<Vec<Kernel>> {
    let entries = module.functions.iter().filter(|f| f.entry);
    entries.map(|f| kernel(module, globals, f)).collect()
}

fn kernel(module: &Module, globals: &HashMap<String, u64>, entry: &Function) -> Decoded<Kernel> {
    let mut decoder = Decoder::new(module, globals, entry);
    decoder.place_shared(entry)?;
    decoder
        .entry(entry)
        .map_err(|e| PtxError::new(e.line, format!("kernel `{}`: {}", entry.name, e.what)))?;
    let mut kernel = decoder.kernel;
    kernel.grain = if kernel.grain == 0 { 4 } else { kernel.grain };
    allocate::allocate(&mut kernel);
    kernel.watched = warpgroup::watched(&kernel);
    Ok(kernel)
}

/// The state while one kernel is made.
struct Decoder<'m> {
    module: &'m Module,
    globals: &'m HashMap<String, u64>,
    kernel: Kernel,
    constants: HashMap<(Width, u64), usize>,
    /// Names of the enclosing braces, innermost last.
    scopes: Vec<HashMap<String, Binding>>,
    /// Branch tables of the function.
    targets: HashMap<String, Vec<String>>,
    callees: HashMap<String, Callee>,
    /// Functions whose code is still to come.
    pending: Vec<&'m Function>,
    calls: Vec<(usize, String)>,
    /// Branches of the function whose labels are still unknown.
    branches: Vec<(usize, String)>,
    /// Slots of `kernel.tables` whose labels are still unknown.
    table_entries: Vec<(usize, String)>,
    labels: HashMap<String, u32>,
    /// The function's own place to return to.
    back: Slot,
    /// Whether the function is the kernel itself.
    in_entry: bool,
    guard: u32,
    line: u32,
}

impl<'m> Decoder<'m> {
    fn new(module: &'m Module, globals: &'m HashMap<String, u64>, entry: &Function) -> Self {
        let kernel = Kernel {
            name: entry.name.clone(),
            code: Vec::new(),
            lists: Vec::new(),
            tables: Vec::new(),
            registers: [0; 3],
            predicates: 2,
            constants: Constants::default(),
            params: Vec::new(),
            param_bytes: 0,
            shared_bytes: 0,
            dynamic_align: 16,
            local_bytes: LOCAL_START,
            grain: 0,
            max_threads: entry.max_threads,
            source: module.source.clone(),
            partial_barriers: false,
            watched: Vec::new(),
        };
        Self {
            module,
            globals,
            kernel,
            constants: HashMap::new(),
            scopes: vec![HashMap::new()],
            targets: HashMap::new(),
            callees: HashMap::new(),
            pending: Vec::new(),
            calls: Vec::new(),
            branches: Vec::new(),
            table_entries: Vec::new(),
            labels: HashMap::new(),
            back: Slot::NONE,
            in_entry: true,
            guard: UNGUARDED,
            line: 0,
        }
    }

    fn fail<T>(&self, what: impl Into<String>) -> Decoded<T> {
        Err(PtxError::new(self.line, what.into()))
    }

    fn bind(&mut self, name: &str, binding: Binding) {
        let scope = self.scopes.last_mut().expect("there is always a scope");
        scope.insert(name.to_string(), binding);
    }

    fn find(&self, name: &str) -> Option<Binding> {
        self.scopes.iter().rev().find_map(|s| s.get(name).copied())
    }

    fn new_register(&mut self, width: Width) -> Slot {
        let n = &mut self.kernel.registers[width as usize];
        *n += 1;
        Slot::register(width, *n - 1)
    }

    fn emit(&mut self, op: Op, d: Slot, a: Slot, b: Slot, c: Slot) {
        self.emit5(op, d, a, b, c, Slot::NONE);
    }

    fn emit5(&mut self, op: Op, d: Slot, a: Slot, b: Slot, c: Slot, e: Slot) {
        let (guard, line) = (self.guard, self.line);
        self.kernel.code.push(Inst { op, guard, line, d, a, b, c, e });
    }

    /// Gives each shared variable that the module uses its place.
    fn place_shared(&mut self, entry: &Function) -> Decoded<()> {
        let mut at = SHARED_START as usize;
        let mut place = |v: &Variable| {
            at = at.next_multiple_of(v.align.max(1));
            let here = at;
            at += v.bytes;
            (v.name.clone(), Binding::Variable(Space::Shared, here as u64))
        };
        let outside = self.module.variables.iter().filter(|v| v.space == Space::Shared);
        let mut places: Vec<_> = outside.clone().filter(|v| v.bytes > 0).map(&mut place).collect();
        // Variables inside functions have names of their own, unless braces repeat one.
        let bodies =
            std::iter::once(entry).chain(self.module.functions.iter().filter(|f| !f.entry));
        let inside = bodies.filter_map(|f| f.body.as_ref()).flatten();
        for statement in inside {
            if let StatementKind::Variable(v) = &statement.kind {
                if v.space == Space::Shared {
                    places.push(place(v));
                }
            }
        }
        let dynamic: Vec<_> = outside.filter(|v| v.bytes == 0).collect();
        let align = dynamic.iter().map(|v| v.align).max().unwrap_or(16).max(16);
        at = at.next_multiple_of(align);
        for v in dynamic {
            places.push((v.name.clone(), Binding::Variable(Space::Shared, at as u64)));
        }
        self.scopes[0].extend(places);
        self.kernel.shared_bytes = at - SHARED_START as usize;
        self.kernel.dynamic_align = align;
        Ok(())
    }

    fn entry(&mut self, entry: &'m Function) -> Decoded<()> {
        let mut at = 0usize;
        for p in &entry.params {
            at = at.next_multiple_of(p.align.max(1));
            self.kernel.params.push((at, p.bytes));
            self.scopes[0].insert(p.name.clone(), Binding::Variable(Space::Param, at as u64));
            at += p.bytes;
        }
        self.kernel.param_bytes = at;
        self.body(entry)?;
        self.in_entry = false;
        while let Some(function) = self.pending.pop() {
            let callee = self.callees.get_mut(&function.name).expect("it was called");
            callee.code = Some(self.kernel.code.len() as u32);
            self.back = callee.back;
            self.scopes.truncate(1);
            self.scopes.push(HashMap::new());
            let (results, params) = (callee.results.clone(), callee.params.clone());
            let variables = function.results.iter().zip(results);
            let variables = variables.chain(function.params.iter().zip(params));
            for (v, at) in variables.collect::<Vec<_>>() {
                self.bind(&v.name, Binding::Variable(Space::Local, at));
            }
            self.body(function)?;
        }
        for (at, name) in std::mem::take(&mut self.calls) {
            let code = self.callees[&name].code.expect("every pending function was placed");
            self.kernel.code[at].op = Op::Call(code);
        }
        self.check_recursion()
    }

    fn body(&mut self, function: &'m Function) -> Decoded<()> {
        let Some(body) = &function.body else {
            return self.fail(format!("`{}` has no body", function.name));
        };
        self.labels.clear();
        self.targets.clear();
        for (i, statement) in body.iter().enumerate() {
            self.line = statement.line;
            if let StatementKind::Targets(name, labels) = &statement.kind {
                self.targets.insert(name.clone(), labels.clone());
            }
            self.statement(body, i, statement)?;
        }
        // Running off the end is a return.
        self.guard = UNGUARDED;
        self.control_return();
        for (at, label) in std::mem::take(&mut self.branches) {
            let target = self.label(&label)?;
            self.kernel.code[at].op = Op::Branch(target);
        }
        for (at, label) in std::mem::take(&mut self.table_entries) {
            self.kernel.tables[at] = self.label(&label)?;
        }
        Ok(())
    }

    fn label(&self, name: &str) -> Decoded<u32> {
        match self.labels.get(name) {
            Some(&at) => Ok(at),
            None => self.fail(format!("label `{name}` does not exist")),
        }
    }

    fn statement(
        &mut self,
        body: &'m [Statement],
        i: usize,
        statement: &'m Statement,
    ) -> Decoded<()> {
        match &statement.kind {
            StatementKind::Label(name) => {
                self.labels.insert(name.clone(), self.kernel.code.len() as u32);
            }
            StatementKind::Targets(..) => {}
            StatementKind::Open => self.scopes.push(HashMap::new()),
            StatementKind::Close => {
                self.scopes.pop();
            }
            StatementKind::Registers(kind, name, count) => self.registers(kind, name, *count)?,
            StatementKind::Variable(v) => self.variable(body, i, v)?,
            StatementKind::Instruction(inst) => self.instruction(inst)?,
        }
        Ok(())
    }

    fn registers(&mut self, kind: &str, name: &str, count: Option<u32>) -> Decoded<()> {
        let width = match kind {
            "pred" => None,
            "b8" | "u8" | "s8" | "b16" | "u16" | "s16" | "f16" | "bf16" => Some(Width::W16),
            "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => Some(Width::W32),
            "b64" | "u64" | "s64" | "f64" => Some(Width::W64),
            _ => return self.fail(format!("registers of type .{kind} are not supported")),
        };
        let names = match count {
            None => vec![name.to_string()],
            Some(n) => (0..n).map(|i| format!("{name}{i}")).collect(),
        };
        for name in names {
            let slot = match width {
                Some(width) => self.new_register(width),
                None => {
                    self.kernel.predicates += 1;
                    Slot::predicate(self.kernel.predicates - 1)
                }
            };
            self.bind(&name, Binding::Register(slot));
        }
        Ok(())
    }

    fn variable(&mut self, body: &'m [Statement], i: usize, v: &Variable) -> Decoded<()> {
        match v.space {
            Space::Local => {
                let at = self.place_local(v);
                self.bind(&v.name, Binding::Variable(Space::Local, at));
            }
            Space::Param => {
                let at = self.argument_place(body, i, &v.name)?;
                self.bind(&v.name, Binding::Variable(Space::Local, at));
            }
            // Shared variables have their places already.
            _ => {}
        }
        Ok(())
    }

    fn place_local(&mut self, v: &Variable) -> u64 {
        let at = self.kernel.local_bytes.next_multiple_of(v.align.max(4));
        self.kernel.local_bytes = at + v.bytes;
        at as u64
    }

    fn instruction(&mut self, inst: &'m Instruction) -> Decoded<()> {
        self.guard = match &inst.guard {
            None => UNGUARDED,
            Some((name, negated)) => match self.find(name) {
                Some(Binding::Register(slot)) if slot == Slot::predicate(slot.index()) => {
                    (slot.index() as u32) << 1 | u32::from(*negated)
                }
                _ => return self.fail(format!("`{name}` is not a predicate")),
            },
        };
        let mut opcode = operands::Opcode::new(&inst.opcode);
        let known = self.arithmetic(&mut opcode, &inst.operands)?
            || self.data(&mut opcode, &inst.operands)?
            || self.warp(&mut opcode, &inst.operands)?
            || self.warpgroup(&mut opcode, &inst.operands)?
            || self.control(&mut opcode, &inst.operands)?;
        if !known || !opcode.mods.is_empty() {
            return self.fail(format!("instruction `{}` is not supported", inst.opcode));
        }
        Ok(())
    }
}
