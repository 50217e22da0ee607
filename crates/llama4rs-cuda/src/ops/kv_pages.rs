//! Writing and sealing keys and values: `kv_pages.cu`.

use std::sync::Arc;

use llama4rs_tensor::{KvDtype, KvGeometry, PageId, Result, Slot};

use crate::arguments::{arguments, Arguments};
use crate::cuda::{Cuda, Launch};
use crate::kernels::KV_PAGES;
use crate::kv_pages::KvPages;
use crate::memory::Buffer;
use crate::tensor::Tensor;

/// Addresses as the lists of the device hold them: two words each.
pub(crate) fn words(addresses: impl Iterator<Item = u64>) -> impl Iterator<Item = u32> {
    addresses.flat_map(|address| [address as u32, (address >> 32) as u32])
}

/// Where a pool is on the host: its name within a step.
pub(crate) fn address_of(pool: &KvPages) -> usize {
    std::ptr::from_ref(pool) as usize
}

/// The constants that say how pages store their numbers.
pub(crate) fn dtype_constants(dtype: KvDtype) -> [(&'static str, u32); 2] {
    let bf16 = (dtype.exact() == KvDtype::Bf16) as u32;
    [("KV_BF16", bf16), ("CODE_BITS", dtype.code_bits().unwrap_or(0) as u32)]
}

/// The constants of `kv_pages.cu`.
pub(crate) fn kv_constants(geometry: &KvGeometry) -> [(&'static str, u32); 5] {
    let [bf16, bits] = dtype_constants(geometry.dtype);
    [
        ("HEAD_DIM", geometry.head_dim as u32),
        ("KV_HEADS", geometry.num_kv_heads as u32),
        ("PAGE_TOKENS", geometry.page_tokens as u32),
        bf16,
        bits,
    ]
}

impl Cuda {
    fn launch_kv(
        &self,
        geometry: &KvGeometry,
        kernel: &'static str,
        blocks: [usize; 3],
        threads: u32,
        arguments: &impl Arguments,
    ) -> Result<()> {
        let source = &KV_PAGES;
        let constants = &kv_constants(geometry);
        self.launch(Launch { source, kernel, constants, shared: 0, blocks, threads }, arguments)
    }

    pub(crate) fn run_write_kv(
        &self,
        pool: &mut KvPages,
        layer: usize,
        slots: &[Slot],
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<()> {
        let geometry = *pool.geometry();
        let rotates = geometry.dtype.rotates_values();
        let count = if rotates { values.len() } else { 0 };
        let rotated = Buffer::<f32>::new(&self.gpu, count, "rotated values")?;
        if rotates {
            self.rotate_heads(&geometry, rotated.address(), values)?;
        }
        let values = if rotates { rotated.address() } else { values.address() };
        let list = self.slots(pool, slots)?;
        let offsets = list.offset(2 * slots.len());
        let arguments = arguments![&*list, offsets, keys.address(), values, layer];
        self.launch_kv(&geometry, "write_kv", [slots.len(), 1, 1], 256, &arguments)
    }

    /// Addresses of the slots' pages, then offsets in them; all layers of a pool bring the same slots.
    pub(crate) fn slots(&self, pool: &KvPages, slots: &[Slot]) -> Result<Arc<Buffer<u32>>> {
        let from = [address_of(pool), slots.as_ptr() as usize, slots.len(), 0];
        let list = self.gpu.once_a_step(from, || {
            let pages = words(slots.iter().map(|slot| pool.address(slot.page)));
            let list: Vec<u32> = pages.chain(slots.iter().map(|slot| slot.offset)).collect();
            self.list("slots", &list)
        })?;
        Ok(Arc::clone(&list))
    }

    /// The Hadamard rotation of each head of `x`, to address `out`, which may be that of `x`.
    pub(crate) fn rotate_heads(&self, geometry: &KvGeometry, out: u64, x: &Tensor) -> Result<()> {
        let blocks = [x.len() / geometry.head_dim, 1, 1];
        self.launch_kv(geometry, "rotate_heads", blocks, 128, &arguments![out, x.address()])
    }

    pub(crate) fn run_seal(
        &self,
        pool: &mut KvPages,
        layer: usize,
        pages: &[(PageId, PageId)],
    ) -> Result<()> {
        let geometry = *pool.geometry();
        let addresses = pages.iter().flat_map(|&(exact, sealed)| [exact, sealed]);
        let list: Vec<u32> = words(addresses.map(|page| pool.address(page))).collect();
        let list = self.list("seals", &list)?;
        let blocks = [pages.len(), geometry.num_kv_heads, 1];
        self.launch_kv(&geometry, "seal", blocks, 128, &arguments![&*list, layer])
    }
}
