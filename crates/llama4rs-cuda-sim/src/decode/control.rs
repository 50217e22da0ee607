//! Branches, calls, and instructions that only order others.

use std::collections::HashMap;

use super::operands::Opcode;
use super::{Callee, Decoded, Decoder};
use crate::program::{Op, Slot, Width};
use crate::ptx::{Function, Operand, Statement, StatementKind};

impl<'m> Decoder<'m> {
    /// Decodes the instruction if it is one of these.
    pub(super) fn control(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        let none = Slot::NONE;
        let plain = match op.base {
            "bra" => {
                op.take("uni");
                let [Operand::Name(label)] = o else { return Ok(false) };
                self.branches.push((self.kernel.code.len(), label.clone()));
                Op::Nothing
            }
            "brx" => return self.branch_table(op, o),
            "call" => return self.call(op, o),
            "ret" => {
                op.take("uni");
                self.control_return();
                return Ok(true);
            }
            "exit" => Op::Exit,
            "trap" => Op::Trap,
            "membar" | "fence" => {
                let proxy = op.take("proxy") && op.take("async");
                op.mods.clear();
                if proxy {
                    Op::ProxyFence
                } else {
                    Op::Fence
                }
            }
            "nanosleep" => {
                op.take("u32");
                Op::Pause
            }
            "griddepcontrol" => {
                // The next launch begins when this one has ended, whatever it is allowed.
                let waits = op.take("wait");
                op.mods.clear();
                if waits {
                    Op::WaitForLaunches
                } else {
                    Op::Nothing
                }
            }
            "brkpt" | "pmevent" => Op::Nothing,
            "setmaxnreg" => {
                op.mods.clear();
                Op::Nothing
            }
            _ => return Ok(false),
        };
        self.emit(plain, none, none, none, none);
        Ok(true)
    }

    pub(super) fn control_return(&mut self) {
        let none = Slot::NONE;
        if self.in_entry {
            self.emit(Op::Exit, none, none, none, none);
        } else {
            let back = self.back;
            self.emit(Op::Return, none, back, none, none);
        }
    }

    fn branch_table(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        op.take("uni");
        let (true, [index, Operand::Name(name)]) = (op.take("idx"), o) else { return Ok(false) };
        let Some(labels) = self.targets.get(name).cloned() else {
            // The table may stand behind the branch.
            return self.fail(format!("branch table `{name}` does not exist"));
        };
        let a = self.source(index, Width::W32)?;
        let (start, length) = (self.kernel.tables.len() as u32, labels.len() as u32);
        for label in labels {
            self.table_entries.push((self.kernel.tables.len(), label));
            self.kernel.tables.push(0);
        }
        self.emit(Op::BranchTable { start, length }, Slot::NONE, a, Slot::NONE, Slot::NONE);
        Ok(true)
    }

    fn call(&mut self, op: &mut Opcode, o: &[Operand]) -> Decoded<bool> {
        op.take("uni");
        let Some(name) = called(o) else { return Ok(false) };
        let function = self.function(name)?;
        self.callee(function);
        let none = Slot::NONE;
        if function.body.is_some() {
            let back = self.callees[name].back;
            self.calls.push((self.kernel.code.len(), name.to_string()));
            self.emit(Op::Call(0), back, none, none, none);
            return Ok(true);
        }
        let op = match name {
            "__assertfail" => Op::AssertFail,
            "vprintf" => Op::Print,
            _ => return self.fail(format!("`{name}` has no body")),
        };
        let places = self.callees[name].params.clone();
        let slots: Vec<_> = places.iter().map(|&p| self.constant(Width::W64, p)).collect();
        let places = self.list(&slots);
        self.emit(op, none, places, none, none);
        Ok(true)
    }

    fn function(&self, name: &str) -> Decoded<&'m Function> {
        let mut with_body: Vec<_> =
            self.module.functions.iter().filter(|f| f.name == name).collect();
        with_body.sort_by_key(|f| f.body.is_none());
        match with_body.first() {
            Some(f) => Ok(f),
            None => self.fail(format!("function `{name}` does not exist")),
        }
    }

    /// Gives a function its places in local memory, once.
    fn callee(&mut self, function: &'m Function) {
        if self.callees.contains_key(&function.name) {
            return;
        }
        let results = function.results.iter().map(|v| self.place_local(v)).collect();
        let params = function.params.iter().map(|v| self.place_local(v)).collect();
        let back = self.new_register(Width::W32);
        self.callees.insert(function.name.clone(), Callee { code: None, back, results, params });
        if function.body.is_some() {
            self.pending.push(function);
        }
    }

    /// Where the argument variable `name`, declared at `body[i]`, lives: where
    /// the function of the next call looks for it.
    pub(super) fn argument_place(
        &mut self,
        body: &'m [Statement],
        i: usize,
        name: &str,
    ) -> Decoded<u64> {
        let is_name = |o: &Operand| matches!(o, Operand::Name(n) if n == name);
        for statement in &body[i + 1..] {
            let StatementKind::Instruction(inst) = &statement.kind else { continue };
            if inst.opcode.split('.').next() != Some("call") {
                continue;
            }
            let Some(called) = called(&inst.operands) else { break };
            let function = self.function(called)?;
            self.callee(function);
            let callee = &self.callees[called];
            let at =
                inst.operands.iter().position(|o| matches!(o, Operand::Name(n) if n == called));
            for (k, operand) in inst.operands.iter().enumerate() {
                let Operand::List(names) = operand else { continue };
                let Some(place) = names.iter().position(is_name) else { continue };
                let places = if Some(k) < at { &callee.results } else { &callee.params };
                if let Some(&place) = places.get(place) {
                    return Ok(place);
                }
            }
            break;
        }
        self.fail(format!("no call uses the argument `{name}`"))
    }

    /// Registers and local variables of a function exist once, so it must not call itself.
    pub(super) fn check_recursion(&self) -> Decoded<()> {
        let mut calls: HashMap<&str, Vec<&str>> = HashMap::new();
        for function in &self.module.functions {
            let instructions = function.body.iter().flatten().filter_map(|s| match &s.kind {
                StatementKind::Instruction(i) if i.opcode.starts_with("call") => Some(i),
                _ => None,
            });
            let names = instructions.filter_map(|i| called(&i.operands)).collect();
            calls.insert(&function.name, names);
        }
        let mut path = vec![self.kernel.name.as_str()];
        match cycle(&calls, &mut path) {
            Some(name) => self.fail(format!("`{name}` is recursive, which is not supported")),
            None => Ok(()),
        }
    }
}

fn cycle<'a>(calls: &HashMap<&'a str, Vec<&'a str>>, path: &mut Vec<&'a str>) -> Option<&'a str> {
    let last = *path.last().expect("the path is never empty");
    for &next in calls.get(last).into_iter().flatten() {
        if path.contains(&next) {
            return Some(next);
        }
        path.push(next);
        if let Some(name) = cycle(calls, path) {
            return Some(name);
        }
        path.pop();
    }
    None
}

/// The function that a call names.
fn called(operands: &[Operand]) -> Option<&str> {
    operands.iter().find_map(|o| match o {
        Operand::Name(name) => Some(name.as_str()),
        _ => None,
    })
}
