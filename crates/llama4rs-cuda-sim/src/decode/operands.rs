//! Operands and opcodes.

use super::{Binding, Decoded, Decoder};
use crate::program::{FloatMode, Op, Round, Slot, SlotKind, Special, Type, Width, LANES};
use crate::ptx::{Operand, Space};

/// An opcode whose modifiers are crossed off as they are understood.
pub struct Opcode<'a> {
    /// Before the first dot.
    pub base: &'a str,
    /// Modifiers not yet understood.
    pub mods: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    pub fn new(text: &'a str) -> Self {
        let mut parts = text.split('.');
        let base = parts.next().unwrap_or("");
        Self { base, mods: parts.collect() }
    }

    /// Whether the modifier is there; crosses it off.
    pub fn take(&mut self, name: &str) -> bool {
        match self.mods.iter().position(|m| *m == name) {
            Some(at) => {
                self.mods.remove(at);
                true
            }
            None => false,
        }
    }

    /// Crosses off the first of `names` that is there.
    pub fn take_any<T: Copy>(&mut self, names: &[(&str, T)]) -> Option<T> {
        names.iter().find(|(name, _)| self.take(name)).map(|(_, value)| *value)
    }

    /// The last modifier: the type, mostly.
    pub fn last(&mut self) -> &'a str {
        self.mods.pop().unwrap_or("")
    }

    /// Crosses off rounding, `.ftz`, `.sat` and `.relu`.
    pub fn float_mode(&mut self) -> FloatMode {
        use Round::*;
        let round = [("rn", Nearest), ("rz", Zero), ("rm", Down), ("rp", Up)];
        FloatMode {
            round: self.take_any(&round).unwrap_or(Nearest),
            flush: self.take("ftz"),
            saturate: self.take("sat"),
            relu: self.take("relu"),
        }
    }
}

/// Width and signedness of an untyped, unsigned or signed integer.
pub fn integer(name: &str) -> Option<(Width, bool)> {
    Some(match name {
        "b16" | "u16" => (Width::W16, false),
        "s16" => (Width::W16, true),
        "b32" | "u32" => (Width::W32, false),
        "s32" => (Width::W32, true),
        "b64" | "u64" => (Width::W64, false),
        "s64" => (Width::W64, true),
        _ => return None,
    })
}

/// The scalar type of a name.
pub fn scalar(name: &str) -> Option<Type> {
    Some(match name {
        "u8" | "b8" => Type::U8,
        "s8" => Type::S8,
        "u16" | "b16" => Type::U16,
        "s16" => Type::S16,
        "u32" | "b32" => Type::U32,
        "s32" => Type::S32,
        "u64" | "b64" => Type::U64,
        "s64" => Type::S64,
        "f16" => Type::F16,
        "bf16" => Type::Bf16,
        "f32" => Type::F32,
        "f64" => Type::F64,
        _ => return None,
    })
}

/// The registers that hold a type.
pub fn width(kind: Type) -> Width {
    match kind.bytes() {
        1 | 2 => Width::W16,
        4 => Width::W32,
        _ => Width::W64,
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| match name.as_bytes().last() {
        Some(b'x') => 0,
        Some(b'y') => 1,
        _ => 2,
    };
    Some(match name {
        "%tid.x" | "%tid.y" | "%tid.z" => Special::Tid(axis(name)),
        "%ntid.x" | "%ntid.y" | "%ntid.z" => Special::Ntid(axis(name)),
        "%ctaid.x" | "%ctaid.y" | "%ctaid.z" => Special::Ctaid(axis(name)),
        "%nctaid.x" | "%nctaid.y" | "%nctaid.z" => Special::Nctaid(axis(name)),
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NwarpId,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NsmId,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::LanemaskEq,
        "%lanemask_lt" => Special::LanemaskLt,
        "%lanemask_le" => Special::LanemaskLe,
        "%lanemask_gt" => Special::LanemaskGt,
        "%lanemask_ge" => Special::LanemaskGe,
        "%clock" => Special::Clock,
        "%clock64" => Special::Clock64,
        "%globaltimer" => Special::GlobalTimer,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        // A launch without clusters is one of clusters of one block.
        "%cluster_ctaid.x" | "%cluster_ctaid.y" | "%cluster_ctaid.z" | "%cluster_ctarank" => {
            Special::Zero
        }
        "%cluster_nctaid.x" | "%cluster_nctaid.y" | "%cluster_nctaid.z" | "%cluster_nctarank" => {
            Special::One
        }
        _ => return None,
    })
}

impl Decoder<'_> {
    /// The constant `value`.
    pub(super) fn constant(&mut self, width: Width, value: u64) -> Slot {
        let value = if width == Width::W64 { value } else { value & ((1 << width.bits()) - 1) };
        let pool = &mut self.kernel.constants;
        let index = *self.constants.entry((width, value)).or_insert_with(|| match width {
            Width::W16 => {
                pool.w16.push([value as u16; LANES]);
                pool.w16.len() - 1
            }
            Width::W32 => {
                pool.w32.push([value as u32; LANES]);
                pool.w32.len() - 1
            }
            Width::W64 => {
                pool.w64.push([value; LANES]);
                pool.w64.len() - 1
            }
        });
        Slot::constant(width, index)
    }

    /// An operand that is read, whatever its width; literals take `width`.
    pub(super) fn source_any(&mut self, operand: &Operand, width: Width) -> Decoded<Slot> {
        let value = match operand {
            Operand::Int(v) => *v as u64,
            Operand::F32(bits) if width == Width::W64 => f64::from(f32::from_bits(*bits)).to_bits(),
            Operand::F32(bits) => u64::from(*bits),
            Operand::F64(bits) if width == Width::W32 => {
                u64::from((f64::from_bits(*bits) as f32).to_bits())
            }
            Operand::F64(bits) => *bits,
            Operand::Name(name) => {
                if let Some(kind) = special(name) {
                    let wide =
                        matches!(kind, Special::Clock64 | Special::GlobalTimer | Special::GridId)
                            && width == Width::W64;
                    let slot = self.new_register(if wide { Width::W64 } else { Width::W32 });
                    self.emit(Op::Special(kind), slot, Slot::NONE, Slot::NONE, Slot::NONE);
                    return Ok(slot);
                }
                if name == "WARP_SZ" {
                    LANES as u64
                } else {
                    match self.find(name) {
                        Some(Binding::Register(slot)) => return Ok(slot),
                        _ => self.symbol(name)?.1,
                    }
                }
            }
            Operand::Offset(name, offset) => self.symbol(name)?.1.wrapping_add(*offset as u64),
            other => return self.fail(format!("operand {other:?} is not a value")),
        };
        Ok(self.constant(width, value))
    }

    /// An operand of exactly `width` that is read.
    pub(super) fn source(&mut self, operand: &Operand, width: Width) -> Decoded<Slot> {
        let slot = self.source_any(operand, width)?;
        match slot.kind() {
            SlotKind::Register(w) | SlotKind::Constant(w) if w == width => Ok(slot),
            kind => self.fail(format!("operand {operand:?} is a {kind:?}, not of {width:?}")),
        }
    }

    /// A register that is written, whatever its width; `_` is a new one of `width`.
    pub(super) fn target_any(&mut self, operand: &Operand, width: Width) -> Decoded<Slot> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(self.new_register(width)),
            Operand::Name(name) => match self.find(name) {
                Some(Binding::Register(slot)) => Ok(slot),
                _ => self.fail(format!("`{name}` is not a register")),
            },
            other => self.fail(format!("{other:?} is not a register")),
        }
    }

    /// A register of exactly `width` that is written.
    pub(super) fn target(&mut self, operand: &Operand, width: Width) -> Decoded<Slot> {
        let slot = self.target_any(operand, width)?;
        if slot.kind() == SlotKind::Register(width) {
            return Ok(slot);
        }
        self.fail(format!("{operand:?} is a {:?}, not a register of {width:?}", slot.kind()))
    }

    /// A predicate that is read, and whether it is negated.
    pub(super) fn predicate(&mut self, operand: &Operand) -> Decoded<(Slot, bool)> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            Operand::Int(v) => return Ok((Slot::predicate(usize::from(*v != 0)), false)),
            other => return self.fail(format!("{other:?} is not a predicate")),
        };
        match self.find(name) {
            Some(Binding::Register(slot)) if slot.kind() == SlotKind::Predicate => {
                Ok((slot, negated))
            }
            _ => self.fail(format!("`{name}` is not a predicate")),
        }
    }

    /// A predicate that is written; `_` is none.
    pub(super) fn predicate_target(&mut self, operand: &Operand) -> Decoded<Slot> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(Slot::NONE),
            Operand::Name(_) => Ok(self.predicate(operand)?.0),
            other => self.fail(format!("{other:?} is not a predicate")),
        }
    }

    /// Space and address of a variable.
    pub(super) fn symbol(&self, name: &str) -> Decoded<(Space, u64)> {
        if let Some(Binding::Variable(space, at)) = self.find(name) {
            return Ok((space, at));
        }
        match self.globals.get(name) {
            Some(&at) => Ok((Space::Global, at)),
            None => self.fail(format!("`{name}` is not known")),
        }
    }

    /// A list of slots.
    pub(super) fn list(&mut self, slots: &[Slot]) -> Slot {
        let start = self.kernel.lists.len();
        self.kernel.lists.extend_from_slice(slots);
        Slot::list(start, slots.len())
    }

    /// The elements of `{...}`, or the operand itself.
    pub(super) fn elements(operand: &Operand) -> &[Operand] {
        match operand {
            Operand::Vector(elements) => elements,
            other => std::slice::from_ref(other),
        }
    }

    /// A list of registers that are read.
    pub(super) fn sources(&mut self, operand: &Operand, width: Width) -> Decoded<Slot> {
        let elements = Self::elements(operand).iter();
        let slots: Vec<_> = elements.map(|o| self.source(o, width)).collect::<Decoded<_>>()?;
        Ok(self.list(&slots))
    }

    /// A list of registers that are written.
    pub(super) fn targets(&mut self, operand: &Operand, width: Width) -> Decoded<Slot> {
        let elements = Self::elements(operand).iter();
        let slots: Vec<_> = elements.map(|o| self.target(o, width)).collect::<Decoded<_>>()?;
        Ok(self.list(&slots))
    }

    /// Base register and offset of `[...]`, and the space if the base is a variable.
    pub(super) fn address(&mut self, operand: &Operand) -> Decoded<(Slot, i32, Option<Space>)> {
        let Operand::Address(base, offset) = operand else {
            return self.fail(format!("{operand:?} is not an address"));
        };
        let Ok(offset) = i32::try_from(*offset) else {
            return self.fail("an offset does not fit 32 bits");
        };
        if let Operand::Name(name) = &**base {
            if self.find(name).is_none_or(|b| matches!(b, Binding::Variable(..))) {
                let (space, at) = self.symbol(name)?;
                return Ok((self.constant(Width::W64, at), offset, Some(space)));
            }
        }
        let slot = self.source_any(base, Width::W64)?;
        match slot.kind() {
            SlotKind::Register(Width::W32 | Width::W64) | SlotKind::Constant(Width::W64) => {
                Ok((slot, offset, None))
            }
            kind => self.fail(format!("an address cannot be a {kind:?}")),
        }
    }

    /// Fails unless there are `least..=most` operands.
    pub(super) fn arity(&self, operands: &[Operand], least: usize, most: usize) -> Decoded<()> {
        if (least..=most).contains(&operands.len()) {
            return Ok(());
        }
        self.fail(format!("{} operands instead of {least}..={most}", operands.len()))
    }
}
