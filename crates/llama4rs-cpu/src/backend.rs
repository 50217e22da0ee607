//! [`Backend`] for [`Cpu`]: shape checks, then one kernel per call.

use std::borrow::Cow;

use llama4rs_tensor::check::{
    require, require_columns, require_heads, require_layer, require_shape, require_single,
    require_spans, Shape,
};
use llama4rs_tensor::format::GROUP_SIZES;
use llama4rs_tensor::{
    Backend, Bytes, ExpertWeights, FeedForwardScratch, KvGeometry, KvSpan, MixtureWeights,
    PackedMatrix, PageForm, PageId, Result, Slot,
};

use crate::kernels::kv_pages::KvPages;
use crate::kernels::matmul::Panels;
use crate::kernels::{
    attention, elementwise, embed, experts, matmul, rms_norm, rope, route, swiglu,
};
use crate::{Arithmetic, Cpu, Routing, Tensor};

impl Backend for Cpu {
    type Tensor = Tensor;
    type Vector = Vec<f32>;
    type Matrix = PackedMatrix;
    type KvPool = KvPages;
    type Routing = Routing;
    type Tokens = std::convert::Infallible;

    fn description(&self) -> String {
        let threads = self.num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        let set = self.instruction_set();
        match self.arithmetic() {
            Arithmetic::Fast => format!("cpu ({set}, {threads} thread{plural})"),
            Arithmetic::Exact => {
                // Only fast products use VNNI and BF16.
                format!("cpu ({}, exact, {threads} thread{plural})", set.without_dots())
            }
        }
    }

    fn empty(&self) -> Tensor {
        Tensor::default()
    }

    fn upload(&self, values: &[f32], cols: usize) -> Result<Tensor> {
        Tensor::from_values(values, cols)
    }

    fn to_host(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.values().to_vec())
    }

    fn shape(&self, x: &Tensor) -> (usize, usize) {
        (x.rows(), x.cols())
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn matrix(&self, packed: PackedMatrix) -> Result<PackedMatrix> {
        let group = packed.format().group();
        require(
            group.is_none_or(|group| GROUP_SIZES.contains(&group)) && packed.stack() > 0,
            "matrix",
            || format!("at least one matrix, in groups of {GROUP_SIZES:?}"),
            || format!("{} x {}", packed.stack(), packed.format()),
        )?;
        Ok(packed)
    }

    fn embed(&self, table: &PackedMatrix, ids: &[u32], out: &mut Tensor) -> Result<()> {
        require_single("embed", table.stack())?;
        let beyond = ids.iter().find(|&&id| id as usize >= table.rows());
        require(
            beyond.is_none(),
            "embed",
            || format!("ids below {}", table.rows()),
            || format!("{beyond:?}"),
        )?;
        out.resize(ids.len(), table.cols())?;
        embed::embed(&self.threads, &Panels::of(table, 0), ids, out);
        Ok(())
    }

    fn select_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()> {
        let beyond = rows.iter().find(|&&row| row as usize >= x.rows());
        require(
            beyond.is_none(),
            "select_rows",
            || format!("rows below {}", x.rows()),
            || format!("{beyond:?}"),
        )?;
        out.resize(rows.len(), x.cols())?;
        elementwise::select_rows(&self.threads, x, rows, out);
        Ok(())
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        require_shape("add", y.shape(), x.rows(), x.cols())?;
        elementwise::add(&self.threads, x.values_mut(), y.values());
        Ok(())
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vec<f32>, eps: f32, out: &mut Tensor) -> Result<()> {
        require_columns("rms_norm", x.cols(), weight.len())?;
        out.resize(x.rows(), x.cols())?;
        if !x.values().is_empty() {
            let out = out.values_mut();
            rms_norm::rms_norm(self.dispatch, &self.threads, x.values(), weight, eps, out);
        }
        Ok(())
    }

    fn matmul(
        &self,
        x: &Tensor,
        weights: &[&PackedMatrix],
        outs: &mut [&mut Tensor],
    ) -> Result<()> {
        require(
            weights.len() == outs.len(),
            "matmul",
            || format!("{} outputs", weights.len()),
            || outs.len().to_string(),
        )?;
        for weights in weights {
            require_single("matmul", weights.stack())?;
            require(
                weights.cols() == x.cols(),
                "matmul",
                || format!("{} columns", weights.cols()),
                || format!("{:?}", x.shape()),
            )?;
        }
        let how = (self.dispatch, self.arithmetic);
        self.matmul_scratch
            .with(|scratch| matmul::matmul(how, &self.threads, scratch, x, weights, outs))
    }

    fn swiglu(&self, gate: &mut Tensor, up: &Tensor) -> Result<()> {
        require_shape("swiglu", up.shape(), gate.rows(), gate.cols())?;
        swiglu::swiglu(self.dispatch, &self.threads, gate.values_mut(), up.values());
        Ok(())
    }

    fn rope(&self, x: &mut Tensor, rotations: &Tensor, head_dim: usize) -> Result<()> {
        require_heads("rope", x.cols(), head_dim)?;
        require_heads("rope", head_dim, 2)?;
        require_shape("rope", rotations.shape(), x.rows(), head_dim)?;
        let cols = x.cols();
        if cols > 0 {
            let (x, rotations) = (x.values_mut(), rotations.values());
            rope::rope(self.dispatch, &self.threads, x, cols, rotations, head_dim);
        }
        Ok(())
    }

    fn head_norm(&self, x: &mut Tensor, head_dim: usize, eps: f32) -> Result<()> {
        require_heads("head_norm", x.cols(), head_dim)?;
        rms_norm::head_norm(self.dispatch, &self.threads, x.values_mut(), head_dim, eps);
        Ok(())
    }

    fn scale_rows(&self, x: &mut Tensor, scales: &Tensor) -> Result<()> {
        require_shape("scale_rows", scales.shape(), x.rows(), 1)?;
        elementwise::scale_rows(&self.threads, x, scales.values());
        Ok(())
    }

    fn kv_pool(&self, geometry: KvGeometry) -> Result<KvPages> {
        KvPages::new(geometry)
    }

    fn kv_reserve(&self, pool: &mut KvPages, form: PageForm, num_pages: usize) -> Result<()> {
        pool.reserve(form, num_pages)
    }

    fn write_kv(
        &self,
        pool: &mut KvPages,
        layer: usize,
        slots: &[Slot],
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<()> {
        let geometry = *pool.geometry();
        require_layer("write_kv", &geometry, layer)?;
        let cols = geometry.num_kv_heads * geometry.head_dim;
        require_shape("write_kv", keys.shape(), slots.len(), cols)?;
        require_shape("write_kv", values.shape(), slots.len(), cols)?;
        let beyond = slots.iter().find(|slot| {
            let fits = slot.page.form() == PageForm::Exact
                && pool.has(slot.page)
                && (slot.offset as usize) < geometry.page_tokens;
            !fits
        });
        require(
            beyond.is_none(),
            "write_kv",
            || {
                let pages = pool.num_pages(PageForm::Exact);
                format!("slots in {pages} exact pages of {} tokens", geometry.page_tokens)
            },
            || format!("{beyond:?}"),
        )?;
        pool.write(&self.threads, layer, slots, keys, values);
        Ok(())
    }

    fn kv_seal(&self, pool: &mut KvPages, layer: usize, pages: &[(PageId, PageId)]) -> Result<()> {
        require_layer("kv_seal", pool.geometry(), layer)?;
        for (exact, sealed) in pages {
            require_page("kv_seal", pool, *exact)?;
            require_page("kv_seal", pool, *sealed)?;
        }
        let mut targets: Vec<PageId> = pages.iter().map(|(_, sealed)| *sealed).collect();
        targets.sort_unstable();
        let differ = targets.windows(2).all(|pair| pair[0] != pair[1]);
        let forms = |(from, to): &(PageId, PageId)| {
            (from.form(), to.form()) == (PageForm::Exact, PageForm::Sealed)
        };
        require(
            differ && pages.iter().all(forms),
            "kv_seal",
            || "exact pages and a different sealed page for each".to_owned(),
            || format!("{pages:?}"),
        )?;
        pool.seal(&self.threads, layer, pages);
        Ok(())
    }

    fn kv_read<'a>(&self, pool: &'a KvPages, page: PageId) -> Result<Cow<'a, [u8]>> {
        require_page("kv_read", pool, page)?;
        Ok(Cow::Borrowed(pool.page(page)))
    }

    fn kv_adopt(&self, pool: &mut KvPages, page: PageId, bytes: Bytes) -> Result<()> {
        require_page("kv_adopt", pool, page)?;
        let expected = pool.geometry().page_bytes(page.form());
        require(
            bytes.len() == expected,
            "kv_adopt",
            || format!("{expected} bytes"),
            || bytes.len().to_string(),
        )?;
        pool.adopt(page, bytes);
        Ok(())
    }

    fn kv_keeps_mapped(&self) -> bool {
        true
    }

    fn kv_discard(&self, pool: &mut KvPages, pages: &[PageId]) {
        for &page in pages {
            if pool.has(page) {
                pool.discard(page);
            }
        }
    }

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
        require_spans(&geometry, queries.rows(), spans, |page| pool.has(page))?;
        self.attention_scratch.with(|scratch| {
            attention::attend(
                (self.dispatch, self.arithmetic),
                &self.threads,
                scratch,
                pool,
                layer,
                queries,
                spans,
                scale,
                out,
            )
        })
    }

    fn route(&self, logits: &Tensor, top_k: usize) -> Result<Routing> {
        require(
            (1..=logits.cols()).contains(&top_k),
            "route",
            || format!("1 to {} experts per row", logits.cols()),
            || top_k.to_string(),
        )?;
        Ok(route::route(logits, top_k))
    }

    fn routed_experts(&self, routing: &Routing) -> Result<Vec<u32>> {
        Ok(routing.experts.clone())
    }

    fn tokens(&self, chosen: &Self::Tokens) -> Result<Vec<u32>> {
        match *chosen {}
    }

    fn experts(
        &self,
        x: &Tensor,
        routing: &Routing,
        weights: ExpertWeights<'_, PackedMatrix>,
        out: &mut Tensor,
    ) -> Result<()> {
        require_shape("experts", x.shape(), routing.rows, x.cols())?;
        require_shape("experts", out.shape(), routing.rows, x.cols())?;
        require_experts("experts", &weights, routing.num_experts, x.shape())?;
        self.expert_scratch
            .with(|scratch| experts::experts(self.how(), scratch, x, routing, weights, out))
    }

    fn feed_forward(
        &self,
        x: &Tensor,
        weights: &ExpertWeights<'_, PackedMatrix>,
        _room: [&mut Tensor; 2],
        out: &mut Tensor,
    ) -> Result<()> {
        require_experts("feed_forward", weights, 1, x.shape())?;
        let &ExpertWeights { gate, up, down } = weights;
        let weights = ExpertWeights { gate, up, down };
        self.expert_scratch
            .with(|scratch| experts::feed_forward(self.how(), scratch, x, weights, out))
    }

    fn mixture(
        &self,
        x: &Tensor,
        weights: MixtureWeights<'_, PackedMatrix>,
        scratch: FeedForwardScratch<'_, Tensor>,
        out: &mut Tensor,
    ) -> Result<Routing> {
        let MixtureWeights { router, top_k, shared, routed } = weights;
        self.matmul(x, &[router], &mut [&mut *scratch.router_logits])?;
        let routing = self.route(scratch.router_logits, top_k)?;
        require_experts("mixture", &shared, 1, x.shape())?;
        require_experts("mixture", &routed, routing.num_experts, x.shape())?;
        self.expert_scratch.with(|scratch| {
            experts::mixture(self.how(), scratch, x, &routing, [shared, routed], out)
        })?;
        Ok(routing)
    }
}

/// An error unless `weights` are `count` experts for rows of `x`, which are as wide as their outputs.
fn require_experts(
    operation: &'static str,
    weights: &ExpertWeights<'_, PackedMatrix>,
    count: usize,
    (_, hidden): Shape,
) -> Result<()> {
    let ExpertWeights { gate, up, down } = weights;
    let intermediate = gate.rows();
    for (matrix, rows, cols) in
        [(gate, intermediate, hidden), (up, intermediate, hidden), (down, hidden, intermediate)]
    {
        require(
            [matrix.stack(), matrix.rows(), matrix.cols()] == [count, rows, cols],
            operation,
            || format!("{count} x [{rows}, {cols}]"),
            || format!("{} x [{}, {}]", matrix.stack(), matrix.rows(), matrix.cols()),
        )?;
    }
    Ok(())
}

fn require_page(operation: &'static str, pool: &KvPages, page: PageId) -> Result<()> {
    require(
        pool.has(page),
        operation,
        || {
            let [exact, sealed] =
                [PageForm::Exact, PageForm::Sealed].map(|form| pool.num_pages(form));
            format!("a page below {exact} (exact) or {sealed} (sealed)")
        },
        || format!("{page:?}"),
    )
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::{KvDtype, WeightFormat};

    use super::*;
    use crate::test_support::{best_cpu, Random};

    #[track_caller]
    fn refused<T>(result: Result<T>, text: &str) {
        let error = result.err().expect("an error").to_string();
        assert!(error.contains(text), "{error:?} does not contain {text:?}");
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let (cpu, random) = (best_cpu(), &mut Random(14));
        let out = &mut cpu.empty();
        let mut x = random.tensor(3, 20);
        let weights = random.matrix(WeightFormat::F32, 1, 8, 24);
        let stack = random.matrix(WeightFormat::F32, 2, 8, 20);
        refused(cpu.upload(&[0.0; 7], 3), "upload");
        refused(cpu.upload(&[0.0; 7], 0), "upload");
        refused(cpu.embed(&weights, &[7, 8], out), "expected ids below 8, got Some(8)");
        refused(cpu.embed(&stack, &[0], out), "a stack of 2");
        refused(cpu.select_rows(&x, &[3], out), "rows below 3");
        refused(cpu.add(&mut x, &random.tensor(3, 19)), "expected [3, 20], got [3, 19]");
        refused(cpu.rms_norm(&x, &vec![1.0; 19], 1e-5, out), "expected 19 columns, got 20");
        refused(cpu.matmul(&x, &[&weights], &mut [out]), "expected 24 columns, got (3, 20)");
        refused(cpu.matmul(&x, &[&stack], &mut [out]), "a stack of 2");
        refused(cpu.matmul(&x, &[&weights], &mut []), "expected 1 outputs, got 0");
        refused(cpu.swiglu(&mut x, &random.tensor(2, 20)), "swiglu");
        refused(cpu.rope(&mut x, &random.tensor(3, 8), 8), "heads of 8");
        refused(cpu.rope(&mut x, &random.tensor(3, 5), 5), "heads of 2");
        refused(cpu.rope(&mut x, &random.tensor(2, 4), 4), "expected [3, 4]");
        refused(cpu.head_norm(&mut x, 0, 1e-5), "heads of 0");
        refused(cpu.scale_rows(&mut x, &random.tensor(3, 2)), "expected [3, 1]");
        refused(cpu.route(&x, 0), "1 to 20 experts");
        refused(cpu.route(&x, 21), "1 to 20 experts");
        refused(Cpu::with_instruction_set(0, cpu.instruction_set()).map(drop), "one thread");
    }

    #[test]
    fn experts_that_do_not_fit_are_errors() {
        let (cpu, random) = (best_cpu(), &mut Random(15));
        let (x, mut out) = (random.tensor(3, 20), random.tensor(3, 20));
        let gate = &random.matrix(WeightFormat::F32, 2, 8, 20);
        let down = &random.matrix(WeightFormat::F32, 2, 20, 8);
        let mut run = |x: &Tensor, logits: Tensor, up, down| {
            let routing = cpu.route(&logits, 1).unwrap();
            cpu.experts(x, &routing, ExpertWeights { gate, up, down }, &mut out)
        };
        run(&x, random.tensor(3, 2), gate, down).unwrap();
        refused(run(&x, random.tensor(3, 3), gate, down), "expected 3 x [8, 20], got 2 x [8, 20]");
        refused(run(&x, random.tensor(2, 2), gate, down), "expected [2, 20], got [3, 20]");
        refused(run(&x, random.tensor(3, 2), gate, gate), "expected 2 x [20, 8]");
        refused(run(&x, random.tensor(3, 2), down, down), "experts");

        let (router, narrow) = [(2, 20), (2, 19)]
            .map(|(rows, cols)| random.matrix(WeightFormat::F32, 1, rows, cols))
            .into();
        let shared =
            [(8, 20), (20, 8)].map(|(rows, cols)| random.matrix(WeightFormat::F32, 1, rows, cols));
        let mut run = |router, top_k, up| {
            let shared = ExpertWeights { gate: &shared[0], up, down: &shared[1] };
            let routed = ExpertWeights { gate, up: gate, down };
            let weights = MixtureWeights { router, top_k, shared, routed };
            let [mut gate, mut up, mut router_logits] = [(); 3].map(|()| cpu.empty());
            let scratch = FeedForwardScratch {
                gate: &mut gate,
                up: &mut up,
                router_logits: &mut router_logits,
            };
            cpu.mixture(&x, weights, scratch, &mut out)
        };
        run(&router, 1, &shared[0]).unwrap();
        refused(run(&router, 3, &shared[0]), "1 to 2 experts");
        refused(run(&narrow, 1, &shared[0]), "expected 19 columns, got (3, 20)");
        refused(run(&router, 1, gate), "expected 1 x [8, 20], got 2 x [8, 20]");
        refused(run(&router, 1, &shared[1]), "expected 1 x [8, 20], got 1 x [20, 8]");

        let weights = ExpertWeights { gate: &shared[0], up: &shared[0], down: &shared[0] };
        let room = &mut [(); 2].map(|()| cpu.empty());
        let room = room.each_mut();
        refused(cpu.feed_forward(&x, &weights, room, &mut out), "expected 1 x [20, 8]");
    }

    #[test]
    fn pages_that_are_not_there_are_errors() {
        let (cpu, random) = (best_cpu(), &mut Random(16));
        let dtype = KvDtype::F32;
        let sizes =
            KvGeometry { num_layers: 2, num_kv_heads: 2, head_dim: 4, page_tokens: 4, dtype };
        let mut pool = cpu.kv_pool(sizes).unwrap();
        cpu.kv_reserve(&mut pool, PageForm::Exact, 3).unwrap();
        let x = random.tensor(1, 8);
        let mut write = |layer, page, offset, keys: &Tensor| {
            let page = PageId::exact(page);
            cpu.write_kv(&mut pool, layer, &[Slot { page, offset }], keys, &x)
        };
        write(1, 2, 3, &x).unwrap();
        refused(write(2, 0, 0, &x), "a layer below 2");
        refused(write(0, 3, 0, &x), "slots in 3 exact pages of 4 tokens");
        refused(write(0, 0, 4, &x), "slots in 3 exact pages of 4 tokens");
        refused(write(0, 0, 0, &random.tensor(1, 4)), "expected [1, 8]");

        let queries = random.tensor(3, 16);
        let attend =
            |layer, queries: &Tensor, spans: &[(std::ops::Range<usize>, &[u32], usize)]| {
                let spans: Vec<KvSpan> = spans
                    .iter()
                    .map(|(rows, pages, visible)| KvSpan {
                        rows: rows.clone(),
                        pages: pages.iter().map(|&page| PageId::exact(page)).collect(),
                        visible: *visible,
                    })
                    .collect();
                cpu.attend(&pool, layer, queries, &spans, 1.0, &mut cpu.empty())
            };
        attend(1, &queries, &[(1..3, &[2, 0], 7), (0..1, &[2], 1)]).unwrap();
        refused(attend(2, &queries, &[]), "a layer below 2");
        refused(attend(0, &random.tensor(3, 12), &[]), "heads of 8");
        refused(attend(0, &queries, &[(0..4, &[0, 1], 1)]), "within 3 rows");
        refused(attend(0, &queries, &[(0..2, &[0], 1), (1..3, &[0], 1)]), "apart");
        refused(attend(0, &queries, &[(0..2, &[0], 4)]), "1 to 4 visible tokens");
        refused(attend(0, &queries, &[(0..1, &[0], 0)]), "1 to 4 visible tokens");
        refused(attend(0, &queries, &[(0..2, &[0], usize::MAX)]), "visible tokens");
        refused(attend(0, &queries, &[(0..1, &[3], 1)]), "reserved pages, got PageId(3)");
    }

    #[test]
    fn pages_are_sealed_read_and_adopted() {
        let (cpu, random) = (best_cpu(), &mut Random(18));
        let dtype = KvDtype::Int8;
        let sizes =
            KvGeometry { num_layers: 2, num_kv_heads: 2, head_dim: 16, page_tokens: 32, dtype };
        let (exact, sealed) = (PageId::exact(0), PageId::sealed(2));
        let mut pool = cpu.kv_pool(sizes).unwrap();
        cpu.kv_reserve(&mut pool, PageForm::Exact, 1).unwrap();
        cpu.kv_reserve(&mut pool, PageForm::Sealed, 3).unwrap();
        let slots: Vec<Slot> = (0..32).map(|offset| Slot { page: exact, offset }).collect();
        for layer in 0..2 {
            let (keys, values) = (random.tensor(32, 32), random.tensor(32, 32));
            cpu.write_kv(&mut pool, layer, &slots, &keys, &values).unwrap();
            cpu.kv_seal(&mut pool, layer, &[(exact, sealed)]).unwrap();
        }
        let attend = |pool: &KvPages, page: PageId| {
            let (queries, mut out) = (Random(19).tensor(3, 64), cpu.empty());
            let span = KvSpan { rows: 0..1, pages: vec![page], visible: 32 };
            cpu.attend(pool, 1, &queries, &[span], 1.0, &mut out).map(|()| out.values().to_vec())
        };
        let expected = attend(&pool, sealed).unwrap();
        assert_ne!(expected, attend(&pool, exact).unwrap());

        let bytes = cpu.kv_read(&pool, sealed).unwrap();
        assert_eq!(bytes.len(), sizes.page_bytes(PageForm::Sealed));
        let copy = || {
            let mut copy = llama4rs_tensor::AlignedBytes::zeroed(bytes.len()).unwrap();
            copy.copy_from_slice(&bytes);
            Bytes::from(copy)
        };
        let (copy, short) = (copy(), llama4rs_tensor::AlignedBytes::zeroed(64).unwrap());
        cpu.kv_adopt(&mut pool, PageId::sealed(0), copy).unwrap();
        cpu.kv_discard(&mut pool, &[sealed, PageId::sealed(99)]);
        assert_eq!(attend(&pool, PageId::sealed(0)).unwrap(), expected);

        refused(cpu.kv_adopt(&mut pool, sealed, short.into()), "got 64");
        refused(cpu.kv_read(&pool, PageId::sealed(3)).map(drop), "below 1 (exact) or 3 (sealed)");
        refused(cpu.kv_seal(&mut pool, 2, &[]), "a layer below 2");
        refused(cpu.kv_seal(&mut pool, 0, &[(sealed, exact)]), "exact pages and a different");
        let twice = [(exact, sealed), (exact, sealed)];
        refused(cpu.kv_seal(&mut pool, 0, &twice), "a different sealed page for each");
        refused(cpu.kv_seal(&mut pool, 0, &[(PageId::exact(1), sealed)]), "kv_seal");
        let slot = Slot { page: sealed, offset: 0 };
        let x = random.tensor(1, 32);
        refused(cpu.write_kv(&mut pool, 0, &[slot], &x, &x), "1 exact pages of 32 tokens");
        let part = KvSpan { rows: 0..3, pages: vec![sealed], visible: 30 };
        let queries = random.tensor(3, 64);
        refused(
            cpu.attend(&pool, 0, &queries, &[part], 1.0, &mut cpu.empty()),
            "rows that see all 32 tokens up to a sealed page, got 30",
        );
    }

    #[test]
    fn outputs_keep_their_memory() {
        let (cpu, random) = (best_cpu(), &mut Random(17));
        let weights = random.matrix(WeightFormat::Bf16, 1, 30, 40);
        let mut out = cpu.empty();
        cpu.matmul(&random.tensor(9, 40), &[&weights], &mut [&mut out]).unwrap();
        let before = out.values().as_ptr();
        cpu.matmul(&random.tensor(2, 40), &[&weights], &mut [&mut out]).unwrap();
        assert_eq!((out.rows(), out.cols(), out.values().as_ptr()), (2, 30, before));
    }
}
