// The residual stream between two halves of a block: x += what attention or feed forward made of it,
// then its norm as the next matrices' input.
//
// x [rows, WIDTH] f32, in and out. dense [rows, WIDTH] f32 and routed [rows * top_k, WIDTH] f32 are added in
// this order, choices in order; null: nothing. normed [rows, WIDTH] f32 = x / sqrt(mean(x^2) + eps) * weight,
// h the same as bf16; null: not wanted. A row's bits do not depend on other rows.
// Launch: a block of 256 threads a row. Bytes: every operand once.

// Compiled with -DWIDTH=, a multiple of 4 and at most 16384.
KERNEL(256) residual_norm(float *x, const float *dense, const float *routed, u32 top_k, const float *weight,
                          float eps, float *normed, u16 *h) {
  constexpr u32 QUADS = WIDTH / 4, PER = (QUADS + 255) / 256;
  u64 row = blockIdx.x;
  float4 *mine = (float4 *)(x + row * WIDTH);
  float4 v[PER];
  float squares = 0.0f;
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
    if (dense || routed) mine[at] = v[i];
    squares = fmaf(v[i].x, v[i].x, squares), squares = fmaf(v[i].y, v[i].y, squares);
    squares = fmaf(v[i].z, v[i].z, squares), squares = fmaf(v[i].w, v[i].w, squares);
  }
  if (!h && !normed) return;
  float factor = 1.0f / sqrtf(block_sum<256>(squares) / (float)WIDTH + eps);
#pragma unroll
  for (u32 i = 0; i < PER; i++) {
    u32 at = threadIdx.x + i * 256;
    if (at >= QUADS) continue;
    float4 w = __ldg((const float4 *)weight + at);
    w = make_float4(v[i].x * factor * w.x, v[i].y * factor * w.y, v[i].z * factor * w.z, v[i].w * factor * w.w);
    if (normed) ((float4 *)(normed + row * WIDTH))[at] = w;
    if (h) ((uint2 *)(h + row * WIDTH))[at] = make_uint2(bf16_pack(w.x, w.y), bf16_pack(w.z, w.w));
  }
}

// out [count] bf16 = x [count] f32, to nearest even; one thread four values, count % 4 == 0.
KERNEL(256) to_bf16(u16 *out, const float *x, u64 quads) {
  u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= quads) return;
  float4 v = ((const float4 *)x)[i];
  ((uint2 *)out)[i] = make_uint2(bf16_pack(v.x, v.y), bf16_pack(v.z, v.w));
}
