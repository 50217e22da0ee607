//! [`VisionBackend`] for [`Cpu`]: shape checks, then one kernel per call.

use llama4rs_tensor::check::{require_columns, require_shape, require_whole};
use llama4rs_tensor::{Error, PackedMatrix, Result, VisionBackend};

use crate::kernels::attend_all::{self, Products};
use crate::kernels::matmul::Form;
use crate::kernels::{gelu, layer_norm, rows};
use crate::{Cpu, Tensor};

impl VisionBackend for Cpu {
    fn layer_norm(
        &self,
        x: &Tensor,
        weight: &Vec<f32>,
        bias: &Vec<f32>,
        eps: f32,
        out: &mut Tensor,
    ) -> Result<()> {
        require_columns("layer_norm", x.cols(), weight.len())?;
        require_columns("layer_norm", x.cols(), bias.len())?;
        out.resize(x.rows(), x.cols())?;
        if !x.values().is_empty() {
            let (x, out) = (x.values(), out.values_mut());
            layer_norm::layer_norm(self.dispatch, &self.threads, x, weight, bias, eps, out);
        }
        Ok(())
    }

    fn add_bias(&self, x: &mut Tensor, bias: &Vec<f32>) -> Result<()> {
        require_columns("add_bias", x.cols(), bias.len())?;
        rows::add_bias(&self.threads, x, bias);
        Ok(())
    }

    fn gelu(&self, x: &mut Tensor, bias: Option<&Vec<f32>>) -> Result<()> {
        if let Some(bias) = bias {
            require_columns("gelu", x.cols(), bias.len())?;
        }
        gelu::gelu(self.dispatch, &self.threads, x, bias.map(Vec::as_slice));
        Ok(())
    }

    fn attend_all(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        tile_rows: usize,
        head_dim: usize,
        scale: f32,
        next: &PackedMatrix,
        out: &mut Tensor,
    ) -> Result<()> {
        require_shape("attend_all", k.shape(), q.rows(), q.cols())?;
        require_shape("attend_all", v.shape(), q.rows(), q.cols())?;
        require_whole("attend_all", "rows", q.rows(), tile_rows)?;
        require_whole("attend_all", "columns", q.cols(), head_dim)?;
        out.resize(q.rows(), q.cols())?;
        if !q.values().is_empty() {
            let products = match Form::of(next.format(), self.arithmetic) {
                Form::Codes { .. } | Form::Pairs => Products::Integers,
                Form::Floats => Products::Floats,
            };
            let (how, qkv) = ((self.dispatch, products), [q, k, v]);
            let scratch = &self.attend_all_scratch;
            attend_all::attend_all(
                how,
                &self.threads,
                scratch,
                qkv,
                tile_rows,
                head_dim,
                scale,
                out,
            );
        }
        Ok(())
    }

    fn reshape(&self, x: &mut Tensor, cols: usize) -> Result<()> {
        let len = x.values().len();
        require_whole("reshape", "values", len, cols)?;
        // As many values as before: they stay where they are.
        x.resize(len.checked_div(cols).unwrap_or(0), cols)
    }

    fn replace_rows(&self, x: &mut Tensor, rows: &[u32], with: &Tensor) -> Result<()> {
        require_shape("replace_rows", with.shape(), rows.len(), x.cols())?;
        if let Some(row) = rows.iter().find(|&&row| row as usize >= x.rows()) {
            return Err(Error::shape("replace_rows", format!("rows below {}", x.rows()), row));
        }
        rows::replace_rows(&self.threads, x, rows, with);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use llama4rs_tensor::{Backend, WeightFormat};

    use super::*;
    use crate::test_support::{all_cpus, assert_bits, best_cpu, Random};

    fn refused<T: std::fmt::Debug>(operation: &str, result: Result<T>) {
        let error = result.expect_err(operation);
        let fits = matches!(&error, Error::Shape { operation: name, .. } if *name == operation);
        assert!(fits, "{operation}: {error}");
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let cpu = best_cpu();
        let random = &mut Random(1);
        let (mut x, mut out) = (random.tensor(6, 8), cpu.empty());
        let (eight, seven) = (vec![1.0; 8], vec![1.0; 7]);
        refused("layer_norm", cpu.layer_norm(&x, &seven, &eight, 1e-5, &mut out));
        refused("layer_norm", cpu.layer_norm(&x, &eight, &seven, 1e-5, &mut out));
        refused("add_bias", cpu.add_bias(&mut x, &seven));
        refused("gelu", cpu.gelu(&mut x, Some(&seven)));
        let (same, next) = (x.clone(), random.matrix(WeightFormat::F32, 1, 8, 8));
        for (k, v, tile_rows, head_dim) in [
            (&random.tensor(5, 8), &same, 3, 4),
            (&same, &random.tensor(6, 4), 3, 4),
            (&same, &same, 4, 4),
            (&same, &same, 0, 4),
            (&same, &same, 3, 3),
            (&same, &same, 3, 0),
        ] {
            let result = cpu.attend_all(&same, k, v, tile_rows, head_dim, 1.0, &next, &mut out);
            refused("attend_all", result);
        }
        refused("reshape", cpu.reshape(&mut x, 5));
        refused("reshape", cpu.reshape(&mut x, 0));
        refused("replace_rows", cpu.replace_rows(&mut x, &[0, 6], &random.tensor(2, 8)));
        refused("replace_rows", cpu.replace_rows(&mut x, &[0, 1], &random.tensor(3, 8)));
        refused("replace_rows", cpu.replace_rows(&mut x, &[0, 1], &random.tensor(2, 7)));
        assert_eq!(x, same, "a refused operation changes nothing");
    }

    #[test]
    fn nothing_is_a_fitting_shape() {
        let cpu = best_cpu();
        let (mut x, mut out) = (cpu.empty(), cpu.empty());
        let (none, next) = (vec![], Random(1).matrix(WeightFormat::F32, 1, 1, 1));
        cpu.layer_norm(&x, &none, &none, 1e-5, &mut out).unwrap();
        cpu.add_bias(&mut x, &none).unwrap();
        cpu.gelu(&mut x, None).unwrap();
        cpu.attend_all(&x, &x, &x, 3, 4, 1.0, &next, &mut out).unwrap();
        cpu.replace_rows(&mut x, &[], &out).unwrap();
        cpu.reshape(&mut x, 4).unwrap();
        assert_eq!(cpu.shape(&x), (0, 4));
    }

    #[test]
    fn reshape_keeps_the_values() {
        let cpu = best_cpu();
        let mut x = Random(2).tensor(6, 8);
        let (values, address) = (x.values().to_vec(), x.values().as_ptr());
        cpu.reshape(&mut x, 16).unwrap();
        assert_eq!(cpu.shape(&x), (3, 16));
        assert_bits("reshape", &values, x.values());
        assert_eq!(address, x.values().as_ptr(), "no copy");
    }

    #[test]
    fn rows_take_bias_and_replacements_on_every_cpu() {
        let random = &mut Random(3);
        let (plain, bias) = (random.tensor(300, 700), random.values(700));
        let ascending: Vec<u32> = (0..150).map(|i| i * 2 + 1).collect();
        let repeated: Vec<u32> = (0..150).map(|i| i * 7 % 11).collect();
        let with = random.tensor(150, 700);
        for cpu in all_cpus() {
            let mut x = plain.clone();
            cpu.add_bias(&mut x, &bias).unwrap();
            let sums = plain.values().iter().zip(bias.iter().cycle());
            let expected: Vec<f32> = sums.map(|(x, b)| x + b).collect();
            assert_bits(&cpu.description(), &expected, x.values());
            for rows in [&ascending, &repeated] {
                let (mut x, mut expected) = (plain.clone(), plain.values().to_vec());
                cpu.replace_rows(&mut x, rows, &with).unwrap();
                for (i, &row) in rows.iter().enumerate() {
                    expected[row as usize * 700..][..700].copy_from_slice(with.row(i));
                }
                assert_bits(&cpu.description(), &expected, x.values());
            }
        }
    }

    #[test]
    fn operations_shape_their_output() {
        let random = &mut Random(4);
        let cpu = best_cpu();
        let (x, ones) = (random.tensor(6, 8), vec![1.0; 8]);
        let next = random.matrix(WeightFormat::F32, 1, 8, 8);
        let mut out = random.tensor(2, 3);
        cpu.layer_norm(&x, &ones, &ones, 1e-5, &mut out).unwrap();
        assert_eq!(cpu.shape(&out), (6, 8));
        let mut out = random.tensor(2, 3);
        cpu.attend_all(&x, &x, &x, 3, 4, 1.0, &next, &mut out).unwrap();
        assert_eq!(cpu.shape(&out), (6, 8));
        let mut x = x;
        cpu.gelu(&mut x, None).unwrap();
        assert_eq!(cpu.shape(&x), (6, 8));
    }
}
