//! What the compiler says each kernel needs (`--ptxas-options=-v`).

/// Registers and memory of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// The kernel's name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of stack of a thread.
    pub stack: u32,
    /// Bytes that are spilled to memory, stores and loads together.
    pub spills: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
}

/// The resources of every kernel in a compiler's log.
///
/// The log has three lines for each: `Compiling entry function 'name' for
/// 'sm_80'`, then `N bytes stack frame, N bytes spill stores, N bytes spill
/// loads`, then `Used N registers, ... N bytes smem, ...`.
pub fn parse(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            found.push(Resources { kernel, registers: 0, stack: 0, spills: 0, shared: 0 });
        } else if let Some(last) = found.last_mut() {
            if line.contains("bytes stack frame") {
                last.stack = number_before(line, " bytes stack frame");
                last.spills = number_before(line, " bytes spill stores")
                    + number_before(line, " bytes spill loads");
            } else if line.contains("Used ") {
                last.registers = number_before(line, " registers");
                last.shared = number_before(line, " bytes smem");
            }
        }
    }
    found
}

/// The number that ends where `unit` begins; 0 without one.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.split(unit).next().filter(|before| before.len() < line.len());
    let digits = before.and_then(|text| text.rsplit(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'add' for 'sm_90a'\n\
            ptxas info    : Function properties for add\n    \
            8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 38 registers, used 1 barriers, 1024 bytes smem, 8 bytes cmem[4]\n\
            ptxas info    : Compiling entry function 'plain' for 'sm_90a'\n\
            ptxas info    : Used 6 registers, used 0 barriers\n";
        let resources = |kernel: &str, registers, stack, spills, shared| Resources {
            kernel: kernel.to_owned(),
            registers,
            stack,
            spills,
            shared,
        };
        assert_eq!(parse(log), [resources("add", 38, 8, 16, 1024), resources("plain", 6, 0, 0, 0)]);
    }
}
