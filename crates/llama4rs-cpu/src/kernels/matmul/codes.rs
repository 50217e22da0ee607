//! From one line of a panel to floats, per weight format.

use crate::simd::Simd;

/// The codes of one weight format.
pub trait Codes: Copy + Send + Sync + 'static {
    /// Inputs in one line.
    const LINE_COLS: usize;
    /// Whether groups of inputs have scales.
    const SCALED: bool;

    /// Input `J` of a line, before its scale.
    fn code<S: Simd, const J: usize>(simd: S, line: S::W) -> S::F;
}

macro_rules! codes {
    ($($name:ident: $cols:literal inputs, scaled: $scaled:literal, $method:ident $(::<$j:ident>)?;)+) => {
        $(
            #[doc = concat!("Lines of `", stringify!($name), "` weights.")]
            #[derive(Clone, Copy)]
            pub struct $name;

            impl Codes for $name {
                const LINE_COLS: usize = $cols;
                const SCALED: bool = $scaled;

                #[inline(always)]
                fn code<S: Simd, const J: usize>(simd: S, line: S::W) -> S::F {
                    simd.$method$(::<$j>)?(line)
                }
            }
        )+
    };
}

codes! {
    F32: 1 inputs, scaled: false, f32_code;
    Bf16: 2 inputs, scaled: false, bf16_code::<J>;
    Int8: 4 inputs, scaled: true, int8_code::<J>;
    Int4: 8 inputs, scaled: true, int4_code::<J>;
}
