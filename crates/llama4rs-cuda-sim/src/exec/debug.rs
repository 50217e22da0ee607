//! `assert` and `printf` in kernels.

use super::lanes::lanes_of;
use super::warp::Exec;
use crate::memory::{find, LOCAL_WINDOW};
use crate::program::{Inst, LANES};
use crate::report::{Fault, FaultKind};

/// Strings longer than this are cut.
const LONGEST: u64 = 4096;

impl Exec<'_, '_> {
    /// Eight bytes of a lane's local memory.
    fn local_word(&self, lane: usize, at: u64) -> u64 {
        let pitch = self.w.local.len() / LANES;
        let bytes = self.w.local[lane * pitch..][..pitch].get(at as usize..at as usize + 8);
        bytes.map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
    }

    /// An argument of the call.
    fn argument(&self, inst: &Inst, lane: usize, i: usize) -> u64 {
        let places = inst.a.range();
        let place = self.env.kernel.lists[places.start + i];
        self.local_word(lane, self.get::<u64>(place)[lane])
    }

    /// The text at a device address.
    fn text(&self, address: u64) -> String {
        let Some(region) = find(&self.env.regions, address) else { return "?".to_string() };
        let length = (region.end - address).min(LONGEST) as usize;
        // SAFETY: the bytes lie inside the region; kernels do not write string constants.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.env.memory.host(&region, address), length) };
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(length);
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    pub(super) fn assert_fail(&self, inst: &Inst, mask: u32) -> Box<Fault> {
        let lane = mask.trailing_zeros() as usize;
        let message = self.text(self.argument(inst, lane, 0));
        let file = self.text(self.argument(inst, lane, 1));
        let line = self.argument(inst, lane, 2) as u32;
        let what = format!("assertion `{message}` failed at {file}:{line}");
        Fault::new(FaultKind::Assert, Some(lane), what)
    }

    /// Prints as the device would; to standard output, lane after lane.
    pub(super) fn print(&mut self, inst: &Inst, mask: u32) -> Result<(), Box<Fault>> {
        for lane in lanes_of(mask) {
            let format = self.text(self.argument(inst, lane, 0));
            let mut at = self.argument(inst, lane, 1).wrapping_sub(LOCAL_WINDOW);
            let mut out = String::new();
            let mut rest = format.chars().peekable();
            while let Some(c) = rest.next() {
                if c != '%' {
                    out.push(c);
                    continue;
                }
                let mut spec = String::new();
                for c in rest.by_ref() {
                    spec.push(c);
                    if c.is_ascii_alphabetic() && !matches!(c, 'l' | 'h' | 'z') || c == '%' {
                        break;
                    }
                }
                let kind = spec.chars().last().unwrap_or('%');
                if kind == '%' {
                    out.push('%');
                    continue;
                }
                let long = spec.contains('l') || spec.contains('z') || "fFeEgGaAsp".contains(kind);
                let bytes = if long { 8 } else { 4 };
                at = at.next_multiple_of(bytes);
                let value = self.local_word(lane, at);
                at += bytes;
                out += &self.printed(kind, long, value);
            }
            print!("{out}");
        }
        Ok(())
    }

    fn printed(&self, kind: char, long: bool, value: u64) -> String {
        let signed = if long { value as i64 } else { i64::from(value as i32) };
        let unsigned = if long { value } else { u64::from(value as u32) };
        match kind {
            'd' | 'i' => signed.to_string(),
            'x' => format!("{unsigned:x}"),
            'X' => format!("{unsigned:X}"),
            'p' => format!("{unsigned:#x}"),
            'c' => char::from(value as u8).to_string(),
            's' => self.text(value),
            'e' | 'E' => format!("{:e}", f64::from_bits(value)),
            'f' | 'F' => format!("{:.6}", f64::from_bits(value)),
            'g' | 'G' | 'a' | 'A' => f64::from_bits(value).to_string(),
            _ => unsigned.to_string(),
        }
    }
}
