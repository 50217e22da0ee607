//! One prompt in one call, token by token, in any split, alone or in company:
//! the same bits.

mod random_model;

use llama4rs_cpu::Cpu;
use llama4rs_kv_cache::{KvCache, SequenceKv};
use llama4rs_model::{Llama4, Step, Workspace};
use llama4rs_tensor::{Backend, KvDtype, WeightFormat};
use proptest::prelude::*;
use random_model::RandomModel;
use serde_json::{json, Value};

fn config(chunk: Value, qk_norm: bool, top_k: usize, moe_step: usize) -> Value {
    json!({
        "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text",
        "vocab_size": 50, "hidden_size": 48, "intermediate_size": 40, "intermediate_size_mlp": 56,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "num_local_experts": 5, "num_experts_per_tok": top_k, "interleave_moe_layer_step": moe_step,
        "use_qk_norm": qk_norm, "attention_chunk_size": chunk, "floor_scale": 5, "attn_scale": 0.1,
        "attn_temperature_tuning": true, "rope_theta": 10000.0, "max_position_embeddings": 4096,
    })
}

/// A model with its cache and buffers.
struct Bench {
    cpu: Cpu,
    model: Llama4<Cpu>,
    cache: KvCache<Cpu>,
    workspace: Workspace<Cpu>,
}

impl Bench {
    fn new(config: Value, format: WeightFormat, dtype: KvDtype, threads: usize) -> Self {
        let cpu = Cpu::new(Some(threads)).unwrap();
        let model = Llama4::load(&cpu, &RandomModel::new(config, format)).unwrap();
        let cache = KvCache::new(&cpu, model.kv_layout(dtype), 0).unwrap();
        let workspace = Workspace::new(&cpu);
        Self { cpu, model, cache, workspace }
    }

    /// Runs one step with the given tokens of each sequence; logits of all rows.
    fn step(&mut self, parts: &mut [(&mut SequenceKv, &[u32])]) -> Vec<f32> {
        let mut step = Step::default();
        for (sequence, ids) in parts.iter_mut() {
            let row = step.ids.len();
            self.cache.extend(&self.cpu, sequence, ids.len(), row, &mut step.kv).unwrap();
            step.positions.extend(sequence.len()..sequence.len() + ids.len());
            step.ids.extend_from_slice(ids);
        }
        step.logit_rows = (0..step.ids.len() as u32).collect();
        let Self { cpu, model, cache, workspace } = self;
        model.forward(cpu, &step, cache, workspace, &mut ()).unwrap();
        for (sequence, ids) in parts {
            self.cache.commit(sequence, ids.len());
        }
        self.cpu.to_host(self.workspace.logits()).unwrap()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn any_split_gives_the_same_bits(
        ids in prop::collection::vec(0u32..50, 1..300),
        cuts in prop::collection::vec(1usize..90, 300),
        company in prop::collection::vec(0u32..50, 1..60),
        chunk in prop::option::of(1usize..40),
        qk_norm in any::<bool>(),
        top_k in 1usize..3,
        moe_step in 1usize..3,
        dtype in prop::sample::select(KvDtype::ALL.to_vec()),
        threads in 1usize..4,
    ) {
        let format = match dtype {
            KvDtype::F32 => WeightFormat::F32,
            _ => WeightFormat::Bf16,
        };
        let config = config(json!(chunk), qk_norm, top_k, moe_step);

        let mut whole = Bench::new(config.clone(), format, dtype, 1);
        let mut sequence = whole.cache.sequence();
        let expected = whole.step(&mut [(&mut sequence, &ids)]);
        prop_assert!(expected.iter().all(|logit| logit.is_finite()));

        let mut split = Bench::new(config, format, dtype, threads);
        let (mut sequence, mut other) = (split.cache.sequence(), split.cache.sequence());
        let mut logits = Vec::new();
        let mut rest = &ids[..];
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            if now.is_empty() {
                break;
            }
            let stranger = &company[..1 + cut % company.len()];
            let all = split.step(&mut [(&mut other, stranger), (&mut sequence, now)]);
            logits.extend_from_slice(&all[stranger.len() * 50..]);
        }
        prop_assert_eq!(bits(&logits), bits(&expected)[..logits.len()].to_vec());

        split.cache.release(sequence);
        split.cache.release(other);
        prop_assert_eq!(split.cache.bytes_in_use(), 0);
    }
}
