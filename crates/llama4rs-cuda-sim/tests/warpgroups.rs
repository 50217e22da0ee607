//! Products of warpgroups: every layout of their operand in shared memory beside plain sums, and planted bugs.

mod support;

use half::bf16;
use support::*;

const PTX: &str = include_str!("kernels/warpgroups.ptx");
const THREADS: usize = 128;

fn start_hopper() {
    std::env::set_var("LLAMA4RS_SIM_CAPABILITY", "9.0");
    start();
}

/// Small numbers that bf16 holds, all different.
fn value(i: usize) -> f32 {
    ((i * 37) % 251) as f32 / 16.0 - 7.0
}

/// Where unit `half` of a column lies without swizzle, or in swizzled rows of `row` bytes: the patterns of
/// the figures of the PTX ISA, unit by unit.
fn place(row: usize, column: usize, half: usize, first: usize) -> usize {
    let (group, line) = (column / 8, column % 8);
    if row == 16 {
        return first + group * 256 + half * 128 + line * 16;
    }
    let unit = first / 16 + half;
    let swizzled = match row {
        128 => unit ^ line,
        64 => unit ^ (line / 2),
        _ => unit ^ (line / 4),
    };
    group * 8 * row + line * row + swizzled * 16
}

#[test]
fn every_layout() {
    start_hopper();
    let kernel = kernel(load(PTX), "products");
    for (row, swizzle) in [(16, 0u64), (128, 1), (64, 2), (32, 3)] {
        for first in (0..row.max(17)).step_by(32) {
            for add in [0u64, 1] {
                let (a, b): (Vec<f32>, Vec<f32>) = (
                    (0..64 * 16).map(value).collect(),
                    (0..16 * 16).map(|i| value(i * 3 + row + first)).collect(),
                );
                let mut image = vec![0u8; 2 * 8 * row.max(32)];
                for (i, &x) in b.iter().enumerate() {
                    let (column, k) = (i / 16, i % 16);
                    let at = place(row, column, k / 8, first) + k % 8 * 2;
                    image[at..at + 2].copy_from_slice(&bf16::from_f32(x).to_le_bytes());
                }
                let pair = |row: usize, col: usize| {
                    let half = |c: usize| u32::from(bf16::from_f32(a[row * 16 + c]).to_bits());
                    half(col) | half(col + 1) << 16
                };
                let mut fragments = vec![0u32; 4 * THREADS];
                for (i, word) in fragments.iter_mut().enumerate() {
                    let (register, thread) = (i / THREADS, i % THREADS);
                    let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
                    *word = pair(16 * warp + g + register % 2 * 8, 2 * t + register / 2 * 8);
                }
                let before: Vec<f32> = (0..8 * THREADS).map(|i| value(i) * 2.0).collect();
                let (y, fragments) = (upload(&before), upload(&fragments));
                let (image, units) = (upload(&image), image.len() as u64 / 16);
                let offsets =
                    if row == 16 { 8 << 16 | 16 << 32 } else { 1 << 16 | (row as u64 / 2) << 32 };
                let arguments =
                    [y, fragments, image, offsets | swizzle << 62, first as u64, units, add];
                let answer = launch(kernel, 1, THREADS as u32, units as u32 * 16, &arguments);
                assert_eq!(answer, 0, "rows of {row}, {first}: {}", report_of("products"));
                let sums: Vec<f32> = download(y, 8 * THREADS);
                for (i, &got) in sums.iter().enumerate() {
                    let (register, thread) = (i / THREADS, i % THREADS);
                    let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
                    let out = 16 * warp + g + register % 4 / 2 * 8;
                    let column = register / 4 * 8 + 2 * t + register % 2;
                    let products = (0..16).map(|k| a[out * 16 + k] * b[column * 16 + k]);
                    let start = if add == 1 { before[i] } else { 0.0 };
                    // Small enough to be exact in any order.
                    let expected = start + products.sum::<f32>();
                    assert_eq!(got, expected, "rows of {row}, {first}: {out}, {column}");
                }
                [y, fragments, image].into_iter().for_each(free);
            }
        }
    }
}

fn caught(name: &str, code: i32, words: &[&str]) {
    start_hopper();
    planted(PTX, name, THREADS, code, words);
}

bugs! {
    not_published: 719, "Unpublished", "fence.proxy.async";
    published_behind_barrier: 719, "Unpublished", "before the barrier";
    copy_published_early: 719, "Unpublished";
    published_without_barrier: 719, "Race", "without a barrier between";
    overwritten_under_way: 719, "Race", "wait_group", "while products that read them were under way";
    no_register_fence: 719, "UnderWay", "since the last `wgmma.fence`";
    sum_touched_behind_fence: 719, "UnderWay", "since the last `wgmma.fence`";
    sum_read_under_way: 719, "UnderWay", "register";
    sum_written_under_way: 719, "UnderWay", "writes a register of the sums";
    fragment_written_under_way: 719, "UnderWay", "writes a register of the fragments";
    products_left_behind: 719, "UnderWay", "ended while";
    not_committed: 719, "UnderWay", "ended while";
    half_a_warpgroup: 719, "Divergence", "without this instruction of its warpgroup";
    warps_of_two_minds: 719, "Divergence", "another descriptor";
    operand_misaligned: 716, "Misaligned", "first row of 256 bytes";
    operand_past_end: 700, "OutOfBounds", "operand";
}
