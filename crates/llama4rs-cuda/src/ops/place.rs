//! Where `rope_cache.cu` puts queries, keys and values.

use llama4rs_tensor::{KvDtype, KvGeometry, Placement, Result, Slot};

use crate::arguments::{arguments, Structure};
use crate::cuda::{Cuda, Launch};
use crate::kernels::ROPE_CACHE;
use crate::kv_pages::KvPages;
use crate::tensor::Tensor;

/// Heads of a block of `rope_cache`.
const HEADS: usize = 8;

impl Cuda {
    /// [`llama4rs_tensor::Backend::place`] in one launch, for pools that [suit](suits_place).
    pub(crate) fn run_place(
        &self,
        [q, k, v]: [&mut Tensor; 3],
        placement: &Placement<'_, Tensor>,
        pool: &KvPages,
        layer: usize,
        slots: &[Slot],
    ) -> Result<()> {
        let (rows, kv_heads) = (q.rows(), pool.geometry().num_kv_heads);
        let head_dim = placement.head_dim;
        let list = self.slots(pool, slots)?;
        let heads = q.cols() / head_dim;
        let halves = q.halves_mut(&self.gpu)?.address();
        let all = Structure::default()
            .long(q.address())
            .long(k.address())
            .long(v.address())
            .long(placement.rotations.map_or(0, Tensor::address))
            .long(placement.scales.map_or(0, Tensor::address))
            .long(q.address())
            .long(halves)
            .long(list.address())
            .long(list.offset(2 * rows))
            .size(heads)?
            .size(kv_heads)?
            .size(layer)?
            .word(placement.norm_eps.unwrap_or(-1.0).to_bits());
        let launch = Launch {
            source: &ROPE_CACHE,
            kernel: "rope_cache",
            constants: &[("HEAD_DIM", head_dim as u32)],
            shared: 0,
            blocks: [(heads + 2 * kv_heads).div_ceil(HEADS), rows, 1],
            threads: 256,
        };
        self.launch(launch, &arguments![all])
    }
}

/// Whether [`Cuda::run_place`] takes the pages of this pool.
pub(crate) fn suits_place(geometry: &KvGeometry, head_dim: usize) -> bool {
    geometry.dtype.exact() == KvDtype::Bf16
        && !geometry.dtype.rotates_values()
        && geometry.head_dim == head_dim
        && head_dim.is_multiple_of(64)
}
