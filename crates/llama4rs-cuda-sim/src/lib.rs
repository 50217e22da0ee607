//! A GPU that every machine has: a stand-in `libcuda` that runs PTX on the CPU.
//!
//! Programs that open the CUDA driver by name run on it unchanged: contexts, streams,
//! events, allocations, copies, modules, launches, captures and graphs. It takes the
//! PTX that NVRTC makes of a kernel, runs it, and watches every access. It is for
//! tests: no wheel contains it, and its speed says nothing about a real device.
//!
//! # Running a program on it
//!
//! `make simulated-gpu` builds the library and lays it out in `target/simulated-gpu`:
//!
//! ```text
//! LD_LIBRARY_PATH=target/simulated-gpu program
//! ```
//!
//! Kernels must come as PTX (`--gpu-architecture=compute_80`, or `compute_90a` for capability
//! 9.0); a CUBIN is refused. The device is called [`device::NAME`], has compute capability 8.0 and driver 13.0.
//!
//! | variable | meaning |
//! |---|---|
//! | `LLAMA4RS_SIM_CAPABILITY` | compute capability, such as `9.0` |
//! | `LLAMA4RS_SIM_MEMORY` | bytes of memory, such as `4G`; `2G` unless set |
//! | `LLAMA4RS_SIM_SKIP` | what not to watch, of `races`, `unwritten`, `counters`, separated by commas |
//! | `LLAMA4RS_SIM_FOOTPRINT` | `1` counts the different sectors that a launch reads, too |
//! | `LLAMA4RS_SIM_PRODUCTS` | `backwards`: `wgmma` adds in another order than `mma`, as a device might |
//! | `LLAMA4RS_SIM_TIMEOUT` | seconds after which a kernel counts as endless; 120 unless set |
//! | `LLAMA4RS_SIM_LEAKS` | `1` prints what was not freed when the context ends |
//! | `RAYON_NUM_THREADS` | host threads that run blocks |
//!
//! # What it reports
//!
//! A launch returns the driver's error code at once. The words go to standard error and
//! to `llama4rs_sim_report`: kernel, block, thread, line of the PTX, and what happened.
//! An error does not outlive its call; a real device would need a new context.
//!
//! - Addresses outside every allocation, misaligned, or freed; the nearest allocation is named.
//! - Uses of memory that nobody wrote, device or shared: a load alone is none, as compilers
//!   load ahead of the branch that decides.
//! - Races in shared memory: two threads, one of them writing, and no barrier between
//!   (`__syncwarp` within a warp). A `cp.async` writes from its start to its wait.
//! - Products of warpgroups (`wgmma`): registers that are touched while they are under way or without
//!   `wgmma.fence`, shared memory that was not published to them (`fence.proxy.async`) or is overwritten
//!   under them, descriptors that do not fit, warps of a group that part.
//! - Barriers that some threads do not reach; masks that name lanes that are not there.
//! - Launches that may begin before those before them have ended (programmatic dependent launch, from capability
//!   9.0 on): threads that never execute `griddepcontrol.wait`, and what they write before it, or touch though a
//!   launch wrote it since the host last waited (in sectors of 32 bytes, whatever the stream).
//! - Copies and products under way at the end of a kernel, `assert`, `trap`, kernels that do not end.
//! - Launches beyond the limits; calls that a capture forbids.
//!
//! `llama4rs_sim_counters` gives, for each kernel, instructions, bytes, 32-byte sectors
//! and wavefronts of shared memory; `llama4rs_sim_calls` how often each function of the driver
//! was called. `llama4rs_sim_fail` lets the next calls of one fail, `llama4rs_sim_skip_kernels` lets launches
//! do nothing.
//!
//! # What it cannot show
//!
//! Speed, caches, occupancy; the order in which blocks see each other's writes; the last
//! bits of approximate instructions and of tensor-core sums. Work runs when it is
//! submitted, so a missing synchronisation between host and device goes unnoticed.
//!
//! # From text to lanes
//!
//! ```text
//! ptx      text → tree
//! decode   tree → flat instructions over numbered registers; what is unknown fails here
//! allocate few registers for many names
//! exec     launch → blocks over threads → warps → 32 lanes at once
//! memory   device memory and its notes        shadow   notes on shared memory
//! driver   the functions of libcuda
//! ```

pub mod allocate;
pub mod counters;
pub mod decode;
pub mod device;
pub mod driver;
pub mod exec;
pub mod memory;
pub mod op;
pub mod program;
pub mod ptx;
pub mod report;
pub mod shadow;
