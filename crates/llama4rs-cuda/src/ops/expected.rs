//! What a model's matrices and pages will ask of the compiler.

use llama4rs_tensor::{KvGeometry, MatrixUse};

use super::pages_attention::{takes, Prefill};
use super::place::suits_place;
use super::residual::is_wide_enough;
use crate::cuda::Cuda;
use crate::kernels::{
    KernelSource, ATTENTION_DECODE, ATTENTION_PREFILL, EMBED_FRAGMENTS, KV_PAGES, MATMUL_DECODE,
    MATMUL_TILE, MATMUL_WGMMA, ORDER_STEPS, RESIDUAL_NORM, ROPE_CACHE, ROUTE, ROWS, SAMPLE,
};
use crate::ops::kv_pages::kv_constants;
use crate::tensor::Matrix;

impl Cuda {
    /// [`llama4rs_tensor::Backend::expect`], for tensor cores; others are compiled when they are needed.
    pub(crate) fn expect_products(&self, matrix: &Matrix, usage: MatrixUse) {
        if !self.tensor_cores {
            return;
        }
        if usage == MatrixUse::Lookup {
            self.expect_kernels(&ROWS, &[]);
            self.expect_kernels(&SAMPLE, &[]);
            for width in [4, matrix.cols].into_iter().filter(|&width| is_wide_enough(width)) {
                self.expect_kernels(&RESIDUAL_NORM, &[("WIDTH", width as u32)]);
            }
        }
        let [format, group] = matrix.constants();
        if matrix.fragments.is_none() {
            // A router.
            self.expect_kernels(&ROUTE, &[]);
            return;
        }
        // The numbers of `matmul.cuh`: decode, tile.
        let (decode, tile): (&[u32], u32) = match usage {
            MatrixUse::Lookup => return self.expect_kernels(&EMBED_FRAGMENTS, &[format, group]),
            MatrixUse::Product => (&[0], 0),
            MatrixUse::Gated => (&[2], 2),
            MatrixUse::EndOfHalf => (&[0, 3], 0),
        };
        for &finish in decode {
            let panels = if finish == 2 { 2 } else { 1 };
            let constants = [format, group, ("FINISH", finish), ("ROW_PANELS", panels)];
            self.expect_kernels(&MATMUL_DECODE, &constants);
        }
        self.expect_kernels(&MATMUL_TILE, &[format, group, ("FINISH", tile)]);
        if self.prompt_products.by_warpgroups() {
            self.expect_warpgroups(matrix, tile);
        }
    }

    /// Hopper's products of prompts, that end as number `finish` of `matmul.cuh` says.
    fn expect_warpgroups(&self, matrix: &Matrix, finish: u32) {
        let [format, group] = matrix.constants();
        self.expect_kernels(&MATMUL_WGMMA, &[format, group, ("FINISH", finish)]);
        self.expect_kernels(&ORDER_STEPS, &[]);
    }

    /// What the check of Hopper's products needs.
    pub(crate) fn expect_check(&self, matrix: &Matrix) {
        let [format, group] = matrix.constants();
        self.expect_kernels(&MATMUL_TILE, &[format, group, ("FINISH", 0)]);
        self.expect_warpgroups(matrix, 0);
    }

    /// The kernels for pages of keys and values that [tensor cores take](takes).
    pub(crate) fn expect_pages(&self, geometry: &KvGeometry) {
        let head_dim = ("HEAD_DIM", geometry.head_dim as u32);
        if !self.tensor_cores || !takes(geometry) {
            return;
        }
        let quantised = geometry.dtype.is_quantised();
        for prefill in
            [Prefill::of_spans(geometry.head_dim, self.info().shared_memory), Prefill::Parts]
        {
            let constants = prefill.constants(geometry.head_dim, quantised);
            self.expect_kernels(&ATTENTION_PREFILL, &constants);
        }
        let sealable = ("SEALED_PAGES", quantised as u32);
        // Five query heads of a key/value head, as all published models have, fit in one tile.
        self.expect_kernels(&ATTENTION_DECODE, &[head_dim, ("ROW_TILES", 1), sealable]);
        if suits_place(geometry, geometry.head_dim) {
            self.expect_kernels(&ROPE_CACHE, &[head_dim]);
        }
        if quantised {
            self.expect_kernels(&KV_PAGES, &kv_constants(geometry));
        }
    }

    fn expect_kernels(&self, source: &'static KernelSource, constants: &[(&'static str, u32)]) {
        self.gpu.library.expect(source, constants);
    }
}
