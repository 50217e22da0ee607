//! Tokens to a tree, by recursive descent.

use super::lexer::{tokens, Token};
use super::{
    type_bytes, Function, Instruction, Module, Operand, PtxError, Space, Statement, StatementKind,
    Variable,
};

/// Reads a module.
pub fn parse(source: &str) -> Result<Module, PtxError> {
    let tokens = tokens(source)?;
    let mut parser = Parser { tokens: &tokens, at: 0 };
    let mut module = Module {
        source: source.into(),
        target: String::new(),
        variables: Vec::new(),
        functions: Vec::new(),
    };
    while parser.at < parser.tokens.len() {
        parser.top_level(&mut module)?;
    }
    Ok(module)
}

struct Parser<'a> {
    tokens: &'a [(Token<'a>, u32)],
    at: usize,
}

type Parsed<T> = Result<T, PtxError>;

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |t| t.1)
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.0)
    }

    fn fail<T>(&self, expected: &str) -> Parsed<T> {
        let found = match self.peek() {
            None => "the end".to_string(),
            Some(Token::Word(w)) => format!("`{w}`"),
            Some(Token::Text(t)) => format!("\"{t}\""),
            Some(Token::Mark(c)) => format!("`{}`", c as char),
        };
        Err(PtxError::new(self.line(), format!("expected {expected}, found {found}")))
    }

    fn word(&mut self, expected: &str) -> Parsed<&'a str> {
        match self.peek() {
            Some(Token::Word(w)) => {
                self.at += 1;
                Ok(w)
            }
            _ => self.fail(expected),
        }
    }

    fn peek_word(&self) -> Option<&'a str> {
        match self.peek() {
            Some(Token::Word(w)) => Some(w),
            _ => None,
        }
    }

    /// Takes the mark if it is next.
    fn eat(&mut self, mark: u8) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn need(&mut self, mark: u8) -> Parsed<()> {
        if self.eat(mark) {
            Ok(())
        } else {
            self.fail(&format!("`{}`", mark as char))
        }
    }

    /// Skips to the end of a statement or a braced section that does not matter here.
    fn skip_statement(&mut self) {
        let line = self.line();
        while self.at < self.tokens.len() {
            if self.eat(b';') {
                return;
            }
            if self.eat(b'{') {
                while self.at < self.tokens.len() && !self.eat(b'}') {
                    self.at += 1;
                }
                return;
            }
            // `.file` and `.loc` end with their line.
            if self.line() != line {
                return;
            }
            self.at += 1;
        }
    }

    fn top_level(&mut self, module: &mut Module) -> Parsed<()> {
        let mut external = false;
        loop {
            match self.word("a directive")? {
                ".extern" => external = true,
                ".visible" | ".weak" | ".common" => {}
                ".version" | ".address_size" => {
                    self.word("a number")?;
                    return Ok(());
                }
                ".target" => {
                    module.target = self.word("a target")?.to_string();
                    while self.eat(b',') {
                        self.word("a target option")?;
                    }
                    return Ok(());
                }
                ".file" | ".section" | ".loc" | ".pragma" | ".alias" => {
                    self.skip_statement();
                    return Ok(());
                }
                ".entry" => {
                    module.functions.push(self.function(true)?);
                    return Ok(());
                }
                ".func" => {
                    module.functions.push(self.function(false)?);
                    return Ok(());
                }
                space @ (".global" | ".const" | ".shared") => {
                    let space = match space {
                        ".global" => Space::Global,
                        ".const" => Space::Const,
                        _ => Space::Shared,
                    };
                    self.variables(space, external, &mut module.variables)?;
                    return Ok(());
                }
                _ => {
                    self.at -= 1;
                    return self.fail("a directive");
                }
            }
        }
    }

    /// `.align 4 .b8 name[64] = {...}, other;`
    fn variables(&mut self, space: Space, external: bool, out: &mut Vec<Variable>) -> Parsed<()> {
        let (align, element) = self.variable_type()?;
        loop {
            let mut variable = self.variable_name(space, align, element)?;
            variable.external = external;
            if self.eat(b'=') {
                self.initialiser(element, &mut variable)?;
            }
            out.push(variable);
            if !self.eat(b',') {
                return self.need(b';');
            }
        }
    }

    /// Alignment and bytes of the element type.
    fn variable_type(&mut self) -> Parsed<(usize, usize)> {
        let (mut align, mut lanes) = (0, 1);
        loop {
            match self.word("a type")? {
                ".align" => align = self.number()? as usize,
                ".attribute" => {
                    while !self.eat(b')') {
                        self.at += 1;
                    }
                }
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                // `.ptr .global .align 1` in parameters
                ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
                name => {
                    let Some(bytes) = type_bytes(name) else {
                        self.at -= 1;
                        return self.fail("a type");
                    };
                    let bytes = bytes * lanes;
                    // Attributes of pointers may follow the type.
                    while let Some(
                        ".ptr" | ".global" | ".const" | ".shared" | ".local" | ".align",
                    ) = self.peek_word()
                    {
                        if self.word("an attribute")? == ".align" {
                            self.number()?;
                        }
                    }
                    return Ok((align.max(bytes), bytes));
                }
            }
        }
    }

    fn variable_name(&mut self, space: Space, align: usize, element: usize) -> Parsed<Variable> {
        let name = self.word("a name")?.to_string();
        let mut bytes = element;
        while self.eat(b'[') {
            if self.eat(b']') {
                bytes = 0;
            } else {
                bytes *= self.number()? as usize;
                self.need(b']')?;
            }
        }
        let (init, addresses) = (Vec::new(), Vec::new());
        Ok(Variable { space, name, align, bytes, init, addresses, external: false })
    }

    fn initialiser(&mut self, element: usize, variable: &mut Variable) -> Parsed<()> {
        if self.eat(b'{') {
            while !self.eat(b'}') {
                self.initialiser(element, variable)?;
                self.eat(b',');
            }
            return Ok(());
        }
        let offset = variable.init.len();
        let mut value = 0;
        match self.operand()? {
            Operand::Int(v) => value = v as u64,
            Operand::F32(v) => value = v.into(),
            Operand::F64(v) => value = v,
            Operand::Name(name) if name == "generic" => {
                self.need(b'(')?;
                let name = self.word("a variable")?.to_string();
                self.need(b')')?;
                let addend = if self.eat(b'+') { self.number()? } else { 0 };
                variable.addresses.push((offset, name, addend));
            }
            Operand::Name(name) => variable.addresses.push((offset, name, 0)),
            Operand::Offset(name, addend) => variable.addresses.push((offset, name, addend)),
            _ => return self.fail("a value"),
        }
        variable.init.extend_from_slice(&value.to_le_bytes()[..element.min(8)]);
        Ok(())
    }

    fn function(&mut self, entry: bool) -> Parsed<Function> {
        let results = if self.eat(b'(') { self.params()? } else { Vec::new() };
        let name = self.word("a function's name")?.to_string();
        let params = if self.eat(b'(') { self.params()? } else { Vec::new() };
        let mut max_threads = None;
        loop {
            match self.peek() {
                Some(Token::Word(".maxntid" | ".reqntid")) => {
                    self.at += 1;
                    let mut threads = self.number()?;
                    while self.eat(b',') {
                        threads *= self.number()?;
                    }
                    max_threads = Some(threads as u32);
                }
                Some(Token::Word(_) | Token::Text(_)) => self.at += 1,
                Some(Token::Mark(b'{')) => {
                    self.at += 1;
                    let body = Some(self.body()?);
                    return Ok(Function { name, entry, results, params, max_threads, body });
                }
                Some(Token::Mark(b';')) => {
                    self.at += 1;
                    return Ok(Function { name, entry, results, params, max_threads, body: None });
                }
                Some(Token::Mark(b',')) => self.at += 1,
                _ => return self.fail("a function's body"),
            }
        }
    }

    fn params(&mut self) -> Parsed<Vec<Variable>> {
        let mut out = Vec::new();
        while !self.eat(b')') {
            if self.word("`.param`")? != ".param" {
                self.at -= 1;
                return self.fail("`.param`");
            }
            let (align, element) = self.variable_type()?;
            out.push(self.variable_name(Space::Param, align, element)?);
            self.eat(b',');
        }
        Ok(out)
    }

    fn body(&mut self) -> Parsed<Vec<Statement>> {
        let (mut out, mut depth) = (Vec::new(), 0);
        loop {
            let line = self.line();
            let mut push = |kind| out.push(Statement { line, kind });
            if self.eat(b'{') {
                depth += 1;
                push(StatementKind::Open);
                continue;
            }
            if self.eat(b'}') {
                if depth == 0 {
                    return Ok(out);
                }
                depth -= 1;
                push(StatementKind::Close);
                continue;
            }
            if self.eat(b';') {
                continue;
            }
            let guard = if self.eat(b'@') {
                let negated = self.eat(b'!');
                Some((self.word("a predicate")?.to_string(), negated))
            } else {
                None
            };
            let word = self.word("a statement")?;
            match word {
                ".reg" => {
                    let kind = self.word("a type")?.trim_start_matches('.').to_string();
                    loop {
                        let name = self.word("a register")?.to_string();
                        let count = if self.eat(b'<') {
                            let n = self.number()? as u32;
                            self.need(b'>')?;
                            Some(n)
                        } else {
                            None
                        };
                        push(StatementKind::Registers(kind.clone(), name, count));
                        if !self.eat(b',') {
                            break;
                        }
                    }
                    self.need(b';')?;
                }
                ".shared" | ".local" | ".param" => {
                    let space = match word {
                        ".shared" => Space::Shared,
                        ".local" => Space::Local,
                        _ => Space::Param,
                    };
                    let mut variables = Vec::new();
                    self.variables(space, false, &mut variables)?;
                    variables.into_iter().for_each(|v| push(StatementKind::Variable(v)));
                }
                ".loc" | ".pragma" | ".callprototype" | ".file" => self.skip_statement(),
                label if guard.is_none() && self.eat(b':') => {
                    if self.peek_word() == Some(".branchtargets") {
                        self.at += 1;
                        let mut targets = vec![self.word("a label")?.to_string()];
                        while self.eat(b',') {
                            targets.push(self.word("a label")?.to_string());
                        }
                        self.need(b';')?;
                        push(StatementKind::Targets(label.to_string(), targets));
                    } else {
                        push(StatementKind::Label(label.to_string()));
                    }
                }
                opcode => {
                    let mut operands = Vec::new();
                    while !self.eat(b';') {
                        operands.push(self.operand()?);
                        if !self.eat(b',') && self.peek() != Some(Token::Mark(b';')) {
                            return self.fail("`,` or `;`");
                        }
                    }
                    let opcode = opcode.to_string();
                    push(StatementKind::Instruction(Instruction { guard, opcode, operands }));
                }
            }
        }
    }

    fn operand(&mut self) -> Parsed<Operand> {
        let first = self.simple_operand()?;
        if self.eat(b'|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.simple_operand()?)));
        }
        Ok(first)
    }

    fn simple_operand(&mut self) -> Parsed<Operand> {
        if self.eat(b'!') {
            return Ok(Operand::Not(self.word("a predicate")?.to_string()));
        }
        if self.eat(b'{') {
            return Ok(Operand::Vector(self.operands_until(b'}')?));
        }
        if self.eat(b'(') {
            return Ok(Operand::List(self.operands_until(b')')?));
        }
        if self.eat(b'[') {
            return self.address();
        }
        if self.peek() == Some(Token::Mark(b'-')) {
            return Ok(Operand::Int(self.number()?));
        }
        let word = self.word("an operand")?;
        if let Some(value) = literal(word) {
            return Ok(value);
        }
        if !word.starts_with('%') && self.eat(b'+') {
            return Ok(Operand::Offset(word.to_string(), self.number()?));
        }
        Ok(Operand::Name(word.to_string()))
    }

    fn operands_until(&mut self, end: u8) -> Parsed<Vec<Operand>> {
        let mut out = Vec::new();
        while !self.eat(end) {
            out.push(self.operand()?);
            self.eat(b',');
        }
        Ok(out)
    }

    /// What stands inside `[...]`.
    fn address(&mut self) -> Parsed<Operand> {
        let base = match self.simple_operand()? {
            Operand::Offset(name, offset) => {
                self.need(b']')?;
                return Ok(Operand::Address(Box::new(Operand::Name(name)), offset));
            }
            base => base,
        };
        let mut offset = 0;
        if self.eat(b'+') || self.peek() == Some(Token::Mark(b'-')) {
            offset = self.number()?;
        }
        self.need(b']')?;
        Ok(Operand::Address(Box::new(base), offset))
    }

    fn number(&mut self) -> Parsed<i64> {
        let negative = self.eat(b'-');
        let word = self.word("a number")?;
        match literal(word) {
            Some(Operand::Int(v)) => Ok(if negative { v.wrapping_neg() } else { v }),
            _ => {
                self.at -= 1;
                self.fail("a number")
            }
        }
    }
}

/// A literal, or none if the word is a name.
fn literal(word: &str) -> Option<Operand> {
    if !word.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    if let Some(hex) = word.strip_prefix("0f").or(word.strip_prefix("0F")) {
        return u32::from_str_radix(hex, 16).ok().map(Operand::F32);
    }
    if let Some(hex) = word.strip_prefix("0d").or(word.strip_prefix("0D")) {
        return u64::from_str_radix(hex, 16).ok().map(Operand::F64);
    }
    let digits = word.trim_end_matches('U');
    let value = if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()?
    } else if let Some(bits) = digits.strip_prefix("0b") {
        u64::from_str_radix(bits, 2).ok()?
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(&digits[1..], 8).ok()?
    } else if let Ok(value) = digits.parse::<u64>() {
        value
    } else {
        return digits.parse::<f64>().ok().map(|v| Operand::F64(v.to_bits()));
    };
    Some(Operand::Int(value as i64))
}
