//! Operations on rows: `rows.cu`, `norm.cu`, `embed.cu`.

use llama4rs_tensor::Result;

use crate::arguments::{arguments, Arguments, List};
use crate::cuda::{Cuda, Launch};
use crate::kernels::{KernelSource, EMBED, NORM, ROWS};
use crate::tensor::{Matrix, Tensor, Vector};

const THREADS: u32 = 256;
/// Heads of a block of `head_norm`.
const HEADS: usize = 8;

impl Cuda {
    /// One block for each of `blocks` rows or parts.
    fn launch_rows(
        &self,
        source: &'static KernelSource,
        kernel: &'static str,
        blocks: usize,
        arguments: &impl Arguments,
    ) -> Result<()> {
        let blocks = [blocks, 1, 1];
        let launch = Launch { source, kernel, constants: &[], shared: 0, blocks, threads: THREADS };
        self.launch(launch, arguments)
    }

    /// `x op= y` for all values; `y` is left out where the kernel takes none.
    fn launch_values(
        &self,
        kernel: &'static str,
        x: &mut Tensor,
        y: Option<&Tensor>,
    ) -> Result<()> {
        let mut all = List::new();
        all.push(x.address_mut())?;
        if let Some(y) = y {
            all.push(y.address())?;
        }
        all.push(x.len() as u64)?;
        self.launch_rows(&ROWS, kernel, x.len().div_ceil(THREADS as usize), &all)
    }

    pub(crate) fn run_add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        self.launch_values("add", x, Some(y))
    }

    pub(crate) fn run_swiglu(&self, gate: &mut Tensor, up: &Tensor) -> Result<()> {
        self.launch_values("swiglu", gate, Some(up))
    }

    pub(crate) fn run_gelu(&self, x: &mut Tensor) -> Result<()> {
        self.launch_values("gelu", x, None)
    }

    pub(crate) fn run_scale_rows(&self, x: &mut Tensor, scales: &Tensor) -> Result<()> {
        let arguments = arguments![x.address_mut(), scales.address(), x.cols()];
        self.launch_rows(&ROWS, "scale_rows", x.rows(), &arguments)
    }

    pub(crate) fn run_add_bias(&self, x: &mut Tensor, bias: &Vector) -> Result<()> {
        let arguments = arguments![x.address_mut(), &bias.0, x.cols()];
        self.launch_rows(&ROWS, "add_bias", x.rows(), &arguments)
    }

    pub(crate) fn run_select_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()> {
        out.resize(&self.gpu, rows.len(), x.cols())?;
        let list = self.list("logit rows", rows)?;
        let arguments = arguments![out.address(), x.address(), &*list, x.cols()];
        self.launch_rows(&ROWS, "select_rows", rows.len(), &arguments)
    }

    /// Of a row that comes several times the last replacement counts.
    pub(crate) fn run_replace_rows(
        &self,
        x: &mut Tensor,
        rows: &[u32],
        with: &Tensor,
    ) -> Result<()> {
        let mut moves: Vec<(u32, u32)> = rows.iter().copied().zip(0..).collect();
        moves.sort_unstable_by_key(|&(row, from)| (row, std::cmp::Reverse(from)));
        moves.dedup_by_key(|(row, _)| *row);
        let list: Vec<u32> = moves.iter().flat_map(|&(row, from)| [row, from]).collect();
        let list = self.list("image rows", &list)?;
        let arguments = arguments![x.address_mut(), with.address(), &*list, x.cols()];
        self.launch_rows(&ROWS, "replace_rows", moves.len(), &arguments)
    }

    pub(crate) fn run_rope(
        &self,
        x: &mut Tensor,
        rotations: &Tensor,
        head_dim: usize,
    ) -> Result<()> {
        let arguments = arguments![x.address_mut(), rotations.address(), x.cols(), head_dim];
        self.launch_rows(&ROWS, "rope", x.rows(), &arguments)
    }

    pub(crate) fn run_rms_norm(
        &self,
        x: &Tensor,
        weight: &Vector,
        eps: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        out.resize(&self.gpu, x.rows(), x.cols())?;
        let arguments = arguments![out.address(), x.address(), &weight.0, x.cols(), eps];
        self.launch_rows(&NORM, "rms_norm", x.rows(), &arguments)
    }

    pub(crate) fn run_layer_norm(
        &self,
        x: &Tensor,
        weight: &Vector,
        bias: &Vector,
        eps: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        out.resize(&self.gpu, x.rows(), x.cols())?;
        let arguments = arguments![out.address(), x.address(), &weight.0, &bias.0, x.cols(), eps];
        self.launch_rows(&NORM, "layer_norm", x.rows(), &arguments)
    }

    pub(crate) fn run_head_norm(&self, x: &mut Tensor, head_dim: usize, eps: f32) -> Result<()> {
        let heads = x.len() / head_dim;
        let arguments = arguments![x.address_mut(), heads as u64, head_dim, eps];
        self.launch_rows(&NORM, "head_norm", heads.div_ceil(HEADS), &arguments)
    }

    pub(crate) fn run_embed(&self, table: &Matrix, ids: &[u32], out: &mut Tensor) -> Result<()> {
        out.resize(&self.gpu, ids.len(), table.cols)?;
        let list = self.list("token ids", ids)?;
        if let Some(fragments) = &table.fragments {
            return self.run_embed_fragments(table, fragments, &list, ids.len(), out);
        }
        let arguments = arguments![
            out.address(),
            &table.panels,
            &*list,
            table.cols,
            table.panel_bytes(),
            table.code_bytes()
        ];
        let launch = Launch {
            source: &EMBED,
            kernel: "embed",
            constants: &table.constants(),
            shared: 0,
            blocks: [ids.len(), 1, 1],
            threads: THREADS,
        };
        self.launch(launch, &arguments)
    }
}
