// out = x · Wᵀ with activations in single precision and W as it is packed (docs/format.md).
//
// Constants: FORMAT, GROUP; TOKENS: rows of x that a block takes; VECTOR: 1 when cols % 8 == 0.
// Launch: panels * tiles blocks of 256 threads; a block makes 16 outputs (a panel) for TOKENS rows.
// The tiles of a panel are neighbours, so that the panel is read from memory once.
//
// Lane `l` of a warp holds rows 4(l%4) .. +3 of line l/4 of each block of 8 lines: a warp reads 512
// contiguous bytes. Line b*8 + l/4 belongs to warp b % 8; sums run down the lines, then across the
// lanes of equal l%4, then across the warps. That order does not depend on TOKENS or on other rows.
//
// Bytes: the panel once, x from the caches; 2 * 16 * cols operations a row.

constexpr u32 LINE = Line<FORMAT>::COLS;
constexpr u32 SHARED_SCALE = GROUP > 0 ? GROUP : 1; // inputs of a scale

// x[first .. first + LINE], zeros beyond cols.
DEVICE void load_inputs(float (&v)[LINE], const float *row, u32 first, u32 cols) {
  if constexpr (VECTOR && LINE % 4 == 0) {
#pragma unroll
    for (u32 j = 0; j < LINE; j += 4) {
      float4 part = *reinterpret_cast<const float4 *>(row + first + j);
      v[j] = part.x, v[j + 1] = part.y, v[j + 2] = part.z, v[j + 3] = part.w;
    }
  } else if constexpr (VECTOR && LINE == 2) {
    float2 part = *reinterpret_cast<const float2 *>(row + first);
    v[0] = part.x, v[1] = part.y;
  } else {
#pragma unroll
    for (u32 j = 0; j < LINE; j++) v[j] = first + j < cols ? row[first + j] : 0.0f;
  }
}

DEVICE void panel_product(float *out, const float *x, const u8 *panel, u32 count, u32 row0, u32 rows,
                          u32 cols, u64 code_bytes) {
  SHARED float parts[8][TOKENS][16];
  u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane % 4;
  u32 lines = ceil_div(cols, LINE);
  const uint2 *scales = reinterpret_cast<const uint2 *>(panel + code_bytes) + quad;
  float sums[TOKENS][4];
#pragma unroll
  for (u32 t = 0; t < TOKENS; t++) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = 0.0f;
#pragma unroll 2
  for (u32 line = warp * 8 + lane / 4; line < lines; line += 64) {
    uint4 words = load_stream(panel + (u64)line * 64 + quad * 16);
    float w[4][LINE], scale[4];
    decode_word<FORMAT>(words.x, w[0]);
    decode_word<FORMAT>(words.y, w[1]);
    decode_word<FORMAT>(words.z, w[2]);
    decode_word<FORMAT>(words.w, w[3]);
    if constexpr (GROUP > 0) {
      uint2 pairs = scales[line * LINE / SHARED_SCALE * 4];
      scale[0] = bf16_low(pairs.x), scale[1] = bf16_high(pairs.x);
      scale[2] = bf16_low(pairs.y), scale[3] = bf16_high(pairs.y);
    }
#pragma unroll
    for (u32 t = 0; t < TOKENS; t++) {
      float v[LINE];
      load_inputs(v, x + (u64)(t < count ? t : 0) * cols, line * LINE, cols);
#pragma unroll
      for (u32 r = 0; r < 4; r++) {
        float dot = w[r][0] * v[0];
#pragma unroll
        for (u32 j = 1; j < LINE; j++) dot = fmaf(w[r][j], v[j], dot);
        if constexpr (GROUP > 0) sums[t][r] = fmaf(dot, scale[r], sums[t][r]);
        else sums[t][r] += dot;
      }
    }
  }
#pragma unroll
  for (u32 t = 0; t < TOKENS; t++)
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
#pragma unroll
      for (u32 offset = 4; offset < WARP; offset *= 2)
        sums[t][r] += __shfl_xor_sync(FULL_WARP, sums[t][r], offset);
      if (lane < 4) parts[warp][t][quad * 4 + r] = sums[t][r];
    }
  __syncthreads();
  u32 t = threadIdx.x / 16, r = threadIdx.x % 16;
  if (t < count && row0 + r < rows) {
    float sum = 0.0f;
#pragma unroll
    for (u32 part = 0; part < 8; part++) sum += parts[part][t][r];
    out[(u64)t * rows + row0 + r] = sum;
  }
}

KERNEL(256) matmul_exact(float *out, const float *x, const u8 *weights, u32 tokens, u32 rows, u32 cols,
                         u64 panel_bytes, u64 code_bytes) {
  begin_launch();
  u32 tiles = ceil_div(tokens, TOKENS), panel = blockIdx.x / tiles;
  u32 first = blockIdx.x % tiles * TOKENS;
  panel_product(out + (u64)first * rows, x + (u64)first * cols, weights + panel * panel_bytes,
                min(tokens - first, (u32)TOKENS), panel * 16, rows, cols, code_bytes);
}

// The same with a matrix of its own for each tile: `table` holds tiles x {expert, first row, rows}
// (experts.cu), of which those without rows are skipped.
KERNEL(256) matmul_experts_exact(float *out, const float *x, const u8 *weights, const u32 *table,
                                 u32 tiles, u32 rows, u32 cols, u64 panel_bytes, u64 code_bytes) {
  begin_launch();
  u32 panel = blockIdx.x / tiles;
  const u32 *tile = table + blockIdx.x % tiles * 3;
  u64 first = tile[1];
  const u8 *matrix = weights + tile[0] * (ceil_div(rows, 16) * panel_bytes);
  // The same for all threads of the block.
  if (tile[2] > 0)
    panel_product(out + first * rows, x + first * cols, matrix + panel * panel_bytes, tile[2],
                  panel * 16, rows, cols, code_bytes);
}
