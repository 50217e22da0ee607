//! Mixture of experts: `experts.cu` around the products of `matmul_exact.cu`.
//!
//! Nothing waits for the device: the launches have the shapes of the worst case,
//! and a table on the device says which tiles there are.

use llama4rs_tensor::{Error, ExpertWeights, Result};

use super::matmul::{tile_for, Tiles};
use crate::arguments::{arguments, Arguments};
use crate::cuda::{Cuda, Launch};
use crate::kernels::{EXPERTS, ROWS};
use crate::memory::Buffer;
use crate::tensor::{Matrix, Routing, Tensor};

/// Experts that `sort_entries` has room for.
const MOST_EXPERTS: usize = 1024;
/// Rows of a block of `route`.
const ROUTED_ROWS: usize = 8;

impl Cuda {
    fn launch_experts(
        &self,
        kernel: &'static str,
        blocks: usize,
        threads: u32,
        arguments: &impl Arguments,
    ) -> Result<()> {
        let blocks = [blocks, 1, 1];
        let source = &EXPERTS;
        self.launch(
            Launch { source, kernel, constants: &[], shared: 0, blocks, threads },
            arguments,
        )
    }

    pub(crate) fn run_route(&self, logits: &Tensor, top_k: usize) -> Result<Routing> {
        let (rows, num_experts) = (logits.rows(), logits.cols());
        if num_experts > MOST_EXPERTS {
            return Err(Error::shape(
                "route",
                format!("at most {MOST_EXPERTS} experts"),
                num_experts,
            ));
        }
        let experts = Buffer::result(&self.gpu, rows * top_k, "routing")?;
        let weights = Buffer::new(&self.gpu, rows * top_k, "routing")?;
        let arguments = arguments![&experts, &weights, logits.address(), rows, num_experts, top_k];
        self.launch_experts("route", rows.div_ceil(ROUTED_ROWS), 256, &arguments)?;
        Ok(Routing { rows, top_k, num_experts, experts, weights })
    }

    /// `out += Σ experts`, as [`llama4rs_tensor::Backend::experts`] says.
    pub(crate) fn run_experts(
        &self,
        x: &Tensor,
        routing: &Routing,
        weights: ExpertWeights<'_, Matrix>,
        out: &mut Tensor,
    ) -> Result<()> {
        let ExpertWeights { gate, up, down } = weights;
        let entries = routing.rows * routing.top_k;
        if entries == 0 {
            return Ok(());
        }
        let all = [gate, up, down];
        match all.map(|matrix| matrix.fragments.is_some()) {
            [true, true, true] => return self.run_expert_products(x, routing, all, out),
            [false, false, false] => {}
            _ => {
                let found = all.map(|matrix| matrix.format.to_string()).join(", ");
                return Err(Error::shape("experts", "all matrices in f32, or none of them", found));
            }
        }
        let x = self.plain(x)?;
        let Sorted { order, place, tiles } = self.sort_entries(routing)?;
        let sorted = |cols: usize| -> Result<Buffer<f32>> {
            let len = entries.checked_mul(cols);
            Buffer::new(&self.gpu, len.unwrap_or(usize::MAX), "rows of experts")
        };
        let (hidden, top_k) = (gate.cols, routing.top_k);
        let inputs = sorted(hidden)?;
        let all = arguments![&inputs, x.address(), &order, &routing.weights, top_k, hidden];
        self.launch_experts("gather_scaled", entries, 256, &all)?;

        let (gated, upped) = (sorted(gate.rows)?, sorted(gate.rows)?);
        self.run_matmul_experts(&gated, &inputs, gate, &tiles)?;
        self.run_matmul_experts(&upped, &inputs, up, &tiles)?;
        let count = entries * gate.rows;
        let blocks = [count.div_ceil(256), 1, 1];
        let kernel = "swiglu";
        self.launch(
            Launch { source: &ROWS, kernel, constants: &[], shared: 0, blocks, threads: 256 },
            &arguments![&gated, &upped, count as u64],
        )?;
        // The inputs were read: their memory takes the outputs.
        let outputs = inputs;
        self.run_matmul_experts(&outputs, &gated, down, &tiles)?;
        let all = arguments![out.address_mut(), &outputs, &place, top_k, hidden];
        self.launch_experts("scatter_add", routing.rows, 256, &all)
    }

    fn sort_entries(&self, routing: &Routing) -> Result<Sorted> {
        let Routing { rows, top_k, num_experts, ref experts, .. } = *routing;
        let entries = rows * top_k;
        // Small tiles where experts get few rows each: no row of a tile is wasted.
        let tokens = tile_for(entries.div_ceil(num_experts));
        let count = num_experts.min(entries) + entries / tokens;
        let order = Buffer::new(&self.gpu, entries, "routing")?;
        let place = Buffer::new(&self.gpu, entries, "routing")?;
        let table = Buffer::new(&self.gpu, count * 3, "routing")?;
        let arguments =
            arguments![&order, &place, &table, experts, entries, num_experts, tokens, count];
        self.launch_experts("sort_entries", 1, 1024, &arguments)?;
        Ok(Sorted { order, place, tiles: Tiles { table, count, tokens } })
    }
}

/// Entries in the order of their experts.
struct Sorted {
    order: Buffer<u32>,
    place: Buffer<u32>,
    tiles: Tiles,
}
