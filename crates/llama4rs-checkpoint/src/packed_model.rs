//! Placeholder.
use crate::{Config, Result, TensorReport, WeightSource};
use llama4rs_tensor::{PackedMatrix, WeightFormat};
use std::path::Path;
pub(crate) struct PackedModel;
impl PackedModel {
    pub fn open(_: &Path) -> Result<Self> {
        todo!()
    }
}
impl WeightSource for PackedModel {
    fn config(&self) -> &Config {
        todo!()
    }
    fn matrix(&self, _: &str) -> Result<PackedMatrix> {
        todo!()
    }
    fn vector(&self, _: &str) -> Result<Vec<f32>> {
        todo!()
    }
    fn report(&self) -> Vec<TensorReport> {
        todo!()
    }
    fn weights(&self) -> WeightFormat {
        todo!()
    }
    fn warnings(&self) -> &[String] {
        todo!()
    }
}
