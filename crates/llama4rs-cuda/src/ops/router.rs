//! Which rows go to which expert: `route.cu`.

use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::{Error, Result, WeightFormat};

use super::shapes::Shape;
use crate::cuda::{Cuda, Launch};
use crate::kernels::ROUTE;
use crate::memory::Buffer;
use crate::module::arguments;
use crate::tensor::{Matrix, Routing, Tensor};

/// Experts that `route.cu` has room for.
pub(crate) const MOST_EXPERTS: usize = 256;
/// Inputs of a split of `router_parts`.
const ROUTER_INPUTS: usize = 256;

/// Assignments sorted by expert, in tiles.
pub(crate) struct TokenTiles {
    pub table: Buffer<u32>,
    pub count: Buffer<u32>,
    pub order: Buffer<u32>,
    /// Tiles that there are at most.
    pub most: usize,
    pub shape: Shape,
}

impl Cuda {
    /// Logits, choices and tiles of a router in f32 panels.
    pub(crate) fn run_router(
        &self,
        x: &Tensor,
        router: &Matrix,
        top_k: usize,
        formats: &[WeightFormat],
    ) -> Result<(Routing, TokenTiles)> {
        let (rows, num_experts) = (x.rows(), router.rows);
        let assignments = rows * top_k;
        let splits = router.cols.div_ceil(ROUTER_INPUTS);
        let parts = Buffer::<f32>::new(&self.gpu, splits * rows * num_experts, "routing")?;
        let logits = Buffer::<f32>::new(&self.gpu, rows * num_experts, "routing")?;
        let experts = Buffer::result(&self.gpu, assignments, "routing")?;
        let weights = Buffer::new(&self.gpu, assignments, "routing")?;
        let tiles = self.room_for_tiles(rows, assignments, num_experts, formats)?;
        let (x, norm) = match x.scaled() {
            Some((values, _, norm)) => (values, Some(norm)),
            None => (x.address(), None),
        };
        let launch = |kernel, blocks, threads| Launch {
            source: &ROUTE,
            kernel,
            constants: &[],
            shared: 0,
            blocks,
            threads,
        };
        let panel_floats = router.panel_bytes() / 4;
        let all = arguments![
            x,
            norm,
            &router.panels,
            &parts,
            rows,
            router.cols,
            num_experts,
            panel_floats
        ];
        let blocks = [num_experts.div_ceil(PANEL_ROWS), splits, rows.div_ceil(4)];
        self.launch(launch("router_parts", blocks, 128), &all)?;
        let all = arguments![
            &parts,
            &logits,
            splits,
            &experts,
            &weights,
            &tiles.order,
            &tiles.table,
            &tiles.count,
            rows,
            num_experts,
            top_k,
            tiles.shape.tokens()
        ];
        self.launch(launch("route", [1, 1, 1], 1024), &all)?;
        Ok((Routing { rows, top_k, num_experts, experts, weights }, tiles))
    }

    fn room_for_tiles(
        &self,
        rows: usize,
        assignments: usize,
        num_experts: usize,
        formats: &[WeightFormat],
    ) -> Result<TokenTiles> {
        let shape = self.expert_shape_for(rows, assignments, num_experts, formats);
        let most = num_experts.min(assignments) + assignments / shape.tokens();
        let table = Buffer::new(&self.gpu, 4 * most, "routing")?;
        let count = Buffer::new(&self.gpu, 1, "routing")?;
        let order = Buffer::new(&self.gpu, assignments, "routing")?;
        Ok(TokenTiles { table, count, order, most, shape })
    }

    /// Sorts a routing's assignments into tiles for the kernel that suits them.
    pub(crate) fn token_tiles(
        &self,
        routing: &Routing,
        formats: &[WeightFormat],
    ) -> Result<TokenTiles> {
        let Routing { rows, top_k, num_experts, ref experts, .. } = *routing;
        if num_experts > MOST_EXPERTS {
            let most = format!("at most {MOST_EXPERTS} experts");
            return Err(Error::shape("experts", most, num_experts));
        }
        let assignments = rows * top_k;
        let tiles = self.room_for_tiles(rows, assignments, num_experts, formats)?;
        let TokenTiles { table, count, order, shape, .. } = &tiles;
        let launch = Launch {
            source: &ROUTE,
            kernel: "token_tiles",
            constants: &[],
            shared: 0,
            blocks: [1, 1, 1],
            threads: 1024,
        };
        let tokens = shape.tokens();
        let all = arguments![experts, order, table, count, assignments, num_experts, tokens];
        self.launch(launch, &all)?;
        Ok(tiles)
    }
}
