// Kernels with one planted bug each. With bug = 0 each is right, with bug = 1 the
// device must report it. One block of 64 threads; x and y hold 64 words.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void __launch_bounds__(64)
#define T threadIdx.x

KERNEL read_past_end(u32* y, const u32* x, int bug) { y[T] = x[T + bug]; }

KERNEL write_before_start(u32* y, const u32* x, int bug) { y[(int)T - bug] = x[T]; }

KERNEL null_pointer(u32* y, const u32* x, int bug) {
  const u32* p = (const u32*)((u64)x * (u64)(1 - bug));
  y[T] = p[T];
}

KERNEL misaligned(u32* y, const u32* x, int bug) {
  if (T < 15) {
    uint4 v = *(const uint4*)(x + 4 * T + bug);
    y[T] = v.x + v.y + v.z + v.w;
  }
}

// Run on a buffer that was freed.
KERNEL plain_copy(u32* y, const u32* x, int bug) { y[T] = x[T]; }

// y is fresh memory.
KERNEL unwritten_global(u32* y, const u32* x, int bug) { y[T] = bug ? y[T] + 1 : x[T]; }

KERNEL unwritten_shared(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  if (T < 64 - bug) s[T] = x[T];
  __syncthreads();
  y[T] = s[63 - T];
}

// A compiler may read early what it then does not use: only the use counts.
KERNEL unwritten_but_read(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  u32 v, at = (u32)__cvta_generic_to_shared(s + T);
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  s[T] = 1;
  y[T] = bug ? v : x[T];
}

KERNEL shared_past_end(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[T] = x[T];
  __syncthreads();
  y[T] = s[T + bug];
}

KERNEL local_past_end(u32* y, const u32* x, int bug) {
  u32 a[8];
  for (int i = 0; i < 8; i++) a[i] = x[i];
  y[T] = a[(T & 7) + 8 * bug];
}

KERNEL race_without_barrier(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[T] = 0;
  __syncthreads();
  s[T] = x[T];
  if (!bug) __syncthreads();
  y[T] = s[63 - T];
}

KERNEL race_in_warp(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[T] = x[T];
  if (!bug) __syncwarp();
  y[T] = s[T ^ 1];
}

KERNEL race_write_after_read(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[T] = x[T];
  __syncthreads();
  u32 v = s[T ^ 1];
  if (!bug) __syncthreads();
  s[T] = v + 1;
  __syncthreads();
  y[T] = s[T];
}

KERNEL race_of_writers(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[bug ? T / 2 : T] = x[T];
  __syncthreads();
  y[T] = s[bug ? T / 2 : T];
}

KERNEL race_of_bytes(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[T] = 0;
  __syncthreads();
  ((u8*)s)[T] = (u8)x[T];
  if (!bug) __syncthreads();
  y[T] = ((u8*)s)[T ^ 32];
}

KERNEL race_with_atomic(u32* y, const u32* x, int bug) {
  __shared__ u32 s;
  if (T == 0) s = 0;
  if (!bug) __syncthreads();
  atomicAdd(&s, x[T]);
  __syncthreads();
  y[T] = s;
}

__device__ __forceinline__ void copy_async(u32* to, const u32* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from)
               : "memory");
}

KERNEL copy_not_waited_for(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  copy_async(&s[T], &x[T]);
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (bug) asm volatile("cp.async.wait_group 1;" ::: "memory");
  else asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  y[T] = s[T];
  asm volatile("cp.async.wait_all;" ::: "memory");
}

KERNEL copy_without_barrier(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[T] = 0;
  __syncthreads();
  copy_async(&s[T], &x[T]);
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
  if (!bug) __syncthreads();
  y[T] = s[63 - T];
}

KERNEL copy_over_readers(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[T] = x[T];
  __syncthreads();
  u32 v = s[T ^ 1];
  if (!bug) __syncthreads();
  copy_async(&s[T], &x[T]);
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  y[T] = s[T] + v;
}

KERNEL copy_left_behind(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  copy_async(&s[T], &x[T]);
  if (!bug) asm volatile("cp.async.wait_all;" ::: "memory");
  y[T] = x[T];
}

KERNEL early_return(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[T] = x[T];
  if (bug && T >= 32) return;
  __syncthreads();
  y[T] = s[T];
}

KERNEL early_return_in_warp(u32* y, const u32* x, int bug) {
  __shared__ u32 s[64];
  s[T] = x[T];
  if (bug && T == 5) return;
  __syncthreads();
  y[T] = s[T];
}

KERNEL barrier_in_branch(u32* y, const u32* x, int bug) {
  if (T < 16 || !bug) {
    asm volatile("bar.sync 0;" ::: "memory");
    y[T] = x[T];
  }
}

KERNEL two_barriers(u32* y, const u32* x, int bug) {
  if (T < 32 && bug) {
    asm volatile("bar.sync 0;\n" ::: "memory");
    y[T] = x[T];
  } else {
    asm volatile("bar.sync 0;\n" ::: "memory");
    y[T] = x[T] + 1;
  }
}

KERNEL shuffle_of_absent(u32* y, const u32* x, int bug) {
  u32 v = x[T];
  if ((T & 31) < 16 || !bug) v = __shfl_xor_sync(0xffffffffu, v, 1);
  y[T] = v;
}

KERNEL shuffle_outside_mask(u32* y, const u32* x, int bug) {
  u32 v = x[T];
  if ((T & 31) < 16) v = __shfl_sync(bug ? 0xfff0u : 0xffffu, v, 5);
  y[T] = v;
}

KERNEL assertion(u32* y, const u32* x, int bug) {
  assert(!bug || T != 3);
  y[T] = x[T];
}

KERNEL trapped(u32* y, const u32* x, int bug) {
  if (bug && T == 7) __trap();
  y[T] = x[T];
}

KERNEL matrix_row_misaligned(u32* y, const u32* x, int bug) {
  __shared__ __align__(16) u16 s[32 * 16];
  for (int i = T; i < 32 * 16; i += 64) s[i] = (u16)i;
  __syncthreads();
  u32 v, at = (u32)__cvta_generic_to_shared(s + (T & 7) * (bug ? 12 : 16));
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(v) : "r"(at) : "memory");
  y[T] = v + x[T];
}

KERNEL endless(u32* y, const u32* x, int bug) {
  while (bug && *(volatile const u32*)x == x[0]) __nanosleep(32);
  y[T] = x[T];
}
