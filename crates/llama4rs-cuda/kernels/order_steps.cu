// Activations in the order of the steps of fragments.cuh, for products that read them by themselves (matmul_wgmma.cu).
//
// x [rows, cols] bf16 -> out [rows, tiles * 256], zeros behind the last input. Of every 32 inputs, pair i (of 4)
// of run t (of 4, 8 inputs each) goes to place 4 i + t: so the 16 inputs of a step lie together, and input k(s, t)
// is where tensor core and fragment have the same column.
// Launch: one thread for 32 inputs, `count` in all. Bytes: x once, out once.

KERNEL(256) order_steps(uint4 *out, const u16 *x, u32 cols, u32 tiles, u64 count) {
  begin_launch();
  u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= count) return;
  u32 col = i % (tiles * 8) * 32;
  const u16 *row = x + i / (tiles * 8) * cols;
  uint4 run[4];
#pragma unroll
  for (u32 t = 0; t < 4; t++)
    run[t] = col + t * 8 < cols ? *(const uint4 *)(row + col + t * 8) : make_uint4(0, 0, 0, 0);
  out[i * 4 + 0] = make_uint4(run[0].x, run[1].x, run[2].x, run[3].x);
  out[i * 4 + 1] = make_uint4(run[0].y, run[1].y, run[2].y, run[3].y);
  out[i * 4 + 2] = make_uint4(run[0].z, run[1].z, run[2].z, run[3].z);
  out[i * 4 + 3] = make_uint4(run[0].w, run[1].w, run[2].w, run[3].w);
}
