// Products of a warpgroup, and kernels with one planted bug each: with bug = 0 each is right, with bug = 1 the
// device must report it. One block of 128 threads; x holds 128 words, y as many.
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void __launch_bounds__(128)
#define T threadIdx.x

__device__ __forceinline__ u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait(float (&d)[4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])::"memory");
}

// d = a * b; 8 columns. A compiler may move registers between statements: the fence is in the same one.
#define START(fence)                                                                                     \
  asm volatile(fence "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, "            \
               "{%4, %5, %6, %7}, %8, 0, 1, 1, 0;"                                                       \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory")
__device__ __forceinline__ void start(float (&d)[4], const u32 (&a)[4], u64 b) { START("wgmma.fence.sync.aligned;\n"); }
__device__ __forceinline__ void start_unfenced(float (&d)[4], const u32 (&a)[4], u64 b) { START(""); }
// Columns of 16 inputs without swizzle: 8 inputs of 8 columns are 128 bytes.
__device__ __forceinline__ u64 plain(const void* p) { return address(p) >> 4 | 8ull << 16 | 16ull << 32; }

// y [8 sums][128 threads] += a [4 words][128 threads] * 16 columns, which lie in `units` of 16 bytes at b as
// `descriptor`, without its address but with `start` bytes more, says.
KERNEL products(float* y, const u32* a, const uint4* b, u64 descriptor, u32 first, u32 units, u32 add) {
  extern __shared__ __align__(1024) uint4 shared[];
  for (u32 i = T; i < units; i += 128) shared[i] = b[i];
  publish();
  __syncthreads();
  float d[8];
  u32 f[4];
  for (u32 i = 0; i < 8; i++) d[i] = y[i * 128 + T];
  for (u32 i = 0; i < 4; i++) f[i] = a[i * 128 + T];
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %13, 0;\nwgmma.fence.sync.aligned;\n"
               "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, "
               "{%8, %9, %10, %11}, %12, p, 1, 1, 0; }"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
               : "r"(f[0]), "r"(f[1]), "r"(f[2]), "r"(f[3]), "l"(descriptor | (address(shared) + first) >> 4), "r"(add));
  commit();
  asm volatile("wgmma.wait_group.sync.aligned 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]) :: "memory");
  for (u32 i = 0; i < 8; i++) y[i * 128 + T] = d[i];
}

// What the bugs have in common: 8 columns of 16 inputs in shared memory, from `words`.
#define PROLOGUE                           \
  __shared__ __align__(1024) u32 s[64];    \
  float d[4] = {};                         \
  u32 a[4] = {x[T], x[T], x[T], x[T]};     \
  if (T < 64) s[T] = x[T];
#define EPILOGUE y[T] = __float_as_uint(d[0]);

KERNEL not_published(u32* y, const u32* x, int bug) {
  PROLOGUE
  if (!bug) publish();
  __syncthreads();
  start(d, a, plain(s)), commit(), wait(d);
  EPILOGUE
}

KERNEL published_behind_barrier(u32* y, const u32* x, int bug) {
  PROLOGUE
  if (!bug) publish();
  __syncthreads();
  if (bug) publish();
  start(d, a, plain(s)), commit(), wait(d);
  EPILOGUE
}

KERNEL copy_published_early(u32* y, const u32* x, int bug) {
  PROLOGUE
  __syncthreads();
  if (T < 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(s + T * 4)), "l"(x + T * 4) : "memory");
  if (bug) publish();
  asm volatile("cp.async.wait_all;" ::: "memory");
  if (!bug) publish();
  __syncthreads();
  start(d, a, plain(s)), commit(), wait(d);
  EPILOGUE
}

KERNEL published_without_barrier(u32* y, const u32* x, int bug) {
  PROLOGUE
  publish();
  if (!bug) __syncthreads();
  start(d, a, plain(s)), commit(), wait(d);
  EPILOGUE
}

KERNEL overwritten_under_way(u32* y, const u32* x, int bug) {
  PROLOGUE
  publish();
  __syncthreads();
  start(d, a, plain(s)), commit();
  if (!bug) wait(d);
  __syncthreads();
  if (T < 64) s[T] = x[T] + 1;
  if (bug) wait(d);
  EPILOGUE
}

KERNEL no_register_fence(u32* y, const u32* x, int bug) {
  PROLOGUE
  publish();
  __syncthreads();
  if (bug) start_unfenced(d, a, plain(s));
  else start(d, a, plain(s));
  commit(), wait(d);
  EPILOGUE
}

#define IN_REGISTERS(before, behind)                                                                      \
  PROLOGUE                                                                                                \
  publish();                                                                                              \
  __syncthreads();                                                                                        \
  asm volatile("{ .reg .pred p; .reg .b32 a; .reg .f32 d0, d1, d2, d3; setp.ne.b32 p, %3, 0;\n"            \
               "mov.b32 a, %1; mov.f32 d0, 0f00000000; mov.f32 d1, d0; mov.f32 d2, d0; mov.f32 d3, d0;\n"   \
               "wgmma.fence.sync.aligned;\n" before                                                       \
               "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {d0, d1, d2, d3}, {a, a, a, a}, %2, 1, 1, 1, 0;\n" \
               "wgmma.commit_group.sync.aligned;\n" behind                                                \
               "wgmma.wait_group.sync.aligned 0;\nmov.f32 %0, d0; }"                                      \
               : "=f"(d[0]) : "r"(a[0]), "l"(plain(s)), "r"(bug) : "memory");                             \
  EPILOGUE

KERNEL sum_touched_behind_fence(u32* y, const u32* x, int bug) { IN_REGISTERS("@p mov.f32 d1, d0;\n", "") }
KERNEL sum_read_under_way(u32* y, const u32* x, int bug) { IN_REGISTERS("", "@p mov.b32 a, 0;\n@p add.f32 d1, d0, d0;\n") }
KERNEL sum_written_under_way(u32* y, const u32* x, int bug) { IN_REGISTERS("", "@p mov.f32 d3, 0f00000000;\n") }
KERNEL fragment_written_under_way(u32* y, const u32* x, int bug) { IN_REGISTERS("", "@p mov.b32 a, 0;\n") }

KERNEL products_left_behind(u32* y, const u32* x, int bug) {
  PROLOGUE
  publish();
  __syncthreads();
  start(d, a, plain(s)), commit();
  if (!bug) wait(d);
  y[T] = 0;
}

KERNEL not_committed(u32* y, const u32* x, int bug) {
  PROLOGUE
  publish();
  __syncthreads();
  start(d, a, plain(s));
  if (!bug) commit();
  wait(d);
  y[T] = 0;
}

KERNEL half_a_warpgroup(u32* y, const u32* x, int bug) {
  PROLOGUE
  publish();
  __syncthreads();
  if (!bug || T < 64) start(d, a, plain(s)), commit(), wait(d);
  EPILOGUE
}

KERNEL warps_of_two_minds(u32* y, const u32* x, int bug) {
  PROLOGUE
  publish();
  __syncthreads();
  start(d, a, plain(s) + (bug && T >= 96 ? 1ull << 40 : 0)), commit(), wait(d);
  EPILOGUE
}

KERNEL operand_misaligned(u32* y, const u32* x, int bug) {
  PROLOGUE
  publish();
  __syncthreads();
  // Rows of 32 bytes; a pattern begins at a multiple of 256.
  start(d, a, (plain(s) & 0xFFFF) | (bug ? 8 : 0) | 16ull << 32 | 3ull << 62), commit(), wait(d);
  EPILOGUE
}

KERNEL operand_past_end(u32* y, const u32* x, int bug) {
  PROLOGUE
  publish();
  __syncthreads();
  start(d, a, plain(s) + (bug ? 1 << 28 : 0)), commit(), wait(d);
  EPILOGUE
}
