//! [`VisionBackend`] for [`Cuda`]: shape checks, then the launches of one operation.

use llama4rs_tensor::check::{
    require, require_below, require_columns, require_shape, require_whole,
};
use llama4rs_tensor::{Result, VisionBackend};

use crate::tensor::{Matrix, Tensor, Vector};
use crate::Cuda;

/// The widest head that the kernels have registers for.
const MOST_HEAD_DIM: usize = 256;

impl VisionBackend for Cuda {
    fn layer_norm(
        &self,
        x: &Tensor,
        weight: &Vector,
        bias: &Vector,
        eps: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        require_columns("layer_norm", x.cols(), weight.0.len())?;
        require_columns("layer_norm", x.cols(), bias.0.len())?;
        self.run_layer_norm(&*self.plain(x)?, weight, bias, eps, out)
    }

    fn add_bias(&self, x: &mut Tensor, bias: &Vector) -> Result<()> {
        require_columns("add_bias", x.cols(), bias.0.len())?;
        self.make_plain(x)?;
        self.run_add_bias(x, bias)
    }

    fn gelu(&self, x: &mut Tensor, bias: Option<&Vector>) -> Result<()> {
        if let Some(bias) = bias {
            self.add_bias(x, bias)?;
        }
        self.make_plain(x)?;
        self.run_gelu(x)
    }

    fn attend_all(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        tile_rows: usize,
        head_dim: usize,
        scale: f32,
        _next: &Matrix,
        out: &mut Tensor,
    ) -> Result<()> {
        require_shape("attend_all", k.shape(), q.rows(), q.cols())?;
        require_shape("attend_all", v.shape(), q.rows(), q.cols())?;
        require_whole("attend_all", "rows", q.rows(), tile_rows)?;
        require_whole("attend_all", "columns", q.cols(), head_dim)?;
        let fits = head_dim <= MOST_HEAD_DIM;
        let expected = || format!("heads of at most {MOST_HEAD_DIM}");
        require(fits, "attend_all", expected, || head_dim.to_string())?;
        if q.len() == 0 {
            return out.resize(&self.gpu, q.rows(), q.cols());
        }
        let [q, k, v] = [self.plain(q)?, self.plain(k)?, self.plain(v)?];
        self.run_attend_all([&q, &k, &v], tile_rows, head_dim, scale, out)
    }

    fn reshape(&self, x: &mut Tensor, cols: usize) -> Result<()> {
        require_whole("reshape", "values", x.len(), cols)?;
        let rows = x.len().checked_div(cols).unwrap_or(0);
        self.make_plain(x)?;
        x.reshape(rows, cols);
        Ok(())
    }

    fn replace_rows(&self, x: &mut Tensor, rows: &[u32], with: &Tensor) -> Result<()> {
        require_shape("replace_rows", with.shape(), rows.len(), x.cols())?;
        require_below("replace_rows", "rows", rows, x.rows())?;
        self.make_plain(x)?;
        self.run_replace_rows(x, rows, &*self.plain(with)?)
    }
}
