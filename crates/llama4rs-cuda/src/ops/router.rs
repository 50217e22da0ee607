//! Which rows go to which expert: `route.cu`.

use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::{Error, Result, WeightFormat};

use super::shapes::{Shape, MOST_DECODE_ROWS};
use crate::arguments::{arguments, Arguments, Structure};
use crate::cuda::{Cuda, Launch};
use crate::kernels::ROUTE;
use crate::memory::Buffer;
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
    /// Logits, choices and tiles of a router in f32 panels: in one launch, or two for more rows than
    /// [`MOST_DECODE_ROWS`].
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
        let input = Structure::default()
            .long(x)
            .row_norm(norm)?
            .long(router.panels.address())
            .long(router.panel_bytes() / 4)
            .size(router.cols)?;
        let result = Structure::default()
            .long(logits.address())
            .long(experts.address())
            .long(weights.address())
            .long(tiles.order.address())
            .long(tiles.table.address())
            .long(tiles.count.address())
            .size(rows)?
            .size(num_experts)?
            .size(top_k)?
            .size(tiles.shape.tokens())?;
        let blocks = [num_experts.div_ceil(PANEL_ROWS), splits, rows.div_ceil(4)];
        if rows <= MOST_DECODE_ROWS {
            let all = arguments![input, result, &parts, &self.tickets];
            self.launch_route("router", blocks, 128, &all)?;
        } else {
            let all = arguments![input, &parts, rows, num_experts];
            self.launch_route("router_parts", blocks, 128, &all)?;
            let all = arguments![result, &parts, splits];
            self.launch_route("route", [1, 1, 1], 1024, &all)?;
        }
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
        let tokens = shape.tokens();
        let all = arguments![experts, order, table, count, assignments, num_experts, tokens];
        self.launch_route("token_tiles", [1, 1, 1], 1024, &all)?;
        Ok(tiles)
    }

    fn launch_route(
        &self,
        kernel: &'static str,
        blocks: [usize; 3],
        threads: u32,
        arguments: &impl Arguments,
    ) -> Result<()> {
        let source = &ROUTE;
        let launch = Launch { source, kernel, constants: &[], shared: 0, blocks, threads };
        self.launch(launch, arguments)
    }
}
