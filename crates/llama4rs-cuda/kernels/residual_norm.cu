// The residual stream between two halves of a block: x += what attention or feed forward made of it,
// then its norm but for the factor (norm.cuh) as the next matrices' input.
//
// x [rows, WIDTH] f32, in and out. dense [rows, WIDTH] f32 and routed [rows * top_k, WIDTH] f32 are added in
// this order, choices in order; null: nothing. scaled [rows, WIDTH] f32 = x * weight, h the same as bf16, squares
// [rows] the sums of x^2; without a weight none of them. A row's bits do not depend on other rows.
// Launch: a block of 256 threads a row. Bytes: every operand once.

// Compiled with -DWIDTH=, a multiple of 4 and at most 16384.
KERNEL(256) residual_norm(float *x, const float *dense, const float *routed, u32 top_k, const float *weight,
                          float *scaled, u16 *h, float *squares) {
  begin_launch();
  constexpr u32 QUADS = WIDTH / 4, PER = (QUADS + 255) / 256, PANELS = (QUADS + 3) / 4;
  SHARED float panels[PANELS];
  u64 row = blockIdx.x;
  float4 *mine = (float4 *)(x + row * WIDTH);
  float4 v[PER]; // all of them are under way before one is written
#pragma unroll
  for (u32 i = 0; i < PER; i++) {
    u32 at = threadIdx.x + i * 256;
    v[i] = make_float4(0, 0, 0, 0);
    if (at >= QUADS) continue;
    v[i] = mine[at];
    auto add = [&](const float *from) {
      float4 w = ((const float4 *)from)[at];
      v[i].x += w.x, v[i].y += w.y, v[i].z += w.z, v[i].w += w.w;
    };
    if (dense) add(dense + row * WIDTH);
    if (routed)
      for (u32 choice = 0; choice < top_k; choice++) add(routed + (row * top_k + choice) * WIDTH);
  }
#pragma unroll
  for (u32 i = 0; i < PER; i++) {
    u32 at = threadIdx.x + i * 256;
    bool inside = at < QUADS;
    if (inside && (dense || routed)) mine[at] = v[i];
    if (!weight) continue;
    if (inside) {
      float4 w = __ldg((const float4 *)weight + at);
      w = make_float4(v[i].x * w.x, v[i].y * w.y, v[i].z * w.z, v[i].w * w.w);
      ((float4 *)(scaled + row * WIDTH))[at] = w;
      ((uint2 *)(h + row * WIDTH))[at] = make_uint2(bf16_pack(w.x, w.y), bf16_pack(w.z, w.w));
    }
    // Four lanes have a panel: the first two inputs 0..7, the others those that are 8 further.
    auto pair = [](float value) {
      float square = value * value;
      return square + __shfl_xor_sync(FULL_WARP, square, 2);
    };
    float panel = (pair(v[i].x) + pair(v[i].y)) + (pair(v[i].z) + pair(v[i].w));
    panel += __shfl_xor_sync(FULL_WARP, panel, 1);
    if (inside && at % 4 == 0) panels[at / 4] = panel;
  }
  if (!weight) return;
  __syncthreads();
  if (threadIdx.x >= WARP) return;
  float sum = sum_panels(panels, PANELS);
  if (threadIdx.x == 0) squares[row] = sum;
}

// What `residual_norm` left to do, for those who need plain values: out [rows, width] = scaled * factor, which may be
// the same memory. Launch: a block of 256 threads a row; width a multiple of 4.
KERNEL(256) finish_norm(float *out, const float *scaled, RowNorm norm, u32 width) {
  begin_launch();
  u64 row = blockIdx.x;
  float factor = row_factor(norm, row, width);
  const float4 *from = (const float4 *)(scaled + row * width);
  for (u32 i = threadIdx.x; i < width / 4; i += 256) {
    float4 v = from[i];
    ((float4 *)(out + row * width))[i] = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
  }
}

// out [count] bf16 = x [count] f32, to nearest even; one thread four values, count % 4 == 0.
KERNEL(256) to_bf16(u16 *out, const float *x, u64 quads) {
  begin_launch();
  u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= quads) return;
  float4 v = ((const float4 *)x)[i];
  ((uint2 *)out)[i] = make_uint2(bf16_pack(v.x, v.y), bf16_pack(v.z, v.w));
}
