//! Every planted bug is reported, and the same kernel without it runs.

mod support;

use support::*;

const PTX: &str = include_str!("kernels/bugs.ptx");

fn caught(name: &str, code: i32, words: &[&str]) {
    start();
    planted(PTX, name, 64, code, words);
}

bugs! {
    read_past_end: 700, "OutOfBounds", "thread (63, 0, 0)", "PTX line", "0 bytes after the end of", "of 256 bytes";
    write_before_start: 700, "OutOfBounds", "thread (0, 0, 0)", "4 bytes before";
    null_pointer: 700, "OutOfBounds", "4 bytes at 0x0";
    misaligned: 716, "Misaligned", "16 bytes";
    unwritten_global: 719, "Uninitialised", "nobody wrote", "allocation";
    unwritten_shared: 719, "Uninitialised", "thread (0, 0, 0)", "offset 252";
    unwritten_but_read: 719, "Uninitialised", "ld.shared.u32", "offset 0 of shared memory";
    shared_past_end: 700, "OutOfBounds", "offset 256 of 256 bytes of shared memory";
    local_past_end: 700, "OutOfBounds", "local memory";
    race_without_barrier: 719, "Race", "without a barrier between";
    race_in_warp: 719, "Race", "reads", "thread [1, 0, 0] wrote";
    race_write_after_read: 719, "Race", "writes", "read without a barrier";
    race_of_writers: 719, "Race", "writes", "wrote without a barrier";
    race_of_bytes: 719, "Race", "shared memory", "without a barrier between";
    race_with_atomic: 719, "Race", "updates";
    copy_not_waited_for: 719, "Race", "cp.async", "under way";
    copy_without_barrier: 719, "Race", "without a barrier";
    copy_over_readers: 719, "Race", "begins to copy to", "read without a barrier";
    copy_left_behind: 719, "UnfinishedCopy";
    early_return: 719, "Divergence", "ended";
    early_return_in_warp: 719, "Divergence", "0x00000020";
    barrier_in_branch: 719, "Divergence", "ended";
    two_barriers: 719, "Divergence", "waits at the barrier";
    shuffle_of_absent: 719, "ended";
    shuffle_outside_mask: 719, "Mask", "not in its own mask";
    assertion: 710, "Assert", "!bug || threadIdx.x != 3", "thread (3, 0, 0)";
    trapped: 719, "Trap", "thread (7, 0, 0)";
    matrix_row_misaligned: 716, "Misaligned", "16 bytes";
    endless: 702, "Endless", "cooperative";
}

#[test]
fn use_after_free() {
    start();
    let kernel = kernel(load(PTX), "plain_copy");
    let (x, y) = (upload(&[0u32; 64]), allocate(256));
    assert_eq!(launch(kernel, 1, 64, 0, &[y, x, 0]), 0);
    free(x);
    assert_eq!(launch(kernel, 1, 64, 0, &[y, x, 0]), 700);
    let report = report_of("plain_copy");
    assert!(report.contains("UseAfterFree") && report.contains("freed"), "{report}");
}
