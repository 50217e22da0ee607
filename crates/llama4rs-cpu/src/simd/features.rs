//! Which instruction sets a processor has.

use crate::InstructionSet;

/// Instructions that the processor and the system know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    avx2: bool,
    fma: bool,
    f16c: bool,
    avxvnni: bool,
    avx512f: bool,
    avx512bw: bool,
    avx512dq: bool,
    avx512vl: bool,
    avx512vnni: bool,
    avx512bf16: bool,
}

impl Features {
    /// Those of this machine.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Self {
        Self {
            avx2: is_x86_feature_detected!("avx2"),
            fma: is_x86_feature_detected!("fma"),
            f16c: is_x86_feature_detected!("f16c"),
            avxvnni: is_x86_feature_detected!("avxvnni"),
            avx512f: is_x86_feature_detected!("avx512f"),
            avx512bw: is_x86_feature_detected!("avx512bw"),
            avx512dq: is_x86_feature_detected!("avx512dq"),
            avx512vl: is_x86_feature_detected!("avx512vl"),
            avx512vnni: is_x86_feature_detected!("avx512vnni"),
            avx512bf16: is_x86_feature_detected!("avx512bf16") && super::avx512::bf16_is_exact(),
        }
    }

    /// Those of this machine: plain Rust.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Self {
        Self::default()
    }

    /// Whether they are all that `set` needs.
    pub fn have(self, set: InstructionSet) -> bool {
        let avx2 = self.avx2 && self.fma && self.f16c;
        let avx512 = avx2 && self.avx512f && self.avx512bw && self.avx512dq && self.avx512vl;
        match set {
            InstructionSet::Scalar => true,
            InstructionSet::Avx2 => avx2,
            InstructionSet::Avx2Vnni => avx2 && self.avxvnni,
            InstructionSet::Avx512 => avx512,
            InstructionSet::Avx512Vnni => avx512 && self.avx512vnni,
            InstructionSet::Avx512Bf16 => avx512 && self.avx512vnni && self.avx512bf16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Dispatch;

    #[test]
    fn every_kind_of_processor_gets_its_best_set() {
        let none = Features::default();
        let haswell = Features { avx2: true, fma: true, f16c: true, ..none };
        let alder_lake = Features { avxvnni: true, ..haswell };
        let skylake =
            Features { avx512f: true, avx512bw: true, avx512dq: true, avx512vl: true, ..haswell };
        let ice_lake = Features { avx512vnni: true, ..skylake };
        let zen_4 = Features { avx512bf16: true, ..ice_lake };
        for (features, best) in [
            (none, InstructionSet::Scalar),
            (Features { fma: false, ..haswell }, InstructionSet::Scalar),
            (haswell, InstructionSet::Avx2),
            (alder_lake, InstructionSet::Avx2Vnni),
            (Features { avx512vl: false, ..skylake }, InstructionSet::Avx2),
            (Features { avx512bw: false, ..zen_4 }, InstructionSet::Avx2),
            (skylake, InstructionSet::Avx512),
            (ice_lake, InstructionSet::Avx512Vnni),
            (Features { avxvnni: true, ..ice_lake }, InstructionSet::Avx512Vnni),
            (zen_4, InstructionSet::Avx512Bf16),
            (Features { avx512vnni: false, ..zen_4 }, InstructionSet::Avx512),
        ] {
            let sets = InstructionSet::of(features);
            assert_eq!(sets.last(), Some(&best), "{features:?}: {sets:?}");
            assert_eq!(sets[0], InstructionSet::Scalar);
        }
    }

    #[test]
    fn there_is_a_token_for_what_is_available_and_for_nothing_else() {
        for set in InstructionSet::ALL {
            let available = InstructionSet::available().contains(&set);
            assert_eq!(Dispatch::new(set).is_some(), available, "{set}");
        }
    }
}
