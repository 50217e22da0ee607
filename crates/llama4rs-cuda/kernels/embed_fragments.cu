// out[t] = table[ids[t]]: rows of a matrix in fragment order (fragments.cuh) as single precision.
//
// Launch: a block of 256 threads a token; a thread takes one input at a time.
// Bytes: words of 4 bytes of which 2 to 4 codes are used, `4 * cols` written.

// Compiled with -DFORMAT=, -DGROUP= (0 for bf16).
KERNEL(256) embed_fragments(float *out, const u8 *codes, const u32 *scales, const u32 *ids, u32 cols, u32 tiles) {
  begin_launch();
  u32 id = ids[blockIdx.x], panel = id / PANEL, g = id % 8, upper = id % PANEL / 8;
  const u8 *blocks = codes + (u64)panel * tiles * TILE_BLOCKS * BLOCK_BYTES<FORMAT>;
  float *row = out + (u64)blockIdx.x * cols;
  for (u32 col = threadIdx.x; col < cols; col += 256) {
    // The step, lane and place among the lane's four inputs: k(s, t) of fragments.cuh.
    u32 within = col % BLOCK_COLS, s = within / 32 * 2 + within % 8 / 4, t = within % 32 / 8, k = col % 4;
    const u8 *block = blocks + (u64)(col / BLOCK_COLS) * BLOCK_BYTES<FORMAT> + (g * 4 + t) * 16;
    float value;
    if constexpr (FORMAT == BF16) {
      u32 word = *(const u32 *)(block + s * 512 + (k / 2 * 2 + upper) * 4);
      value = k % 2 ? bf16_high(word) : bf16_low(word);
    } else if constexpr (FORMAT == INT8) {
      u32 word = *(const u32 *)(block + s / 2 * 512 + (s % 2 * 2 + upper) * 4);
      value = (float)(i8)(word >> (k % 2 * 16 + k / 2 * 8));
    } else {
      u32 word = *(const u32 *)(block + s * 4);
      value = (float)(i32)(word >> (k % 2 * 16 + k / 2 * 8 + upper * 4) & 15) - 8.0f;
    }
    if constexpr (GROUP > 0) {
      constexpr u32 GROUPS = TILE_GROUPS<FORMAT, GROUP>;
      u32 pair = scales[(((u64)panel * tiles + col / TILE_COLS) * 8 + g) * GROUPS + col % TILE_COLS / (GROUP ? GROUP : 1)];
      value *= upper ? bf16_high(pair) : bf16_low(pair);
    }
    row[col] = value;
  }
}
