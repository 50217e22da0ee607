// out[t] = table[ids[t]]: rows of a packed matrix (docs/format.md) as single precision.
// Constants: FORMAT, GROUP. One block of 256 threads a token.
// Bytes: 64-byte lines of which 4 bytes are used, `4 * cols` written.

KERNEL(256) embed(float *out, const u8 *table, const u32 *ids, u32 cols, u64 panel_bytes,
                  u64 code_bytes) {
  begin_launch();
  constexpr u32 LINE = Line<FORMAT>::COLS, SHARED_SCALE = GROUP > 0 ? GROUP : 1;
  u32 id = ids[blockIdx.x], lane = id % 16;
  const u8 *panel = table + id / 16 * panel_bytes;
  const u16 *scales = reinterpret_cast<const u16 *>(panel + code_bytes) + lane;
  float *row = out + (u64)blockIdx.x * cols;
  for (u32 line = threadIdx.x; line < ceil_div(cols, LINE); line += 256) {
    u32 word = *reinterpret_cast<const u32 *>(panel + (u64)line * 64 + lane * 4);
    float w[LINE];
    decode_word<FORMAT>(word, w);
    float scale = 1.0f;
    if constexpr (GROUP > 0) scale = bf16_to_f32(scales[line * LINE / SHARED_SCALE * 16]);
#pragma unroll
    for (u32 j = 0; j < LINE; j++)
      if (line * LINE + j < cols) row[line * LINE + j] = w[j] * scale;
  }
}
