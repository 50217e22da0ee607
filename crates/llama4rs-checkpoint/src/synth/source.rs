//! A synthetic model that is nowhere on disk: each tensor is made when it is asked for.

use std::collections::HashMap;
use std::path::Path;

use llama4rs_tensor::{AlignedBytes, PackedMatrix, WeightFormat};
use rayon::prelude::*;
use rayon::ThreadPool;

use super::random::RandomTensor;
use super::{deviation, SynthShape};
use crate::policy::choose_formats;
use crate::published::{canonical, stored_bytes, thread_pool, unknown};
use crate::tensor_specs::{tensor_specs, TensorShape, TensorSpec};
use crate::{Config, FormatRule, Result, TensorReport, WeightSource};

/// The bytes that [`synth`](super::synth) would write, without the directory: a device that keeps
/// weights of its own is measured with models larger than the disk.
pub struct SyntheticSource {
    config: Config,
    weights: WeightFormat,
    specs: Vec<TensorSpec>,
    formats: Vec<Option<WeightFormat>>,
    by_name: HashMap<String, usize>,
    warnings: [String; 1],
    seed: u64,
    pool: ThreadPool,
}

impl SyntheticSource {
    /// A model of a shape; the same seed gives the same bytes, whatever the threads.
    pub fn new(
        shape: SynthShape,
        weights: WeightFormat,
        rules: &[FormatRule],
        seed: u64,
        threads: Option<usize>,
    ) -> Result<Self> {
        let config = Config::from_json(&shape.config_json().to_string(), Path::new("config.json"))?;
        let specs = tensor_specs(&config);
        let formats = choose_formats(&specs, weights, rules)?;
        let by_name = specs.iter().map(|spec| spec.name.clone()).zip(0..).collect();
        let pool = thread_pool(threads)?;
        let warnings = [format!(
            "random weights for measurements ({shape}, seed {seed}): its texts are noise"
        )];
        Ok(Self { config, weights, specs, formats, by_name, warnings, seed, pool })
    }

    fn find(&self, what: &'static str, name: &str) -> Result<(&TensorSpec, Option<WeightFormat>)> {
        let name = canonical(name, &self.config);
        let number = *self.by_name.get(name).ok_or_else(|| unknown(what, name))?;
        Ok((&self.specs[number], self.formats[number]))
    }

    fn random(&self, spec: &TensorSpec) -> RandomTensor {
        RandomTensor::new(self.seed, &spec.name, deviation(spec))
    }
}

impl WeightSource for SyntheticSource {
    fn config(&self) -> &Config {
        &self.config
    }

    fn matrix(&self, name: &str) -> Result<PackedMatrix> {
        let (spec, format) = self.find("matrix", name)?;
        let (TensorShape::Matrix { stack, rows, cols }, Some(format)) = (&spec.shape, format)
        else {
            return Err(unknown("matrix", name));
        };
        let random = self.random(spec);
        let mut bytes = AlignedBytes::zeroed(stored_bytes(&spec.shape, Some(format)) as usize)?;
        self.pool.install(|| {
            let panels = bytes.par_chunks_exact_mut(format.panel_bytes(*cols)).enumerate();
            panels.for_each(|(number, panel)| random.panel(format, *cols, number, panel));
        });
        Ok(PackedMatrix::new(format, *stack, *rows, *cols, bytes.into())?)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        match self.find("vector", name)? {
            (spec, None) => Ok(self.random(spec).around_one(spec.shape.num_values() as usize)),
            _ => Err(unknown("vector", name)),
        }
    }

    fn report(&self) -> Vec<TensorReport> {
        let one = |(spec, format): (&TensorSpec, &Option<WeightFormat>)| TensorReport {
            name: spec.name.clone(),
            format: *format,
            shape: spec.shape.dims(),
            bytes: stored_bytes(&spec.shape, *format),
            relative_error: Some(0.0),
        };
        self.specs.iter().zip(&self.formats).map(one).collect()
    }

    fn weights(&self) -> WeightFormat {
        self.weights
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
