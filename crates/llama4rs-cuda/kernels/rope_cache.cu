// What lies between the q, k, v projections and attention, in one pass: rotary positions, norms of
// queries and keys, attention temperature, rounding, and writing keys and values into exact pages.
//
// Keys are stored only: k keeps what it was. queries may be q.
//
// q [rows, heads * D], k and v [rows, kv_heads * D] f32. rotations [rows, D]: cos, sin of each pair; null:
// none, and no norm. scales [rows]: factors of queries; null: ones. eps < 0: no norm. queries
// [rows, heads * D] f32, and halves the same as bf16. Row t's keys and values go to token offsets[t] of the page at pages[t], whose
// layout is [layer][kv head][keys, values][64][D] bf16.
// Launch: (ceil((heads + 2 kv_heads) / 8), rows) blocks of 256 threads, a warp for each head.
// Bytes: every value once in, once out at half the size, queries also at full size.

// Compiled with -DHEAD_DIM=, a multiple of 64.
struct RopeArgs {
  const float *q, *k, *v, *rotations, *scales;
  float *queries;
  u16 *halves;
  const u64 *pages;
  const u32 *offsets;
  u32 heads, kv_heads, layer;
  float eps;
};

KERNEL(256) rope_cache(const __grid_constant__ RopeArgs args) {
  begin_launch();
  constexpr u32 PAIRS = HEAD_DIM / 64; // of a lane
  u32 row = blockIdx.y, head = blockIdx.x * 8 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (head >= args.heads + 2 * args.kv_heads) return;
  bool is_query = head < args.heads, is_value = head >= args.heads + args.kv_heads;
  u32 kv_head = is_value ? head - args.heads - args.kv_heads : head - args.heads;
  const float *from = is_query ? args.q + ((u64)row * args.heads + head) * HEAD_DIM
                               : (is_value ? args.v : args.k) + ((u64)row * args.kv_heads + kv_head) * HEAD_DIM;
  float2 x[PAIRS];
#pragma unroll
  for (u32 i = 0; i < PAIRS; i++) x[i] = ((const float2 *)from)[lane * PAIRS + i];

  if (!is_value && args.rotations) {
    const float2 *rotation = (const float2 *)(args.rotations + (u64)row * HEAD_DIM) + lane * PAIRS;
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
      float2 r = rotation[i];
      x[i] = make_float2(fmaf(-x[i].y, r.y, x[i].x * r.x), fmaf(x[i].x, r.y, x[i].y * r.x));
      squares = fmaf(x[i].x, x[i].x, squares), squares = fmaf(x[i].y, x[i].y, squares);
    }
    if (args.eps >= 0.0f) {
      float factor = 1.0f / sqrtf(warp_sum(squares) / (float)HEAD_DIM + args.eps);
#pragma unroll
      for (u32 i = 0; i < PAIRS; i++) x[i].x *= factor, x[i].y *= factor;
    }
  }
  u16 *to;
  if (is_query) {
    if (args.scales) {
#pragma unroll
      for (u32 i = 0; i < PAIRS; i++) x[i].x *= args.scales[row], x[i].y *= args.scales[row];
    }
    u64 at = ((u64)row * args.heads + head) * HEAD_DIM;
    to = args.halves + at;
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) ((float2 *)(args.queries + at))[lane * PAIRS + i] = x[i];
  } else {
    u64 plane = ((u64)args.layer * args.kv_heads + kv_head) * 2 + is_value;
    to = (u16 *)args.pages[row] + (plane * 64 + args.offsets[row]) * HEAD_DIM;
  }
#pragma unroll
  for (u32 i = 0; i < PAIRS; i++) ((u32 *)to)[lane * PAIRS + i] = bf16_pack(x[i].x, x[i].y);
}
