//! Work that waits for its step's end does what it would do at once.

mod support;

use llama4rs_cuda::{Cuda, Tensor};
use llama4rs_tensor::{Backend, Error, Result, WeightFormat};
use support::{assert_bits, cuda, nvrtc_folders, Random};

const COLS: usize = 64;

/// A device of its own for each test: steps of one device come one after the other.
fn device() -> Option<Cuda> {
    cuda()?;
    Some(Cuda::open(0, &nvrtc_folders()).unwrap().with_graphs(true))
}

/// A few operations on rows whose tokens and values differ from step to step.
struct Model {
    table: llama4rs_cuda::Matrix,
    weights: llama4rs_cuda::Matrix,
    x: Tensor,
    out: Tensor,
}

impl Model {
    fn new(cuda: &Cuda) -> Self {
        let random = &mut Random(1);
        let mut matrix =
            |rows| cuda.matrix(random.weights(WeightFormat::F32, 1, rows, COLS).packed()).unwrap();
        let (table, weights) = (matrix(50), matrix(24));
        Self { table, weights, x: cuda.empty(), out: cuda.empty() }
    }

    fn run(&mut self, cuda: &Cuda, ids: &[u32], values: &[f32]) -> Result<()> {
        cuda.embed(&self.table, ids, &mut self.x)?;
        cuda.add(&mut self.x, &cuda.upload(values, COLS)?)?;
        cuda.matmul(&self.x, &[&self.weights], &mut [&mut self.out])
    }

    /// What comes out of the operations one by one.
    fn expected(cuda: &Cuda, ids: &[u32], values: &[f32]) -> Vec<f32> {
        let mut plain = Self::new(cuda);
        plain.run(cuda, ids, values).unwrap();
        cuda.to_host(&plain.out).unwrap()
    }
}

#[test]
fn every_step_gives_the_bits_of_its_operations() {
    let Some(cuda) = device() else { return };
    let (random, mut model) = (&mut Random(2), Model::new(&cuda));
    // Numbers of rows that come back after others, and grow.
    for rows in [1, 1, 1, 3, 1, 3, 3, 40, 3, 40, 40, 1, 1] {
        let ids: Vec<u32> = (0..rows).map(|_| random.below(50) as u32).collect();
        let values = random.values(rows * COLS);
        cuda.step(rows, || model.run(&cuda, &ids, &values)).unwrap();
        let expected = Model::expected(&cuda, &ids, &values);
        assert_bits(&format!("{rows} rows"), &expected, &cuda.to_host(&model.out).unwrap());
    }
}

#[test]
fn a_step_that_fails_leaves_nothing_behind() {
    let Some(cuda) = device() else { return };
    let (random, mut model) = (&mut Random(3), Model::new(&cuda));
    for _ in 0..3 {
        let (ids, values) = ([3, 4], random.values(2 * COLS));
        let refused = cuda.step(2, || {
            model.run(&cuda, &ids, &values)?;
            Err::<(), Error>(Error::shape("test", "another", "one"))
        });
        assert!(refused.is_err());
        cuda.step(2, || model.run(&cuda, &ids, &values)).unwrap();
        let expected = Model::expected(&cuda, &ids, &values);
        assert_bits("after an error", &expected, &cuda.to_host(&model.out).unwrap());
    }
}

#[test]
fn what_is_read_on_the_way_is_there() {
    let Some(cuda) = device() else { return };
    let (random, mut model) = (&mut Random(4), Model::new(&cuda));
    for round in 0..4 {
        let (ids, values) = ([9], random.values(COLS));
        let (seen, routed) = cuda
            .step(1, || {
                model.run(&cuda, &ids, &values)?;
                let seen = cuda.to_host(&model.out)?;
                let routing = cuda.route(&model.out, 2)?;
                // A step within the step is a part of it.
                cuda.step(1, || model.run(&cuda, &ids, &values))?;
                Ok::<_, Error>((seen, routing))
            })
            .unwrap();
        let expected = Model::expected(&cuda, &ids, &values);
        assert_bits("on the way", &expected, &seen);
        assert_bits("at the end", &expected, &cuda.to_host(&model.out).unwrap());
        let mut best: Vec<usize> = (0..24).collect();
        best.sort_by(|&a, &b| expected[b].total_cmp(&expected[a]));
        let experts = cuda.routed_experts(&routed).unwrap();
        assert_eq!(experts, [best[0] as u32, best[1] as u32]);
        cuda.step(1, || model.run(&cuda, &ids, &values)).unwrap();
        // The first step found no room for results and took memory that lasts.
        let gone = cuda.routed_experts(&routed).is_err();
        assert_eq!(gone, round > 0, "the next step has begun");
    }
}
