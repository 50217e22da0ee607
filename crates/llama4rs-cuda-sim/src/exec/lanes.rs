//! Loops over the lanes of a warp.

use crate::program::{Constants, LANES};

/// One value for each lane.
pub type Lanes<T> = [T; LANES];

/// An unsigned integer that a register file holds.
pub trait Lane: Copy + Default + PartialEq + 'static {
    /// The register file of this width.
    fn file(files: &Files) -> &Vec<Lanes<Self>>;
    /// The same, to write.
    fn file_mut(files: &mut Files) -> &mut Vec<Lanes<Self>>;
    /// The constants of this width.
    fn constants(constants: &Constants) -> &Vec<Lanes<Self>>;
    /// Widened with zeros.
    fn wide(self) -> u64;
    /// The low bits.
    fn narrow(value: u64) -> Self;
}

/// The register files of a warp.
#[derive(Default)]
pub struct Files {
    w16: Vec<Lanes<u16>>,
    w32: Vec<Lanes<u32>>,
    w64: Vec<Lanes<u64>>,
}

impl Files {
    /// Files of the given sizes, all registers zero.
    pub fn new(sizes: [usize; 3]) -> Self {
        Self {
            w16: vec![[0; LANES]; sizes[0]],
            w32: vec![[0; LANES]; sizes[1]],
            w64: vec![[0; LANES]; sizes[2]],
        }
    }
}

macro_rules! lane {
    ($t:ty, $field:ident) => {
        impl Lane for $t {
            #[inline(always)]
            fn file(files: &Files) -> &Vec<Lanes<Self>> {
                &files.$field
            }
            #[inline(always)]
            fn file_mut(files: &mut Files) -> &mut Vec<Lanes<Self>> {
                &mut files.$field
            }
            #[inline(always)]
            fn constants(constants: &Constants) -> &Vec<Lanes<Self>> {
                &constants.$field
            }
            #[inline(always)]
            fn wide(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn narrow(value: u64) -> Self {
                value as $t
            }
        }
    };
}
lane!(u16, w16);
lane!(u32, w32);
lane!(u64, w64);

/// `f` of each lane.
#[inline(always)]
pub fn map1<A: Copy, R: Copy + Default>(a: &Lanes<A>, f: impl Fn(A) -> R) -> Lanes<R> {
    let mut out = [R::default(); LANES];
    for l in 0..LANES {
        out[l] = f(a[l]);
    }
    out
}

/// `f` of each lane of two.
#[inline(always)]
pub fn map2<A: Copy, B: Copy, R: Copy + Default>(
    a: &Lanes<A>,
    b: &Lanes<B>,
    f: impl Fn(A, B) -> R,
) -> Lanes<R> {
    let mut out = [R::default(); LANES];
    for l in 0..LANES {
        out[l] = f(a[l], b[l]);
    }
    out
}

/// `f` of each lane of three.
#[inline(always)]
pub fn map3<A: Copy, B: Copy, C: Copy, R: Copy + Default>(
    a: &Lanes<A>,
    b: &Lanes<B>,
    c: &Lanes<C>,
    f: impl Fn(A, B, C) -> R,
) -> Lanes<R> {
    let mut out = [R::default(); LANES];
    for l in 0..LANES {
        out[l] = f(a[l], b[l], c[l]);
    }
    out
}

/// A mask of the lanes for which `f` holds.
#[inline(always)]
pub fn mask2<A: Copy, B: Copy>(a: &Lanes<A>, b: &Lanes<B>, f: impl Fn(A, B) -> bool) -> u32 {
    let mut bits = [0u32; LANES];
    for l in 0..LANES {
        bits[l] = u32::from(f(a[l], b[l])) << l;
    }
    bits.iter().fold(0, |m, b| m | b)
}

/// The lanes of a mask, lowest first.
#[inline(always)]
pub fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        Some(lane)
    })
}
