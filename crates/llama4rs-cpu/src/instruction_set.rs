//! Which vector instructions to use.

use std::fmt;

use crate::simd::Features;

/// A set of vector instructions. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InstructionSet {
    /// Plain Rust: works everywhere, slow, the reference.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX2 with FMA, and integer dot products by AVX-VNNI.
    Avx2Vnni,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// AVX-512 F, BW, DQ, VL, VNNI and BF16.
    Avx512Bf16,
}

impl InstructionSet {
    /// All sets, slowest first.
    pub(crate) const ALL: [InstructionSet; 6] = [
        InstructionSet::Scalar,
        InstructionSet::Avx2,
        InstructionSet::Avx2Vnni,
        InstructionSet::Avx512,
        InstructionSet::Avx512Vnni,
        InstructionSet::Avx512Bf16,
    ];

    /// The best set that this processor has.
    pub fn detect() -> Self {
        *Self::available().last().expect("plain Rust is always there")
    }

    /// The sets that this processor has, slowest first.
    pub fn available() -> Vec<Self> {
        Self::of(Features::detect())
    }

    /// The sets of a processor with these features, slowest first.
    pub(crate) fn of(features: Features) -> Vec<Self> {
        Self::ALL.into_iter().filter(|&set| features.have(set)).collect()
    }

    /// The set without its dot products of integers and bf16 numbers.
    pub fn without_dots(self) -> Self {
        match self {
            InstructionSet::Avx2Vnni => InstructionSet::Avx2,
            InstructionSet::Avx512Vnni | InstructionSet::Avx512Bf16 => InstructionSet::Avx512,
            set => set,
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InstructionSet::Scalar => "scalar",
            InstructionSet::Avx2 => "avx2",
            InstructionSet::Avx2Vnni => "avx2-vnni",
            InstructionSet::Avx512 => "avx512",
            InstructionSet::Avx512Vnni => "avx512-vnni",
            InstructionSet::Avx512Bf16 => "avx512-bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_rust_is_always_there_and_the_best_is_chosen() {
        let available = InstructionSet::available();
        assert_eq!(available[0], InstructionSet::Scalar);
        assert_eq!(available.last(), Some(&InstructionSet::detect()));
    }
}
