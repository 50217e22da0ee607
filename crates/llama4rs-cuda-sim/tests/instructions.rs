//! Instructions beside scalar models, over random and awkward operands.

mod support;

use half::{bf16, f16};
use support::*;

/// A small generator of repeatable values (splitmix64).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

const COUNT: usize = 4096;

/// What operands are drawn from.
#[derive(Clone, Copy)]
enum Kind {
    /// Any bits, often near the ends of the range.
    Bits,
    /// Small numbers, for shifts and lengths.
    Small,
    /// f32 of all sizes, with infinities, NaN and subnormals.
    Float,
    /// Pairs of bf16 between 2^-20 and 2^20, for exact models.
    Bf16Pair,
    /// Pairs of f16.
    F16Pair,
}

fn draw(kind: Kind, random: &mut Random) -> u64 {
    let bits = random.bits();
    match kind {
        Kind::Bits => match bits % 8 {
            0 => [0, 1, u64::MAX, 1 << 31, 1 << 63, 0x7fff_ffff, u64::MAX >> 1, 0x8000]
                [bits as usize >> 8 & 7],
            1 => random.bits() >> (bits >> 8 & 63),
            _ => random.bits(),
        },
        Kind::Small => bits % 72,
        Kind::Float => match bits % 16 {
            0 => {
                [0, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 1, 0x0080_0000, 0x7f7f_ffff]
                    [bits as usize >> 8 & 7]
            }
            1..=8 => u64::from((((bits >> 40) as f32 / 65536.0) - 128.0).to_bits()),
            _ => random.bits() & 0xffff_ffff,
        },
        Kind::Bf16Pair => {
            let one = |b: u64| (b & 0x8000) | (107 + (b & 0x7fff) % 40) << 7 | (b >> 20 & 0x7f);
            one(bits) | one(random.bits()) << 16
        }
        Kind::F16Pair => random.bits() & 0xffff_ffff,
    }
}

fn register(width: u32, name: &str) -> String {
    format!(".reg .b{width} %{name};")
}

/// Runs `%d = instruction(%a, %b, %c)` for `COUNT` operands of the given widths; the
/// instruction may use predicates %p, %q and registers %t (b32) and %u (b64).
fn run(instruction: &str, widths: [u32; 4], operands: &[Vec<u64>; 3]) -> Vec<u64> {
    start();
    let [d, a, b, c] = widths;
    let mut text = String::from(
        ".version 9.0\n.target sm_80\n.address_size 64\n\
         .visible .entry k(.param .u64 pd, .param .u64 pa, .param .u64 pb, .param .u64 pc) {\n\
         .reg .pred %p, %q;\n.reg .b16 %h0, %h1;\n.reg .b32 %i, %n, %t;\n.reg .b64 %x, %o, %u;\n\
         mov.u32 %i, %ctaid.x;\nmov.u32 %n, %ntid.x;\nmov.u32 %t, %tid.x;\n\
         mad.lo.s32 %i, %i, %n, %t;\nmul.wide.u32 %o, %i, 8;\n",
    );
    for (width, name) in [(d, "d"), (a, "a"), (b, "b"), (c, "c")] {
        text += &register(width, name);
    }
    for (width, name) in [(a, "a"), (b, "b"), (c, "c")] {
        text += &format!(
            "ld.param.u64 %x, [p{name}];\nadd.s64 %x, %x, %o;\nld.global.b{width} %{name}, [%x];\n"
        );
    }
    text += &format!(
        "{instruction}\nld.param.u64 %x, [pd];\nadd.s64 %x, %x, %o;\nst.global.b{d} [%x], %d;\nret;\n}}\n"
    );
    let kernel = kernel(load(&text), "k");
    let inputs: Vec<u64> = operands.iter().map(|o| upload(o)).collect();
    let out = upload(&vec![0u64; COUNT]);
    let arguments = [out, inputs[0], inputs[1], inputs[2]];
    let answer = launch(kernel, (COUNT / 256) as u32, 256, 0, &arguments);
    assert_eq!(answer, 0, "{instruction}: {}", reports());
    let values = download(out, COUNT);
    inputs.into_iter().chain([out]).for_each(free);
    values
}

fn operands(kinds: [Kind; 3], widths: [u32; 4]) -> [Vec<u64>; 3] {
    let mut random = Random(widths.iter().map(|&w| u64::from(w)).sum());
    std::array::from_fn(|i| {
        let mask = u64::MAX >> (64 - widths[i + 1]);
        (0..COUNT).map(|_| draw(kinds[i], &mut random) & mask).collect()
    })
}

/// Compares all results with a model.
fn same(
    instruction: &str,
    widths: [u32; 4],
    kinds: [Kind; 3],
    model: impl Fn(u64, u64, u64) -> u64,
) {
    let o = operands(kinds, widths);
    let results = run(instruction, widths, &o);
    let mask = u64::MAX >> (64 - widths[0]);
    for i in 0..COUNT {
        let (a, b, c) = (o[0][i], o[1][i], o[2][i]);
        let want = model(a, b, c) & mask;
        assert_eq!(results[i], want, "{instruction} of {a:#x}, {b:#x}, {c:#x}");
    }
}

/// The same for f32: all NaN are equal; `error` is relative.
fn near(instruction: &str, error: f64, model: impl Fn(f32, f32, f32) -> f64) {
    let o = operands([Kind::Float; 3], [32; 4]);
    let results = run(instruction, [32; 4], &o);
    for i in 0..COUNT {
        let [a, b, c] = [0, 1, 2].map(|k| f32::from_bits(o[k][i] as u32));
        let (got, want) = (f32::from_bits(results[i] as u32), model(a, b, c));
        let want32 = want as f32;
        let close = if want32.is_nan() {
            got.is_nan()
        } else {
            got == want32 || (f64::from(got) - want).abs() <= error * want.abs()
        };
        assert!(close, "{instruction} of {a:e}, {b:e}, {c:e}: {got:e}, not {want:e}");
    }
}

const BITS: [Kind; 3] = [Kind::Bits; 3];

#[test]
fn integers_of_32_bits() {
    let s = |x: u64| x as i32;
    let w = [32; 4];
    same("add.s32 %d, %a, %b;", w, BITS, |a, b, _| a.wrapping_add(b));
    same("sub.s32 %d, %a, %b;", w, BITS, |a, b, _| a.wrapping_sub(b));
    same("add.sat.s32 %d, %a, %b;", w, BITS, |a, b, _| s(a).saturating_add(s(b)) as u64);
    same("sub.sat.s32 %d, %a, %b;", w, BITS, |a, b, _| s(a).saturating_sub(s(b)) as u64);
    same("mul.lo.s32 %d, %a, %b;", w, BITS, |a, b, _| a.wrapping_mul(b));
    same("mul.hi.u32 %d, %a, %b;", w, BITS, |a, b, _| (a * b) >> 32);
    same("mul.hi.s32 %d, %a, %b;", w, BITS, |a, b, _| {
        ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u64
    });
    same("mad.lo.s32 %d, %a, %b, %c;", w, BITS, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    same("mad.hi.u32 %d, %a, %b, %c;", w, BITS, |a, b, c| ((a * b) >> 32) + c);
    same("div.u32 %d, %a, %b;", w, BITS, |a, b, _| a.checked_div(b).unwrap_or(u64::MAX));
    same("rem.u32 %d, %a, %b;", w, BITS, |a, b, _| a.checked_rem(b).unwrap_or(a));
    same("div.s32 %d, %a, %b;", w, BITS, |a, b, _| match s(b) {
        0 => u64::MAX,
        b => s(a).wrapping_div(b) as u64,
    });
    same("rem.s32 %d, %a, %b;", w, BITS, |a, b, _| match s(b) {
        0 => a,
        b => s(a).wrapping_rem(b) as u64,
    });
    same("min.s32 %d, %a, %b;", w, BITS, |a, b, _| s(a).min(s(b)) as u64);
    same("max.s32 %d, %a, %b;", w, BITS, |a, b, _| s(a).max(s(b)) as u64);
    same("min.u32 %d, %a, %b;", w, BITS, |a, b, _| a.min(b));
    same("max.u32 %d, %a, %b;", w, BITS, |a, b, _| a.max(b));
    same("abs.s32 %d, %a;", w, BITS, |a, _, _| s(a).wrapping_abs() as u64);
    same("neg.s32 %d, %a;", w, BITS, |a, _, _| s(a).wrapping_neg() as u64);
    same("sad.u32 %d, %a, %b, %c;", w, BITS, |a, b, c| a.abs_diff(b) + c);
    same("sad.s32 %d, %a, %b, %c;", w, BITS, |a, b, c| u64::from(s(a).abs_diff(s(b))) + c);
}

#[test]
fn integers_of_16_and_64_bits() {
    let h = [16; 4];
    same("add.s16 %d, %a, %b;", h, BITS, |a, b, _| a.wrapping_add(b));
    same("mul.lo.s16 %d, %a, %b;", h, BITS, |a, b, _| a.wrapping_mul(b));
    same("shr.s16 %d, %a, 3;", h, BITS, |a, _, _| ((a as i16) >> 3) as u64);
    same("min.s16 %d, %a, %b;", h, BITS, |a, b, _| (a as i16).min(b as i16) as u64);
    same("mul.wide.s16 %d, %a, %b;", [32, 16, 16, 16], BITS, |a, b, _| {
        (i32::from(a as i16) * i32::from(b as i16)) as u64
    });
    let x = [64; 4];
    same("add.s64 %d, %a, %b;", x, BITS, |a, b, _| a.wrapping_add(b));
    same("mul.lo.s64 %d, %a, %b;", x, BITS, |a, b, _| a.wrapping_mul(b));
    same("mul.hi.u64 %d, %a, %b;", x, BITS, |a, b, _| {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    });
    same("mul.hi.s64 %d, %a, %b;", x, BITS, |a, b, _| {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    });
    same("div.u64 %d, %a, %b;", x, BITS, |a, b, _| a.checked_div(b).unwrap_or(u64::MAX));
    same("min.s64 %d, %a, %b;", x, BITS, |a, b, _| (a as i64).min(b as i64) as u64);
    same("max.u64 %d, %a, %b;", x, BITS, |a, b, _| a.max(b));
    same("mul.wide.u32 %d, %a, %b;", [64, 32, 32, 32], BITS, |a, b, _| a * b);
    same("mul.wide.s32 %d, %a, %b;", [64, 32, 32, 32], BITS, |a, b, _| {
        (i64::from(a as i32) * i64::from(b as i32)) as u64
    });
    same("mad.wide.u32 %d, %a, %b, %c;", [64, 32, 32, 64], BITS, |a, b, c| (a * b).wrapping_add(c));
}

#[test]
fn bits() {
    let w = [32; 4];
    let shifts = [Kind::Bits, Kind::Small, Kind::Small];
    same("shl.b32 %d, %a, %b;", w, shifts, |a, b, _| if b > 31 { 0 } else { a << b });
    same("shr.u32 %d, %a, %b;", w, shifts, |a, b, _| if b > 31 { 0 } else { a >> b });
    same("shr.s32 %d, %a, %b;", w, shifts, |a, b, _| (a as i32 >> b.min(31)) as u64);
    same(
        "shl.b64 %d, %a, %b;",
        [64, 64, 32, 32],
        shifts,
        |a, b, _| if b > 63 { 0 } else { a << b },
    );
    same("shr.s64 %d, %a, %b;", [64, 64, 32, 32], shifts, |a, b, _| (a as i64 >> b.min(63)) as u64);
    same("and.b32 %d, %a, %b;", w, BITS, |a, b, _| a & b);
    same("or.b64 %d, %a, %b;", [64; 4], BITS, |a, b, _| a | b);
    same("xor.b32 %d, %a, %b;", w, BITS, |a, b, _| a ^ b);
    same("not.b64 %d, %a;", [64; 4], BITS, |a, _, _| !a);
    same("cnot.b32 %d, %a;", w, BITS, |a, _, _| u64::from(a == 0));
    same("popc.b32 %d, %a;", w, BITS, |a, _, _| a.count_ones().into());
    same("popc.b64 %d, %a;", [32, 64, 64, 64], BITS, |a, _, _| a.count_ones().into());
    same("clz.b32 %d, %a;", w, BITS, |a, _, _| (a as u32).leading_zeros().into());
    same("clz.b64 %d, %a;", [32, 64, 64, 64], BITS, |a, _, _| a.leading_zeros().into());
    same("brev.b32 %d, %a;", w, BITS, |a, _, _| (a as u32).reverse_bits().into());
    same("bfind.u32 %d, %a;", w, BITS, |a, _, _| {
        31u64.wrapping_sub((a as u32).leading_zeros().into())
    });
    same("bfind.s32 %d, %a;", w, BITS, |a, _, _| {
        let a = a as i32;
        31u64.wrapping_sub((if a < 0 { !a } else { a }).leading_zeros().into())
    });
    same("bfind.shiftamt.u32 %d, %a;", w, BITS, |a, _, _| match a as u32 {
        0 => u64::MAX,
        a => a.leading_zeros().into(),
    });
    same("bfe.u32 %d, %a, %b, %c;", w, shifts, |a, b, c| {
        (0..c.min(32)).filter(|i| b + i < 32).fold(0, |m, i| m | (a >> (b + i) & 1) << i)
    });
    same("bfe.s32 %d, %a, %b, %c;", w, shifts, |a, b, c| {
        let sign = if c == 0 { 0 } else { a >> (b + c - 1).min(31) & 1 };
        (0..32).fold(0, |m, i| m | if i < c && b + i < 32 { a >> (b + i) & 1 } else { sign } << i)
    });
    for (table, f) in [
        (0xEAu32, (|a, b, c| (a & b) | c) as fn(u64, u64, u64) -> u64),
        (0x96, |a, b, c| a ^ b ^ c),
        (0x6A, |a, b, c| (a & b) ^ c),
        (0xD8, |a, b, c| (a & !c) | (b & c)),
    ] {
        same(&format!("lop3.b32 %d, %a, %b, %c, {table};"), w, BITS, f);
    }
    same("prmt.b32 %d, %a, %b, %c;", w, BITS, |a, b, c| {
        let bytes = (b << 32 | a).to_le_bytes();
        (0..4).fold(0, |m, i| {
            let n = c >> (4 * i) & 15;
            let byte = bytes[(n & 7) as usize];
            let byte = if n & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
            m | u64::from(byte) << (8 * i)
        })
    });
    let by = [Kind::Bits, Kind::Bits, Kind::Small];
    same("shf.l.wrap.b32 %d, %a, %b, %c;", w, by, |a, b, c| ((b << 32 | a) << (c & 31)) >> 32);
    same("shf.r.wrap.b32 %d, %a, %b, %c;", w, by, |a, b, c| (b << 32 | a) >> (c & 31));
    same("shf.r.clamp.b32 %d, %a, %b, %c;", w, by, |a, b, c| (b << 32 | a) >> c.min(32));
    let byte = |x: u64, i: usize| x.to_le_bytes()[i];
    same("dp4a.s32.s32 %d, %a, %b, %c;", w, BITS, |a, b, c| {
        (0..4).fold(c as i32, |s, i| {
            s.wrapping_add(i32::from(byte(a, i) as i8) * i32::from(byte(b, i) as i8))
        }) as u64
    });
    same("dp4a.u32.s32 %d, %a, %b, %c;", w, BITS, |a, b, c| {
        (0..4).fold(c as i32, |s, i| {
            s.wrapping_add(i32::from(byte(a, i)) * i32::from(byte(b, i) as i8))
        }) as u64
    });
    same("bfi.b32 %d, %a, %b, 5, 9;", w, BITS, |a, b, _| (b & !(0x1ff << 5)) | (a & 0x1ff) << 5);
    same("bfi.b64 %d, %a, %b, 32, 32;", [64; 4], BITS, |a, b, _| (b & 0xffff_ffff) | a << 32);
}

#[test]
fn single_precision() {
    near("add.f32 %d, %a, %b;", 0.0, |a, b, _| (a + b).into());
    near("sub.rn.f32 %d, %a, %b;", 0.0, |a, b, _| (a - b).into());
    near("mul.f32 %d, %a, %b;", 0.0, |a, b, _| (a * b).into());
    near("fma.rn.f32 %d, %a, %b, %c;", 0.0, |a, b, c| a.mul_add(b, c).into());
    near("div.rn.f32 %d, %a, %b;", 0.0, |a, b, _| (a / b).into());
    near("min.f32 %d, %a, %b;", 0.0, |a, b, _| a.min(b).into());
    near("max.f32 %d, %a, %b;", 0.0, |a, b, _| a.max(b).into());
    near("max.NaN.f32 %d, %a, %b;", 0.0, |a, b, _| {
        if a.is_nan() || b.is_nan() {
            f64::NAN
        } else {
            a.max(b).into()
        }
    });
    near("sqrt.rn.f32 %d, %a;", 0.0, |a, _, _| a.sqrt().into());
    near("neg.f32 %d, %a;", 0.0, |a, _, _| (-a).into());
    near("abs.f32 %d, %a;", 0.0, |a, _, _| a.abs().into());
    near("copysign.f32 %d, %a, %b;", 0.0, |a, b, _| b.copysign(a).into());
    near("add.sat.f32 %d, %a, %b;", 0.0, |a, b, _| {
        let sum = a + b;
        if sum.is_nan() {
            0.0
        } else {
            sum.clamp(0.0, 1.0).into()
        }
    });
    let flushed = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0 * x } else { x };
    near("mul.ftz.f32 %d, %a, %b;", 0.0, |a, b, _| flushed(flushed(a) * flushed(b)).into());
    let error = 2f64.powi(-22);
    near("ex2.approx.f32 %d, %a;", error, |a, _, _| f64::from(a).exp2());
    near("ex2.approx.ftz.f32 %d, %a;", error, |a, _, _| flushed(f64::from(a).exp2() as f32).into());
    near("lg2.approx.f32 %d, %a;", error, |a, _, _| f64::from(a).log2());
    near("rsqrt.approx.f32 %d, %a;", error, |a, _, _| 1.0 / f64::from(a).sqrt());
    near("rcp.approx.f32 %d, %a;", error, |a, _, _| 1.0 / f64::from(a));
    near("sin.approx.f32 %d, %a;", error, |a, _, _| f64::from(a).sin());
    near("tanh.approx.f32 %d, %a;", error, |a, _, _| f64::from(a).tanh());
}

#[test]
fn directed_rounding_brackets_the_exact_value() {
    let o = operands([Kind::Float; 3], [32; 4]);
    let down = run("fma.rm.f32 %d, %a, %b, %c;", [32; 4], &o);
    let up = run("fma.rp.f32 %d, %a, %b, %c;", [32; 4], &o);
    let near = run("fma.rn.f32 %d, %a, %b, %c;", [32; 4], &o);
    let cut = run("fma.rz.f32 %d, %a, %b, %c;", [32; 4], &o);
    let float = |bits: u64| f32::from_bits(bits as u32);
    for i in 0..COUNT {
        let (d, u, n, z) = (float(down[i]), float(up[i]), float(near[i]), float(cut[i]));
        if n.is_nan() {
            assert!(d.is_nan() && u.is_nan());
            continue;
        }
        assert!(d <= n && n <= u, "{d:e} {n:e} {u:e}");
        assert!(n == d || n == u);
        assert!(d == u || u.to_bits().abs_diff(d.to_bits()) == 1 || d == 0.0 || u == 0.0);
        assert_eq!(z, if n > 0.0 || d > 0.0 { d } else { u });
    }
}

#[test]
fn comparisons() {
    let w = [32; 4];
    let chosen = |c: &str, t: &str| format!("setp.{c}.{t} %p, %a, %b;\nselp.b32 %d, 1, 0, %p;");
    same(&chosen("lt", "s32"), w, BITS, |a, b, _| u64::from((a as i32) < b as i32));
    same(&chosen("lo", "u32"), w, BITS, |a, b, _| u64::from(a < b));
    same(&chosen("ge", "u32"), w, BITS, |a, b, _| u64::from(a >= b));
    same(&chosen("ne", "b32"), w, BITS, |a, b, _| u64::from(a != b));
    let floats = [Kind::Float; 3];
    let f = |x: u64| f32::from_bits(x as u32);
    same(&chosen("lt", "f32"), w, floats, move |a, b, _| u64::from(f(a) < f(b)));
    same(&chosen("ne", "f32"), w, floats, move |a, b, _| {
        u64::from(f(a) != f(b) && !f(a).is_nan() && !f(b).is_nan())
    });
    same(&chosen("neu", "f32"), w, floats, move |a, b, _| u64::from(f(a) != f(b)));
    same(&chosen("gtu", "f32"), w, floats, move |a, b, _| {
        u64::from(f(a) > f(b) || f(a).is_nan() || f(b).is_nan())
    });
    same(&chosen("nan", "f32"), w, floats, move |a, b, _| {
        u64::from(f(a).is_nan() || f(b).is_nan())
    });
    same(
        "setp.lt.s32 %q, %c, 0;\nsetp.gt.and.s32 %p|%q, %a, %b, !%q;\n@%p mov.u32 %d, 1;\n@!%p mov.u32 %d, 2;\n@%q add.s32 %d, %d, 4;",
        w,
        BITS,
        |a, b, c| {
            let (greater, with) = ((a as i32) > b as i32, c as i32 >= 0);
            let base = if greater && with { 1 } else { 2 };
            base + if !greater && with { 4 } else { 0 }
        },
    );
    same(
        "set.eq.u32.u32 %d, %a, %b;",
        w,
        [Kind::Small; 3],
        |a, b, _| if a == b { u64::MAX } else { 0 },
    );
    same("slct.b32.s32 %d, %a, %b, %c;", w, BITS, |a, b, c| if c as i32 >= 0 { a } else { b });
}

#[test]
fn conversions() {
    let wide = [64, 32, 32, 32];
    same("cvt.s64.s32 %d, %a;", wide, BITS, |a, _, _| a as i32 as u64);
    same("cvt.u64.u32 %d, %a;", wide, BITS, |a, _, _| a);
    same("cvt.u32.u64 %d, %a;", [32, 64, 64, 64], BITS, |a, _, _| a);
    same("cvt.sat.u8.s32 %d, %a;", [32; 4], BITS, |a, _, _| (a as i32).clamp(0, 255) as u64);
    same("cvt.s32.s8 %d, %a;", [32; 4], BITS, |a, _, _| a as i8 as u64);
    same("cvt.u16.u32 %d, %a;", [16, 32, 32, 32], BITS, |a, _, _| a);
    same("cvt.rn.f32.s32 %d, %a;", [32; 4], BITS, |a, _, _| (a as i32 as f32).to_bits().into());
    same("cvt.rn.f32.u64 %d, %a;", [32, 64, 64, 64], BITS, |a, _, _| (a as f32).to_bits().into());
    same("cvt.rn.f64.s64 %d, %a;", [64; 4], BITS, |a, _, _| (a as i64 as f64).to_bits());
    let floats = [Kind::Float; 3];
    let f = |x: u64| f32::from_bits(x as u32);
    same("cvt.rni.s32.f32 %d, %a;", [32; 4], floats, move |a, _, _| {
        f(a).round_ties_even() as i32 as u64
    });
    same("cvt.rzi.u32.f32 %d, %a;", [32; 4], floats, move |a, _, _| (f(a) as u32).into());
    same("cvt.rmi.s32.f32 %d, %a;", [32; 4], floats, move |a, _, _| f(a).floor() as i32 as u64);
    near("cvt.rni.f32.f32 %d, %a;", 0.0, |a, _, _| a.round_ties_even().into());
    near("cvt.rpi.f32.f32 %d, %a;", 0.0, |a, _, _| a.ceil().into());
    let half = [16, 32, 32, 32];
    let canonical = |x: f32, bits: u16| if x.is_nan() { 0x7fff } else { bits.into() };
    same("cvt.rn.f16.f32 %d, %a;", half, floats, move |a, _, _| {
        canonical(f(a), f16::from_f32(f(a)).to_bits())
    });
    same("cvt.rn.bf16.f32 %d, %a;", half, floats, move |a, _, _| {
        canonical(f(a), bf16::from_f32(f(a)).to_bits())
    });
    same("cvt.rn.bf16x2.f32 %d, %a, %b;", [32; 4], floats, move |a, b, _| {
        let one = |x: f32| canonical(x, bf16::from_f32(x).to_bits());
        one(f(a)) << 16 | one(f(b))
    });
    same("cvt.rz.bf16.f32 %d, %a;", half, floats, move |a, _, _| canonical(f(a), (a >> 16) as u16));
}

/// The exact value of a finite bf16 between 2^-20 and 2^20, in units of 2^-30.
fn exact(bits: u64) -> i128 {
    let scaled = f64::from(bf16::from_bits(bits as u16).to_f32()) * 2f64.powi(30);
    assert_eq!(scaled.fract(), 0.0);
    scaled as i128
}

/// The bf16 nearest to `value` units of 2^-`scale`, ties to even.
fn round(value: i128, scale: i32) -> u64 {
    if value == 0 {
        return 0;
    }
    let (mut m, mut e) = (value.unsigned_abs(), -scale);
    let shift = (128 - m.leading_zeros()).saturating_sub(8);
    if shift > 0 {
        let (half, lost) = (1u128 << (shift - 1), m & ((1 << shift) - 1));
        m >>= shift;
        m += u128::from(lost > half || lost == half && m & 1 == 1);
        e += shift as i32;
    }
    let rounded = m as f64 * 2f64.powi(e);
    bf16::from_f64(if value < 0 { -rounded } else { rounded }).to_bits().into()
}

#[test]
fn bf16_pairs_round_once() {
    let pairs = [Kind::Bf16Pair; 3];
    let each = |a: u64, b: u64, c: u64, f: fn(u64, u64, u64) -> u64| {
        let low = f(a & 0xffff, b & 0xffff, c & 0xffff);
        low | f(a >> 16, b >> 16, c >> 16) << 16
    };
    same("fma.rn.bf16x2 %d, %a, %b, %c;", [32; 4], pairs, |a, b, c| {
        each(a, b, c, |a, b, c| round(exact(a) * exact(b) + (exact(c) << 30), 60))
    });
    same("fma.rn.bf16 %d, %a, %b, %c;", [16; 4], pairs, |a, b, c| {
        round(exact(a) * exact(b) + (exact(c) << 30), 60)
    });
    let sm_80_sum =
        "{ .reg .b32 %one;\nmov.u32 %one, 0x3f803f80;\nfma.rn.bf16x2 %d, %a, %one, %b; }";
    same(sm_80_sum, [32; 4], pairs, |a, b, _| {
        each(a, b, 0, |a, b, _| round(exact(a) + exact(b), 30))
    });
    same("max.bf16x2 %d, %a, %b;", [32; 4], pairs, |a, b, _| {
        each(a, b, 0, |a, b, _| if exact(a) >= exact(b) { a } else { b })
    });
    same("neg.bf16x2 %d, %a;", [32; 4], pairs, |a, _, _| a ^ 0x8000_8000);
}

#[test]
fn f16_pairs() {
    let pairs = [Kind::F16Pair; 3];
    // Sums and products of f16 are exact in f64.
    let two = |f: fn(f64, f64) -> f64| {
        move |a: u64, b: u64, _: u64| {
            let one = |a: u64, b: u64| {
                let value = |x: u64| f16::from_bits(x as u16).to_f64();
                let y = f(value(a), value(b));
                u64::from(if y.is_nan() { 0x7fff } else { f16::from_f64(y).to_bits() })
            };
            one(a, b) | one(a >> 16, b >> 16) << 16
        }
    };
    same("add.f16x2 %d, %a, %b;", [32; 4], pairs, two(|a, b| a + b));
    same("sub.f16x2 %d, %a, %b;", [32; 4], pairs, two(|a, b| a - b));
    same("mul.f16x2 %d, %a, %b;", [32; 4], pairs, two(|a, b| a * b));
}

#[test]
fn moves_pack_and_unpack() {
    same("mov.b64 %d, {%a, %b};", [64, 32, 32, 32], BITS, |a, b, _| b << 32 | a);
    same("mov.b64 {%t, %d}, %a;", [32, 64, 64, 64], BITS, |a, _, _| a >> 32);
    same("mov.b32 {%h0, %h1}, %a;\nmov.b32 %d, {%h1, %h0};", [32; 4], BITS, |a, _, _| {
        a >> 16 | a << 16
    });
}

/// A warp's product D = A B + C of m16n8k16, from rows of A and B and C in memory order.
#[test]
fn tensor_core_products() {
    const PTX: &str = include_str!("kernels/products.ptx");
    start();
    let module = load(PTX);
    let mut random = Random(7);
    let mut value = |scale: f32| ((random.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale;
    let a: Vec<bf16> = (0..16 * 16).map(|_| bf16::from_f32(value(3.0))).collect();
    let b: Vec<bf16> = (0..16 * 8).map(|_| bf16::from_f32(value(3.0))).collect();
    let c: Vec<f32> = (0..16 * 8).map(|_| value(10.0)).collect();
    let bits = |v: &[bf16]| v.iter().map(|x| x.to_bits()).collect::<Vec<u16>>();
    let (da, db, dc) = (upload(&bits(&a)), upload(&bits(&b)), upload(&c));
    let out = allocate(16 * 8 * 4);
    let answer = launch(kernel(module, "product_bf16"), 1, 32, 0, &[out, da, db, dc]);
    assert_eq!(answer, 0, "{}", report_of("product_bf16"));
    let got = download::<f32>(out, 16 * 8);
    for r in 0..16 {
        for n in 0..8 {
            // The documented order: from the old sum on, by the inner index, fused.
            let sum = (0..16).fold(c[r * 8 + n], |s, k| {
                a[r * 16 + k].to_f32().mul_add(b[k * 8 + n].to_f32(), s)
            });
            assert_eq!(got[r * 8 + n], sum);
            let exact = (0..16).fold(f64::from(c[r * 8 + n]), |s, k| {
                s + a[r * 16 + k].to_f64() * b[k * 8 + n].to_f64()
            });
            assert!((f64::from(sum) - exact).abs() < 1e-4);
        }
    }
    let bytes: Vec<i8> = (0..16 * 32 + 32 * 8).map(|i| (i * 37 % 251) as i8).collect();
    let (a, b) = bytes.split_at(16 * 32);
    let (da, db) = (upload(a), upload(b));
    let answer = launch(kernel(module, "product_s8"), 1, 32, 0, &[out, da, db]);
    assert_eq!(answer, 0, "{}", report_of("product_s8"));
    let got = download::<i32>(out, 16 * 8);
    for r in 0..16 {
        for n in 0..8 {
            let sum: i32 =
                (0..32).map(|k| i32::from(a[r * 32 + k]) * i32::from(b[k * 8 + n])).sum();
            assert_eq!(got[r * 8 + n], sum);
        }
    }
}
