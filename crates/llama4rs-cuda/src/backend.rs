//! [`Backend`] for [`Cuda`]: shape checks, then the launches of one operation.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};

use llama4rs_tensor::check::{
    require, require_below, require_columns, require_heads, require_layer, require_shape,
    require_single,
};
use llama4rs_tensor::format::GROUP_SIZES;
use llama4rs_tensor::{
    Backend, Bytes, Draw, Error, ExpertWeights, FeedForwardScratch, KvGeometry, KvSpan, MatrixUse,
    MixtureWeights, Norm, PackedMatrix, PageForm, PageId, Placement, Residual, Result, Slot,
};

use crate::kv_pages::KvPages;
use crate::memory::Buffer;
use crate::ops::feed_forward::{fits_feed_forward, fits_mixture};
use crate::ops::pages_attention;
use crate::ops::place::suits_place;
use crate::ops::residual::is_wide_enough;
use crate::ops::sample::Tokens;
use crate::tensor::{Matrix, Routing, Tensor, Vector};
use crate::Cuda;

/// Steps of more rows take so long that the device never waits for the host.
const MOST_RECORDED_ROWS: usize = 256;

impl Backend for Cuda {
    type Tensor = Tensor;
    type Vector = Vector;
    type Matrix = Matrix;
    type KvPool = KvPages;
    type Routing = Routing;
    type Tokens = Tokens;

    fn description(&self) -> String {
        let info = self.info();
        let exact = if self.tensor_cores { "" } else { ", exact" };
        format!("cuda:{} ({}{exact})", info.ordinal, info.name)
    }

    fn free_memory(&self) -> Option<usize> {
        self.memory().ok().map(|(free, _)| free)
    }

    fn take_warning(&self) -> Option<String> {
        let early = |error| format!("kernels begin one after the other, and slower: {error}");
        let graphs = |error| format!("decoding goes on without CUDA graphs, and slower: {error}");
        let failed = self.gpu.take_capture_failure().map(graphs);
        failed.or_else(|| self.gpu.take_programmatic_failure().map(early))
    }

    fn step<T, E: From<Error>>(
        &self,
        rows: usize,
        run: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let records = self.graphs && rows <= MOST_RECORDED_ROWS;
        let Some(step) = self.gpu.begin_step(records)? else { return run() };
        let outcome = run()?;
        step.finish()?;
        Ok(outcome)
    }

    fn empty(&self) -> Tensor {
        Tensor::default()
    }

    fn upload(&self, values: &[f32], cols: usize) -> Result<Tensor> {
        let rows = values.len().checked_div(cols).unwrap_or(0);
        let expected = || format!("a multiple of {cols} values");
        require(rows * cols == values.len(), "upload", expected, || values.len().to_string())?;
        Tensor::of(&self.gpu, values, rows, cols)
    }

    fn to_host(&self, x: &Tensor) -> Result<Vec<f32>> {
        let x = self.plain(x)?;
        x.values().map_or(Ok(Vec::new()), |values| values.read(0, x.len()))
    }

    fn rows_to_host(&self, x: &Tensor, rows: Range<usize>) -> Result<Vec<f32>> {
        let fits = rows.start <= rows.end && rows.end <= x.rows();
        let expected = || format!("some of {} rows", x.rows());
        require(fits, "rows_to_host", expected, || format!("{rows:?}"))?;
        let (start, count) = (rows.start * x.cols(), rows.len() * x.cols());
        let x = self.plain(x)?;
        x.values().map_or(Ok(Vec::new()), |values| values.read(start, count))
    }

    fn shape(&self, x: &Tensor) -> (usize, usize) {
        x.shape()
    }

    fn vector(&self, values: &[f32]) -> Result<Vector> {
        Ok(Vector(Buffer::of(&self.gpu, values, "weights")?))
    }

    fn matrix(&self, packed: PackedMatrix) -> Result<Matrix> {
        let group = packed.format().group();
        require(
            group.is_none_or(|group| GROUP_SIZES.contains(&group)) && packed.stack() > 0,
            "matrix",
            || format!("at least one matrix, in groups of {GROUP_SIZES:?}"),
            || format!("{} x {}", packed.stack(), packed.format()),
        )?;
        let fragments = if self.tensor_cores { self.upload_fragments(&packed)? } else { None };
        fragments.map_or_else(|| Matrix::upload(&self.gpu, &packed), Ok)
    }

    fn expect(&self, weights: &Matrix, usage: MatrixUse) {
        self.expect_products(weights, usage);
    }

    fn get_ready(&self, progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) {
        self.gpu.library.wait(progress);
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Tensor) -> Result<()> {
        require_single("embed", table.stack)?;
        require_below("embed", "ids", ids, table.rows)?;
        self.run_embed(table, ids, out)
    }

    fn select_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()> {
        require_below("select_rows", "rows", rows, x.rows())?;
        self.run_select_rows(&*self.plain(x)?, rows, out)
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        require_shape("add", y.shape(), x.rows(), x.cols())?;
        self.make_plain(x)?;
        self.run_add(x, &*self.plain(y)?)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vector, eps: f32, out: &mut Tensor) -> Result<()> {
        require_columns("rms_norm", x.cols(), weight.0.len())?;
        let x = &*self.plain(x)?;
        if self.tensor_cores && is_wide_enough(x.cols()) {
            return self.run_norm(x, Norm { weight, eps }, out);
        }
        self.run_rms_norm(x, weight, eps, out)
    }

    fn matmul(&self, x: &Tensor, weights: &[&Matrix], outs: &mut [&mut Tensor]) -> Result<()> {
        let (expected, got) = (weights.len(), outs.len());
        require(expected == got, "matmul", || format!("{expected} outputs"), || got.to_string())?;
        for weights in weights {
            require_single("matmul", weights.stack)?;
            require_shape("matmul", x.shape(), x.rows(), weights.cols)?;
        }
        if weights.iter().all(|weights| weights.fragments.is_some()) {
            return self.run_products(x, weights, outs);
        }
        for (weights, out) in weights.iter().zip(outs) {
            if weights.fragments.is_some() {
                self.run_products(x, &[weights], &mut [out])?;
            } else {
                self.run_matmul(&*self.plain(x)?, weights, out)?;
            }
        }
        Ok(())
    }

    fn swiglu(&self, gate: &mut Tensor, up: &Tensor) -> Result<()> {
        require_shape("swiglu", up.shape(), gate.rows(), gate.cols())?;
        self.make_plain(gate)?;
        self.run_swiglu(gate, &*self.plain(up)?)
    }

    fn rope(&self, x: &mut Tensor, rotations: &Tensor, head_dim: usize) -> Result<()> {
        require_heads("rope", x.cols(), head_dim)?;
        require_heads("rope", head_dim, 2)?;
        require_shape("rope", rotations.shape(), x.rows(), head_dim)?;
        self.make_plain(x)?;
        self.run_rope(x, &*self.plain(rotations)?, head_dim)
    }

    fn head_norm(&self, x: &mut Tensor, head_dim: usize, eps: f32) -> Result<()> {
        require_heads("head_norm", x.cols(), head_dim)?;
        self.make_plain(x)?;
        self.run_head_norm(x, head_dim, eps)
    }

    fn scale_rows(&self, x: &mut Tensor, scales: &Tensor) -> Result<()> {
        require_shape("scale_rows", scales.shape(), x.rows(), 1)?;
        self.make_plain(x)?;
        self.run_scale_rows(x, &*self.plain(scales)?)
    }

    fn kv_pool(&self, geometry: KvGeometry) -> Result<KvPages> {
        let pool = KvPages::new(geometry)?;
        self.expect_pages(&geometry);
        Ok(pool)
    }

    fn kv_reserve(&self, pool: &mut KvPages, form: PageForm, num_pages: usize) -> Result<()> {
        pool.reserve(&self.gpu, form, num_pages)
    }

    fn write_kv(
        &self,
        pool: &mut KvPages,
        layer: usize,
        slots: &[Slot],
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<()> {
        require_slots(pool, layer, slots, [keys, values])?;
        self.run_write_kv(pool, layer, slots, &*self.plain(keys)?, &*self.plain(values)?)
    }

    fn kv_seal(&self, pool: &mut KvPages, layer: usize, pages: &[(PageId, PageId)]) -> Result<()> {
        require_layer("kv_seal", pool.geometry(), layer)?;
        let mut targets: Vec<PageId> = pages.iter().map(|(_, sealed)| *sealed).collect();
        targets.sort_unstable();
        let differ = targets.windows(2).all(|pair| pair[0] != pair[1]);
        let fits = |&(from, to): &(PageId, PageId)| {
            (from.form(), to.form()) == (PageForm::Exact, PageForm::Sealed)
                && pool.has(from)
                && pool.has(to)
        };
        require(
            differ && pages.iter().all(fits),
            "kv_seal",
            || "reserved exact pages and a different reserved sealed page for each".to_owned(),
            || format!("{pages:?}"),
        )?;
        self.run_seal(pool, layer, pages)
    }

    fn kv_read<'a>(&self, pool: &'a KvPages, page: PageId) -> Result<Cow<'a, [u8]>> {
        require_page("kv_read", pool, page)?;
        pool.read(page).map(Cow::Owned)
    }

    fn kv_adopt(&self, pool: &mut KvPages, page: PageId, bytes: Bytes) -> Result<()> {
        require_page("kv_adopt", pool, page)?;
        let (expected, got) = (pool.geometry().page_bytes(page.form()), bytes.len());
        require(expected == got, "kv_adopt", || format!("{expected} bytes"), || got.to_string())?;
        pool.write(page, &bytes)
    }

    /// Pages keep their place on the device: there is nothing to give back.
    fn kv_discard(&self, _pool: &mut KvPages, _pages: &[PageId]) {}

    fn attend(
        &self,
        pool: &KvPages,
        layer: usize,
        queries: &Tensor,
        spans: &[KvSpan],
        scale: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        let geometry = *pool.geometry();
        require_layer("attend", &geometry, layer)?;
        require_heads("attend", queries.cols(), geometry.head_dim * geometry.num_kv_heads)?;
        let heads = queries.cols() / geometry.head_dim;
        let queries = &*self.plain(queries)?;
        if self.tensor_cores && pages_attention::suits(pool, heads) {
            return self.run_attend_pages(pool, layer, queries, spans, scale, out);
        }
        self.run_attend(pool, layer, queries, spans, scale, out)
    }

    fn route(&self, logits: &Tensor, top_k: usize) -> Result<Routing> {
        let experts = logits.cols();
        let fits = (1..=experts).contains(&top_k);
        let expected = || format!("1 to {experts} experts per row");
        require(fits, "route", expected, || top_k.to_string())?;
        self.run_route(&*self.plain(logits)?, top_k)
    }

    fn routed_experts(&self, routing: &Routing) -> Result<Vec<u32>> {
        routing.experts.read(0, routing.rows * routing.top_k)
    }

    fn experts(
        &self,
        x: &Tensor,
        routing: &Routing,
        weights: ExpertWeights<'_, Matrix>,
        out: &mut Tensor,
    ) -> Result<()> {
        let [hidden, inner] = [weights.gate.cols, weights.gate.rows];
        require_experts("experts", &weights, routing.num_experts, [hidden, inner])?;
        require_shape("experts", x.shape(), routing.rows, hidden)?;
        require_shape("experts", out.shape(), routing.rows, hidden)?;
        self.make_plain(out)?;
        self.run_experts(x, routing, weights, out)
    }

    fn choose(&self, logits: &Tensor, draws: &[Draw]) -> Result<Option<Tokens>> {
        self.run_choose(&*self.plain(logits)?, draws).map(Some)
    }

    fn tokens(&self, chosen: &Tokens) -> Result<Vec<u32>> {
        chosen.0.read(0, chosen.0.len())
    }

    fn add_norm(
        &self,
        x: &mut Tensor,
        delta: &Tensor,
        weight: &Vector,
        eps: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        if !self.tensor_cores || !is_wide_enough(x.cols()) {
            self.add(x, delta)?;
            return self.rms_norm(x, weight, eps, out);
        }
        require_shape("add_norm", delta.shape(), x.rows(), x.cols())?;
        require_columns("add_norm", x.cols(), weight.0.len())?;
        self.make_plain(x)?;
        let delta = self.plain(delta)?;
        self.launch_residual(x, Some(delta.address()), None, Some((Norm { weight, eps }, out)))
    }

    fn place(
        &self,
        [q, k, v]: [&mut Tensor; 3],
        placement: &Placement<'_, Tensor>,
        pool: &mut KvPages,
        layer: usize,
        slots: &[Slot],
    ) -> Result<()> {
        let (geometry, head_dim) = (*pool.geometry(), placement.head_dim);
        if !self.tensor_cores || !suits_place(&geometry, head_dim) {
            return self.place_in_parts([q, k, v], placement, pool, layer, slots);
        }
        require_heads("place", q.cols(), head_dim)?;
        if let Some(rotations) = placement.rotations {
            require_shape("place", rotations.shape(), q.rows(), head_dim)?;
        }
        if let Some(scales) = placement.scales {
            require_shape("place", scales.shape(), q.rows(), 1)?;
        }
        require_slots(pool, layer, slots, [k, v])?;
        require_shape("place", (q.rows(), 1), slots.len(), 1)?;
        for x in [&mut *q, &mut *k, &mut *v] {
            self.make_plain(x)?;
        }
        let rotations = placement.rotations.map(|x| self.plain(x)).transpose()?;
        let scales = placement.scales.map(|x| self.plain(x)).transpose()?;
        let placement =
            Placement { rotations: rotations.as_deref(), scales: scales.as_deref(), ..*placement };
        self.run_place([q, k, v], &placement, pool, layer, slots)
    }

    fn matmul_add(
        &self,
        x: &Tensor,
        weights: &Matrix,
        mut residual: Residual<'_, Self>,
    ) -> Result<()> {
        let fits = weights.fragments.is_some() && is_wide_enough(weights.rows) && x.rows() > 0;
        if !self.tensor_cores || !fits {
            return self.matmul_add_in_parts(x, weights, residual);
        }
        require_single("matmul_add", weights.stack)?;
        require_shape("matmul_add", x.shape(), x.rows(), weights.cols)?;
        self.check_residual("matmul_add", &mut residual, x.rows(), weights.rows)?;
        self.run_matmul_add(x, weights, residual)
    }

    fn feed_forward_add(
        &self,
        weights: &ExpertWeights<'_, Matrix>,
        room: [&mut Tensor; 2],
        mut residual: Residual<'_, Self>,
    ) -> Result<()> {
        let (rows, hidden, inner) = (residual.h.rows(), weights.gate.cols, weights.gate.rows);
        if !self.tensor_cores || rows == 0 || !fits_feed_forward(weights) {
            return self.feed_forward_add_in_parts(weights, room, residual);
        }
        require_shape("feed_forward_add", residual.h.shape(), rows, hidden)?;
        require_experts("feed_forward_add", weights, 1, [hidden, inner])?;
        self.check_residual("feed_forward_add", &mut residual, rows, hidden)?;
        self.run_feed_forward_add(weights, residual)
    }

    fn mixture_add(
        &self,
        weights: MixtureWeights<'_, Matrix>,
        scratch: FeedForwardScratch<'_, Tensor>,
        mut residual: Residual<'_, Self>,
    ) -> Result<Routing> {
        let (rows, experts) = (residual.h.rows(), weights.router.rows);
        let fits = (1..=experts).contains(&weights.top_k) && rows > 0;
        if !self.tensor_cores || !fits || !fits_mixture(&weights) {
            return self.mixture_add_in_parts(weights, scratch, residual);
        }
        let MixtureWeights { router, shared, routed, .. } = &weights;
        let (hidden, inner) = (routed.gate.cols, routed.gate.rows);
        require_shape("mixture_add", residual.h.shape(), rows, hidden)?;
        require_single("mixture_add", router.stack)?;
        require_shape("mixture_add", (router.rows, router.cols), experts, hidden)?;
        require_experts("mixture_add", shared, 1, [hidden, inner])?;
        require_experts("mixture_add", routed, experts, [hidden, inner])?;
        self.check_residual("mixture_add", &mut residual, rows, hidden)?;
        self.run_mixture_add(&weights, residual)
    }
}

impl Cuda {
    /// An error unless the residual stream has this shape and the norm this width. Makes the stream's values plain.
    fn check_residual(
        &self,
        operation: &'static str,
        residual: &mut Residual<'_, Self>,
        rows: usize,
        cols: usize,
    ) -> Result<()> {
        require_shape(operation, residual.x.shape(), rows, cols)?;
        let width = residual.norm.as_ref().map_or(cols, |norm| norm.weight.0.len());
        require_columns(operation, cols, width)?;
        self.make_plain(residual.x)
    }
}

/// An error unless `weights` are `stack` experts of these widths, `[hidden, inner]`.
fn require_experts(
    operation: &'static str,
    weights: &ExpertWeights<'_, Matrix>,
    stack: usize,
    [hidden, inner]: [usize; 2],
) -> Result<()> {
    for (matrix, rows, cols) in
        [(weights.gate, inner, hidden), (weights.up, inner, hidden), (weights.down, hidden, inner)]
    {
        require(
            [matrix.stack, matrix.rows, matrix.cols] == [stack, rows, cols],
            operation,
            || format!("{stack} x [{rows}, {cols}]"),
            || format!("{} x [{}, {}]", matrix.stack, matrix.rows, matrix.cols),
        )?;
    }
    Ok(())
}

fn require_page(operation: &'static str, pool: &KvPages, page: PageId) -> Result<()> {
    let reserved = || "a reserved page".to_owned();
    require(pool.has(page), operation, reserved, || format!("{page:?}"))
}

/// An error unless keys and values have a row for each slot, and the slots are there.
fn require_slots(pool: &KvPages, layer: usize, slots: &[Slot], planes: [&Tensor; 2]) -> Result<()> {
    let geometry = *pool.geometry();
    require_layer("write_kv", &geometry, layer)?;
    let cols = geometry.num_kv_heads * geometry.head_dim;
    for x in planes {
        require_shape("write_kv", x.shape(), slots.len(), cols)?;
    }
    let beyond = slots.iter().find(|slot| {
        slot.page.form() != PageForm::Exact
            || !pool.has(slot.page)
            || slot.offset as usize >= geometry.page_tokens
    });
    let pages = pool.num_pages(PageForm::Exact);
    require(
        beyond.is_none(),
        "write_kv",
        || format!("slots in {pages} exact pages of {} tokens", geometry.page_tokens),
        || format!("{beyond:?}"),
    )
}
