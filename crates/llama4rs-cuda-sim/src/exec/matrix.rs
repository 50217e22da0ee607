//! Matrices in the registers of a warp: ldmatrix and its kin, and tensor-core products.
//!
//! Lane `4 g + t` holds, of an 8x8 matrix of 16-bit elements, columns `2 t` and
//! `2 t + 1` of row `g`. Products are summed in single precision (integers in
//! 32 bits): from the old sum on, in the order of the inner dimension, each step
//! one fused multiply-add. A device adds groups of products in an order and width
//! of its own, so results may differ from it in the last bits.

use super::half::{narrow, widen};
use super::lanes::Lanes;
use super::warp::{Exec, Flow};
use crate::program::{Half, Inst, Mma, LANES};
use crate::report::Fault;
use crate::shadow::{Conflict, Touch};

type Outcome<T> = Result<T, Box<Fault>>;
/// Rows of A, columns of B.
const M: usize = 16;
const N: usize = 8;

impl Exec<'_, '_> {
    /// Offsets of the rows of `count` matrices: lane `8 i + r` has row `r` of matrix `i`.
    fn rows(&mut self, count: u8, offset: i32, inst: &Inst) -> Outcome<Lanes<usize>> {
        let named = if count == 4 { u32::MAX } else { (1 << (8 * u32::from(count))) - 1 };
        let addresses = self.addresses(inst.a, offset, named);
        let rows = self.shared(&addresses, 16, named)?;
        for i in 0..usize::from(count) {
            self.count_shared(&rows, 16, 0xff << (8 * i));
        }
        Ok(rows)
    }

    pub(super) fn ldmatrix(
        &mut self,
        count: u8,
        transposed: bool,
        offset: i32,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<Flow> {
        if !self.whole_warp(mask)? {
            return Ok(Flow::Block);
        }
        let rows = self.rows(count, offset, inst)?;
        let named = if count == 4 { u32::MAX } else { (1 << (8 * u32::from(count))) - 1 };
        let unwritten = self.touch_reads(&rows, 16, named)?;
        if unwritten != 0 {
            let lane = unwritten.trailing_zeros() as usize;
            return Err(self.conflict(Conflict::Unwritten, Touch::Read, rows[lane], lane));
        }
        for i in 0..usize::from(count) {
            let shared = &self.b.shared;
            let element = |r: usize, c: usize| {
                let at = rows[8 * i + r] + 2 * c;
                u32::from(u16::from_le_bytes([shared[at], shared[at + 1]]))
            };
            let out: Lanes<u32> = std::array::from_fn(|l| {
                let (g, t) = (l / 4, 2 * (l % 4));
                if transposed {
                    element(t, g) | element(t + 1, g) << 16
                } else {
                    element(g, t) | element(g, t + 1) << 16
                }
            });
            self.set(self.env.kernel.lists[inst.d.range().start + i], &out, u32::MAX);
        }
        Ok(Flow::Next)
    }

    pub(super) fn stmatrix(
        &mut self,
        count: u8,
        transposed: bool,
        offset: i32,
        inst: &Inst,
        mask: u32,
    ) -> Outcome<Flow> {
        if !self.whole_warp(mask)? {
            return Ok(Flow::Block);
        }
        let rows = self.rows(count, offset, inst)?;
        for i in 0..usize::from(count) {
            let values = *self.get::<u32>(self.env.kernel.lists[inst.b.range().start + i]);
            for l in 0..LANES {
                let (g, t) = (l / 4, 2 * (l % 4));
                let pair = values[l].to_le_bytes();
                if transposed {
                    self.write_shared(Touch::Write, l, rows[8 * i + t] + 2 * g, &pair[..2])?;
                    self.write_shared(Touch::Write, l, rows[8 * i + t + 1] + 2 * g, &pair[2..])?;
                } else {
                    self.write_shared(Touch::Write, l, rows[8 * i + g] + 2 * t, &pair)?;
                }
            }
        }
        Ok(Flow::Next)
    }

    pub(super) fn movmatrix(&mut self, inst: &Inst, mask: u32) -> Outcome<Flow> {
        if !self.whole_warp(mask)? {
            return Ok(Flow::Block);
        }
        let a = *self.get::<u32>(inst.a);
        let element = |r: usize, c: usize| a[4 * r + c / 2] >> (16 * (c % 2)) & 0xffff;
        let out: Lanes<u32> = std::array::from_fn(|l| {
            let (g, t) = (l / 4, 2 * (l % 4));
            element(t, g) | element(t + 1, g) << 16
        });
        self.set(inst.d, &out, u32::MAX);
        Ok(Flow::Next)
    }

    #[inline(always)]
    pub(super) fn mma(&mut self, kind: Mma, inst: &Inst, mask: u32) -> Outcome<Flow> {
        if !self.whole_warp(mask)? {
            return Ok(Flow::Block);
        }
        match kind {
            Mma::Half(Half::Bf16, 16) => self.mma_half::<16>(Half::Bf16, inst),
            Mma::Half(half, 16) => self.mma_half::<16>(half, inst),
            Mma::Half(half, _) => self.mma_half::<8>(half, inst),
            Mma::F16(16) => self.mma_f16::<16>(inst),
            Mma::F16(_) => self.mma_f16::<8>(inst),
            Mma::Bytes(16, a, b) => self.mma_bytes::<16>(a, b, inst),
            Mma::Bytes(_, a, b) => self.mma_bytes::<32>(a, b, inst),
        }
        Ok(Flow::Next)
    }

    fn register(&self, list: crate::program::Slot, i: usize) -> &Lanes<u32> {
        self.get(self.env.kernel.lists[list.range().start + i])
    }

    /// A as rows and B as rows, in f32.
    #[inline(always)]
    fn half_operands<const K: usize>(
        &self,
        half: Half,
        inst: &Inst,
    ) -> ([[f32; K]; M], [[f32; N]; K]) {
        let (mut a, mut b) = ([[0.0; K]; M], [[0.0; N]; K]);
        for i in 0..K / 4 {
            let words = self.register(inst.a, i);
            for l in 0..LANES {
                let (row, column) = (l / 4 + 8 * (i % 2), 2 * (l % 4) + 8 * (i / 2));
                a[row][column] = widen(half, words[l] as u16);
                a[row][column + 1] = widen(half, (words[l] >> 16) as u16);
            }
        }
        for i in 0..K / 8 {
            let words = self.register(inst.b, i);
            for l in 0..LANES {
                let (row, column) = (2 * (l % 4) + 8 * i, l / 4);
                b[row][column] = widen(half, words[l] as u16);
                b[row + 1][column] = widen(half, (words[l] >> 16) as u16);
            }
        }
        (a, b)
    }

    #[inline(always)]
    fn sums(&self, inst: &Inst) -> [[u32; N]; M] {
        let mut c = [[0; N]; M];
        for i in 0..4 {
            let words = self.register(inst.c, i);
            for l in 0..LANES {
                c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2] = words[l];
            }
        }
        c
    }

    #[inline(always)]
    fn put_sums(&mut self, c: &[[u32; N]; M], inst: &Inst) {
        for i in 0..4 {
            let mut out = [0; LANES];
            for l in 0..LANES {
                out[l] = c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
            }
            self.set(self.env.kernel.lists[inst.d.range().start + i], &out, u32::MAX);
        }
    }

    #[inline(always)]
    fn mma_half<const K: usize>(&mut self, half: Half, inst: &Inst) {
        let (a, b) = self.half_operands::<K>(half, inst);
        let mut c = self.sums(inst);
        multiply(&a, &b, &mut c);
        self.put_sums(&c, inst);
    }

    /// As with sums in f32, rounded once at the end.
    fn mma_f16<const K: usize>(&mut self, inst: &Inst) {
        let (a, b) = self.half_operands::<K>(Half::F16, inst);
        let mut c = [[0; N]; M];
        for i in 0..2 {
            let words = self.register(inst.c, i);
            for l in 0..LANES {
                let row = &mut c[l / 4 + 8 * i];
                row[2 * (l % 4)] = widen(Half::F16, words[l] as u16).to_bits();
                row[2 * (l % 4) + 1] = widen(Half::F16, (words[l] >> 16) as u16).to_bits();
            }
        }
        multiply(&a, &b, &mut c);
        for i in 0..2 {
            let out: Lanes<u32> = std::array::from_fn(|l| {
                let pair = &c[l / 4 + 8 * i][2 * (l % 4)..][..2];
                let half = |x: u32| u32::from(narrow(Half::F16, f32::from_bits(x)));
                half(pair[0]) | half(pair[1]) << 16
            });
            self.set(self.env.kernel.lists[inst.d.range().start + i], &out, u32::MAX);
        }
    }

    fn mma_bytes<const K: usize>(&mut self, a_signed: bool, b_signed: bool, inst: &Inst) {
        let byte = |w: u32, i: usize, signed: bool| {
            let b = (w >> (8 * i)) as u8;
            if signed {
                i32::from(b as i8)
            } else {
                i32::from(b)
            }
        };
        let (mut a, mut b) = ([[0i32; K]; M], [[0i32; K]; N]);
        for i in 0..K / 8 {
            let words = self.register(inst.a, i);
            for l in 0..LANES {
                for e in 0..4 {
                    let (row, column) = (l / 4 + 8 * (i % 2), 4 * (l % 4) + 16 * (i / 2) + e);
                    a[row][column] = byte(words[l], e, a_signed);
                }
            }
        }
        for i in 0..K / 16 {
            let words = self.register(inst.b, i);
            for l in 0..LANES {
                for e in 0..4 {
                    b[l / 4][4 * (l % 4) + 16 * i + e] = byte(words[l], e, b_signed);
                }
            }
        }
        let mut c = self.sums(inst);
        for r in 0..M {
            for n in 0..N {
                let sum = (0..K).fold(c[r][n] as i32, |s, k| s.wrapping_add(a[r][k] * b[n][k]));
                c[r][n] = sum as u32;
            }
        }
        self.put_sums(&c, inst);
    }
}

/// `c += a b`, one fused multiply-add a step, in the order of the inner dimension.
#[inline(always)]
fn multiply<const K: usize>(a: &[[f32; K]; M], b: &[[f32; N]; K], c: &mut [[u32; N]; M]) {
    for r in 0..M {
        let mut sums = [0f32; N];
        for n in 0..N {
            sums[n] = f32::from_bits(c[r][n]);
        }
        for k in 0..K {
            for n in 0..N {
                sums[n] = a[r][k].mul_add(b[k][n], sums[n]);
            }
        }
        for n in 0..N {
            c[r][n] = sums[n].to_bits();
        }
    }
}
