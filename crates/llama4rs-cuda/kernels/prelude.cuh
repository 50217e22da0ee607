// What every kernel file is compiled behind: names of types and all inline PTX.
// There are no headers at run time; kernels contain no asm of their own.
// Compiled with --fmad=false: a product and a sum are fused only where fmaf says so,
// so that a row's bits do not depend on the kernel variant that computed it.

#pragma nv_diag_suppress 177 // no kernel file uses all of this

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;

#define DEVICE __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define KERNEL_OCCUPANCY(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define SHARED __shared__ __align__(16)
// Shared memory whose size the launch gives.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) u8 name[]

// A constant as an argument's type.
template <bool B> struct Flag {
  static constexpr bool VALUE = B;
};

constexpr u32 FULL_WARP = 0xFFFFFFFFu;
constexpr u32 WARP = 32;

// ---- launches

// From Hopper on a launch may begin while the ones before it drain. Nothing that another kernel writes is
// touched before the wait, and nothing is written; what stays as it is (weights) may be read.
DEVICE void wait_for_launches_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next launch may begin once all blocks came here. It waits for this one's end, and so for all before it: none
// comes here before it has waited itself.
DEVICE void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// How every kernel begins, but for matmul_decode.cu, which asks for weights first.
DEVICE void begin_launch() {
  wait_for_launches_before();
  let_next_launch_begin();
}

// ---- numbers

DEVICE float infinity() { return __uint_as_float(0x7F800000u); }
DEVICE u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// bf16 is carried as u16, or as a pair in a u32 whose low half is the lower index.
DEVICE float bf16_to_f32(u16 x) { return __uint_as_float((u32)x << 16); }
DEVICE float bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return __uint_as_float(pair & 0xFFFF0000u); }
// To nearest even.
DEVICE u32 bf16_pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
DEVICE u16 f32_to_bf16(float x) { return (u16)bf16_pack(x, 0.0f); }
DEVICE float f16_to_f32(u16 x) {
  float y;
  asm("{ .reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(y) : "h"(x));
  return y;
}
DEVICE u16 f32_to_f16(float x) {
  u16 y;
  asm("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; mov.b16 %0, h; }" : "=h"(y) : "f"(x));
  return y;
}
DEVICE u32 f16_pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
DEVICE u32 f16_add2(u32 a, u32 b) {
  u32 d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
DEVICE u32 f16_mul2(u32 a, u32 b) {
  u32 d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
DEVICE u32 f16_max2(u32 a, u32 b) {
  u32 d;
  asm("max.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
DEVICE u32 bf16_fma2(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// Two IEEE halves in a u32, low half first.
DEVICE float f16_low(u32 pair) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)pair));
  return x;
}
DEVICE float f16_high(u32 pair) { return f16_low(pair >> 16); }
// 2^x within 2 ulp; zero for minus infinity.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Any function of three bits: bit 4a + 2b + c of TABLE.
template <u32 TABLE> DEVICE u32 lop3(u32 a, u32 b, u32 c) {
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
  return d;
}
// c + the dot product of four signed bytes each.
DEVICE i32 dot4(i32 a, i32 b, i32 c) { return __dp4a(a, b, c); }

// threadIdx.x, read anew: what is computed from it at the end of a kernel needs no registers before.
DEVICE u32 thread_anew() {
  u32 thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// ---- across a warp; every lane must call, and every lane gets the result

DEVICE float warp_sum(float x) {
#pragma unroll
  for (u32 offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(FULL_WARP, x, offset);
  return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
  for (u32 offset = 16; offset; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, offset));
  return x;
}
// The sum over a block of THREADS threads, in a fixed order, for every thread.
template <u32 THREADS> DEVICE float block_sum(float x) {
  SHARED float parts[THREADS / WARP];
  x = warp_sum(x);
  __syncthreads(); // the parts of an earlier sum have been read
  if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (u32 warp = 0; warp < THREADS / WARP; warp++) total += parts[warp];
  return total;
}

// ---- memory

// The same address or offset, which the compiler takes as it is instead of computing each sum with a constant
// from the parts: the constants become the offsets of instructions.
template <class T> DEVICE T *constant(T *pointer) {
  asm("" : "+l"(pointer));
  return pointer;
}
DEVICE u32 constant(u32 offset) {
  asm("" : "+r"(offset));
  return offset;
}
DEVICE u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }
// 16 bytes that are read once: weights.
DEVICE uint4 load_stream(const void *pointer) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(pointer));
  return v;
}
// Has the line fetched into L2.
DEVICE void prefetch(const void *pointer) { asm volatile("prefetch.global.L2 [%0];" ::"l"(pointer)); }
// 16 bytes to shared memory, or 16 zero bytes where `inside` is false (nothing is read then).
DEVICE void copy16_async(void *shared, const void *global, bool inside) {
  u32 bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING committed groups are under way.
template <int PENDING> DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
// What this thread saw written comes before, what others wrote before they added is seen after. The value before.
DEVICE u32 add_acquire_release(u32 *pointer, u32 x) {
  u32 before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before) : "l"(pointer), "r"(x) : "memory");
  return before;
}

// Whether this block is the last of the `blocks` that call with a ticket; what all of them wrote before is there for it.
// The ticket is zero before, and afterwards. All threads of a block call, and get the answer.
DEVICE bool is_last_block(u32 *ticket, u32 blocks) {
  SHARED u32 last;
  __syncthreads(); // what the block's other threads wrote comes before the release
  if (threadIdx.x == 0) {
    last = add_acquire_release(ticket, 1) + 1 == blocks;
    if (last) *ticket = 0;
  }
  __syncthreads();
  return last;
}

// ---- tensor cores; lane = 4g + t
// d += a (16 x 16) * b (16 x 8), bf16 with single-precision sums.
// a: {row g | row g+8 | row g, cols +8 | row g+8, cols +8} cols 2t, 2t+1; b: rows 2t, 2t+1 (| +8) of
// column g; d: {row g, cols 2t, 2t+1 | row g+8}.
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
               "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d = a * b
DEVICE void mma_bf16_from_zero(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
               "{%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}
// d += a * b, IEEE halves
DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
               "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// An 8 x 8 matrix of 16-bit elements with rows and columns changed: lane 4r + c gives and gets elements 2c, 2c+1
// of row r.
DEVICE u32 transpose(u32 pair) {
  u32 d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(pair));
  return d;
}
// Four 8 x 8 matrices of 16-bit elements; lanes 8i .. 8i+7 give the rows' addresses of matrix i.
DEVICE void load_matrices(u32 (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)) : "memory");
}
DEVICE void load_matrices_transposed(u32 (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)) : "memory");
}

// ---- products of warpgroups (sm_90a): 4 warps whose first is a multiple of 4; they run beside the code
// that follows, until they are waited for. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Rows of 64 bf16 in shared memory, 8 rows to 1024 bytes (whose address is a multiple), unit u of 16 bytes
// of row r at u ^ r % 8: the 128-byte swizzle. Bits 0-13: address / 16, 16-29: distance in a row, unused,
// 32-45: distance of 8 rows / 16, 62-63: 1. (PTX ISA, "Matrix Descriptor Format"; CUTLASS, mma_sm90_desc.hpp)
DEVICE u64 swizzled_rows(const void *rows) {
  return (u64)(shared_address(rows) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
// What this thread wrote to shared memory before becomes visible to products behind the next barrier.
DEVICE void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define PRODUCT_SUMS \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define PRODUCT(a, x, add) \
  "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " PRODUCT_SUMS ", {" a "}, " x ", " add ", 1, 1, 0;\n"
#define FOUR_SUMS(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define EACH_SUM(d) \
  FOUR_SUMS(d[0]), FOUR_SUMS(d[1]), FOUR_SUMS(d[2]), FOUR_SUMS(d[3]), FOUR_SUMS(d[4]), FOUR_SUMS(d[5]), \
  FOUR_SUMS(d[6]), FOUR_SUMS(d[7])
#define FRAGMENT(a) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])

// One group of products: d = or += a (64 x 16 STEPS) * x (16 STEPS x 64: `swizzled_rows`, the next step 32 bytes
// further). Warp i of the group has rows 16 i ..; a and d are as in mma_bf16, d[n] of columns 8 n .. . d is in use until
// wait_products, a until that of the last group that reads it and release_fragments. Old values are named so that d keeps its registers:
// else the compiler gives new ones to a group before the sums of the last are read.
#define START_PRODUCTS(name, first)                                                                    \
  DEVICE void name(float (&d)[8][4], const u32 (&a)[4][4], u64 x) {                                    \
    asm volatile("{ .reg .b64 step;\nwgmma.fence.sync.aligned;\n"                                      \
                 PRODUCT("%32, %33, %34, %35", "%48", first)                                           \
                 "add.s64 step, %48, 2;\n" PRODUCT("%36, %37, %38, %39", "step", "1")                  \
                 "add.s64 step, %48, 4;\n" PRODUCT("%40, %41, %42, %43", "step", "1")                  \
                 "add.s64 step, %48, 6;\n" PRODUCT("%44, %45, %46, %47", "step", "1")                  \
                 "wgmma.commit_group.sync.aligned;\n}"                                                 \
                 : EACH_SUM(d)                                                                         \
                 : FRAGMENT(a[0]), FRAGMENT(a[1]), FRAGMENT(a[2]), FRAGMENT(a[3]), "l"(x) : "memory");  \
  }
START_PRODUCTS(start_products, "0")
START_PRODUCTS(start_adding_products, "1")
// The same, from zero, for two steps.
DEVICE void start_products_of_half(float (&d)[8][4], const u32 (&a0)[4], const u32 (&a1)[4], u64 x) {
  asm volatile("{ .reg .b64 step;\nwgmma.fence.sync.aligned;\n" PRODUCT("%32, %33, %34, %35", "%40", "0")
               "add.s64 step, %40, 2;\n" PRODUCT("%36, %37, %38, %39", "step", "1")
               "wgmma.commit_group.sync.aligned;\n}"
               : EACH_SUM(d) : FRAGMENT(a0), FRAGMENT(a1), "l"(x) : "memory");
}
// The fragments were in use until here; else the compiler may give their registers away at the start of the products.
DEVICE void release_fragments(const u32 (&a)[4][4]) {
  asm volatile("" ::FRAGMENT(a[0]), FRAGMENT(a[1]), FRAGMENT(a[2]), FRAGMENT(a[3]));
}
// Waits until at most PENDING groups are under way; that of d is over.
template <int PENDING> DEVICE void wait_products(float (&d)[8][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %32;" : EACH_SUM(d) : "n"(PENDING) : "memory");
}
#endif

// ---- packed weights (docs/format.md): panels of 16 interleaved rows in 64-byte lines, one 32-bit
// word a row and line

enum Format { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

// Inputs in one line.
template <int KIND> struct Line { static constexpr u32 COLS = 1u << KIND; };

// The codes of a word as floats, scales not applied, in the order of their inputs.
template <int KIND> DEVICE void decode_word(u32 word, float (&w)[Line<KIND>::COLS]) {
  if constexpr (KIND == F32) {
    w[0] = __uint_as_float(word);
  } else if constexpr (KIND == BF16) {
    w[0] = bf16_low(word);
    w[1] = bf16_high(word);
  } else if constexpr (KIND == INT8) {
    // 2^23 + code + 128, minus 2^23 + 128.
#pragma unroll
    for (u32 j = 0; j < 4; j++)
      w[j] = __uint_as_float(__byte_perm(word, 0x4B000000u, 0x7440u + j)) - 8388736.0f;
  } else {
    u32 low = word & 0x0F0F0F0Fu, high = (word >> 4) & 0x0F0F0F0Fu;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      w[j] = __uint_as_float(__byte_perm(low, 0x4B000000u, 0x7440u + j)) - 8388616.0f;
      w[4 + j] = __uint_as_float(__byte_perm(high, 0x4B000000u, 0x7440u + j)) - 8388616.0f;
    }
  }
}
