//! Speed of attention next to the limits of the machine.
//!
//! ```text
//! cargo run --release -p llama4rs-cpu --example attention_speed [threads [set [arithmetic]]]
//! ```
//!
//! One layer with Scout's sizes: 40 query heads, 8 key/value heads of 128. For
//! each element type of keys and values: one row at several depths, by the bytes
//! of keys and values that it reads, and a prompt's 512 rows, by operations. `-` is the best set.

use std::time::Instant;

use llama4rs_cpu::{
    integer_dot_peak, multiply_add_peak, read_bandwidth, Cpu, InstructionSet, KvPages,
};
use llama4rs_tensor::{AlignedBytes, Backend, KvDtype, KvGeometry, KvSpan, PageForm, PageId, Slot};

const PAGE: usize = 64;
const HEADS: usize = 40;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
/// So many that pages are as large as those of a model: the system gives them large pages.
const LAYERS: usize = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads: usize = arguments.first().map_or(2, |n| n.parse().expect("a number of threads"));
    for set in InstructionSet::available() {
        let skip = match arguments.get(1) {
            Some(wanted) if wanted != "-" => *wanted != set.to_string(),
            _ => set != InstructionSet::detect(),
        };
        if skip {
            continue;
        }
        let arithmetic = arguments.get(2).map_or("fast", String::as_str);
        let cpu = Cpu::with_instruction_set(threads, set)
            .expect("an available set")
            .with_arithmetic(arithmetic.parse().expect("exact or fast"));
        println!("{}", cpu.description());
        for depth in [1 << 10, 8 << 10, 32 << 10] {
            for dtype in KvDtype::ALL {
                report(&cpu, dtype, 1, depth);
            }
        }
        for dtype in KvDtype::ALL {
            report(&cpu, dtype, 512, 8 << 10);
        }
    }
}

/// Keys and values of `tokens` tokens: the pool, and its pages as they are stored.
fn filled(cpu: &Cpu, dtype: KvDtype, tokens: usize) -> (KvPages, Vec<PageId>) {
    let geometry = KvGeometry {
        num_layers: LAYERS,
        num_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        page_tokens: PAGE,
        dtype,
    };
    let mut pool = cpu.kv_pool(geometry).expect("a pool");
    let count = tokens / PAGE;
    cpu.kv_reserve(&mut pool, PageForm::Exact, count).expect("pages");
    cpu.kv_reserve(&mut pool, PageForm::Sealed, count).expect("pages");
    let cols = KV_HEADS * HEAD_DIM;
    let mut state = 1u64;
    let mut pages = Vec::new();
    for page in (0..count as u32).map(PageId::exact) {
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut rows = || {
            let values: Vec<f32> = (0..PAGE * cols).map(|_| random()).collect();
            cpu.upload(&values, cols).expect("rows")
        };
        let (keys, values) = (rows(), rows());
        let slots: Vec<Slot> = (0..PAGE as u32).map(|offset| Slot { page, offset }).collect();
        cpu.write_kv(&mut pool, 0, &slots, &keys, &values).expect("slots");
        let stored = match dtype.is_quantised() && page.index() > 0 {
            true => PageId::sealed(page.index() as u32),
            false => page,
        };
        if stored != page {
            cpu.kv_seal(&mut pool, 0, &[(page, stored)]).expect("pages");
        }
        pages.push(stored);
    }
    (pool, pages)
}

/// Seconds that the calling thread has spent on a processor: what counts on a busy
/// machine with one thread. Zero where the system does not say.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}

/// The last `rows` of `tokens` tokens.
fn report(cpu: &Cpu, dtype: KvDtype, rows: usize, tokens: usize) {
    let (pool, pages) = filled(cpu, dtype, tokens);
    let cols = HEADS * HEAD_DIM;
    let queries: Vec<f32> = (0..rows * cols).map(|i| (i % 13) as f32 / 6.0 - 1.0).collect();
    let queries = cpu.upload(&queries, cols).expect("rows");
    let spans: Vec<KvSpan> = (0..rows)
        .step_by(PAGE)
        .map(|row| {
            let visible = tokens - rows + row + 1;
            let own = (visible - 1) / PAGE;
            let mut pages = pages[..=own].to_vec();
            pages[own] = PageId::exact(own as u32);
            KvSpan { rows: row..rows.min(row + PAGE), pages, visible }
        })
        .collect();
    let mut out = cpu.empty();
    let mut attend =
        || cpu.attend(&pool, 0, &queries, &spans, 0.1, &mut out).expect("shapes that fit");
    attend();
    let busy = cpu_seconds();
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 5 || start.elapsed().as_secs_f64() < 0.4 {
        let start = Instant::now();
        attend();
        times.push(start.elapsed().as_secs_f64());
    }
    let busy = (cpu_seconds() - busy) / times.len() as f64;
    times.sort_by(f64::total_cmp);

    let threads = cpu.num_threads();
    let best = |rates: Vec<f64>| rates.into_iter().fold(0.0, f64::max);
    let seen: usize = spans.iter().map(|s| s.rows.len() * s.visible + s.rows.len() / 2).sum();
    let operations = (seen * HEADS * HEAD_DIM * 4) as f64;
    let form = if dtype.is_quantised() { PageForm::Sealed } else { PageForm::Exact };
    let bytes = (pool.geometry().head_bytes(form) * KV_HEADS * pages.len()) as f64;
    let mut memory = AlignedBytes::zeroed(threads << 26).expect("memory");
    memory.fill(1);
    let set = cpu.instruction_set();
    let reads = best(read_bandwidth(&memory, threads, 5).expect("memory"));
    let floats = best(multiply_add_peak(set, threads, 2).expect("threads"));
    let integers = best(integer_dot_peak(set, threads, 2).expect("threads"));
    let (fastest, middle) = (times[0], times[times.len() / 2]);
    println!(
        "  {:4} {rows:3} rows of {tokens:6}: {:8.2} ms (best {:8.2}, on the processor {:8.2})  {:5.1} GB/s  {:6.1} GOP/s   \
         limits {:.1} GB/s, {:.0} float, {:.0} integer GOP/s",
        dtype.name(),
        middle * 1e3,
        fastest * 1e3,
        busy * 1e3,
        bytes / middle / 1e9,
        operations / middle / 1e9,
        reads / 1e9,
        floats / 1e9,
        integers / 1e9,
    );
}
