// Kernels that are right: lanes that part and meet, calls, local memory, cooperation.
// One block of 64 threads unless said otherwise; x and y hold 64 words.
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void __launch_bounds__(64)
#define T threadIdx.x

KERNEL collectives(u32* y, const u32* x) {
  u32 v = x[T], lane = T & 31, all = 0xffffffffu;
  u32 sum = v;
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(all, sum, o);
  u32 up = __shfl_up_sync(all, v, 3), down = __shfl_down_sync(all, v, 5, 16), from = __shfl_sync(all, v, 40);
  u32 ballot = __ballot_sync(all, v & 1), same = __match_any_sync(all, v % 5);
  u32 any = __any_sync(all, v == 7), every = __all_sync(all, v < 1000);
  u32 most = __reduce_max_sync(all, v);
  y[T] = sum + 3 * up + 5 * down + 7 * from + 11 * ballot + 13 * same + 17 * any + 19 * every + 23 * most + lane;
}

// Loops of different lengths, nested branches, a shuffle by half of the warp.
KERNEL diverging(u32* y, const u32* x) {
  u32 v = x[T], s = 0;
  for (u32 i = 0; i < v % 37; i++) {
    if ((i ^ v) & 1) s += i * v;
    else if (i % 3 == 0) s ^= v << (i & 7);
    else { s += 5; if (s % 7 == 0) continue; s++; }
  }
  if (T & 16) s += __shfl_xor_sync(0xffff0000u, s, 1);
  y[T] = s;
}

__device__ __noinline__ u32 collatz(u32 v, u32* steps) {
  u32 n = 0;
  while (v != 1) { v = v & 1 ? 3 * v + 1 : v / 2; n++; }
  *steps += n;
  return n * 2;
}

KERNEL calling(u32* y, const u32* x) {
  u32 steps = T, r = collatz(x[T] + 1, &steps);
  if (T & 1) r += collatz(x[T] + 2, &steps);
  y[T] = r * 1000 + steps;
}

KERNEL local_arrays(u32* y, const u32* x) {
  u32 a[16];
  for (u32 i = 0; i < 16; i++) a[i] = i * x[i];
  for (u32 i = 0; i < 16; i++) a[x[T + i & 63] & 15] += i;
  y[T] = a[T & 15] + a[x[T] & 15];
}

__constant__ u32 table[4] = {10, 20, 30, 40};
__device__ u32 counter = 5;

KERNEL variables(u32* y, const u32* x) { y[T] = table[x[T] & 3] + counter; }

// Any number of blocks: everybody counts, by shared and by device memory.
KERNEL histogram(u32* y, const u32* x) {
  __shared__ u32 s[8];
  if (T < 8) s[T] = 0;
  __syncthreads();
  atomicAdd(&s[x[T] & 7], 1);
  __syncthreads();
  if (T < 8) atomicAdd(&y[T], s[T]);
}

// A cooperative launch: all blocks add, wait for all, and read the sum.
KERNEL grid_barrier(u32* y, const u32* x, u32* state) {
  __shared__ u32 total;
  if (T == 0) {
    atomicAdd(&state[1], x[blockIdx.x & 63]);
    __threadfence();
    atomicAdd(&state[0], 1);
    while (*(volatile u32*)&state[0] < gridDim.x) __nanosleep(20);
    __threadfence();
    total = *(volatile u32*)&state[1];
  }
  __syncthreads();
  y[blockIdx.x * 64 + T] = total + T;
}

// One warp makes, one warp takes, by named barriers.
KERNEL producer(u32* y, const u32* x) {
  __shared__ u32 s[32];
  for (u32 i = 0; i < 4; i++) {
    if (T < 32) {
      if (i) asm volatile("bar.sync 2, 64;" ::: "memory");
      s[T] = x[T] + i;
      asm volatile("bar.arrive 1, 64;" ::: "memory");
    } else {
      asm volatile("bar.sync 1, 64;" ::: "memory");
      y[i * 32 + T - 32] = s[63 - T];
      if (i < 3) asm volatile("bar.arrive 2, 64;" ::: "memory");
    }
  }
}

struct Parameters { const u32* x; u32* y; u32 add[5]; float scale; };

KERNEL struct_parameter(const __grid_constant__ Parameters p) {
  p.y[T] = (u32)((float)(p.x[T] + p.add[T % 5]) * p.scale);
}

extern __shared__ u32 dynamic[];

KERNEL dynamic_shared(u32* y, const u32* x, u32 words) {
  for (u32 i = T; i < words; i += 64) dynamic[i] = x[i & 63] + i;
  __syncthreads();
  u32 s = 0;
  for (u32 i = 0; i < words; i += 64) s += dynamic[i + (T ^ 33)];
  y[T] = s;
}
