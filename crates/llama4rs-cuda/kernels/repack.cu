// Packed panels (docs/format.md) to fragment order (fragments.cuh), once when a model is loaded.
//
// source: matrices of `panels` panels, each `panel_bytes` long: lines of 16 words, then scales
// [group][16 rows] bf16 at `code_bytes`; `groups` and `lines` count what the source has, the rest of
// the last tile becomes zero weights.
// Launch: repack_<format>: one thread for 16 bytes of codes, repack_scales: one for a word of scales;
// blocks of 256. Each byte is read and written once (int4 lines twice, from L1).

DEVICE u32 line_word(const u8 *panel, u32 lines, u32 line, u32 row, u32 zero) {
  return line < lines ? __ldg((const u32 *)panel + line * 16 + row) : zero;
}

template <int KIND>
DEVICE void repack(uint4 *target, const u8 *source, u64 pieces, u32 tiles, u64 panel_bytes, u32 lines) {
  u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= pieces) return;
  u32 lane = index % 32, piece = index / 32 % PIECES<KIND>;
  u64 block_index = index / (32 * PIECES<KIND>);
  u32 block = block_index % (tiles * TILE_BLOCKS), g = lane / 4, t = lane % 4;
  const u8 *panel = source + block_index / (tiles * TILE_BLOCKS) * panel_bytes;
  u32 words[4];
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    if constexpr (KIND == INT4) {
      u32 line = block * 8 + i / 2 * 4 + t, shift = i % 2 * 4;
      u32 low = line_word(panel, lines, line, g, 0x88888888u) >> shift & 0x0F0F0F0Fu;
      u32 high = line_word(panel, lines, line, g + 8, 0x88888888u) >> shift & 0x0F0F0F0Fu;
      words[i] = __byte_perm(low | high << 4, 0, 0x3120);
    } else if constexpr (KIND == INT8) {
      u32 step = piece * 2 + i / 2, line = block * 16 + step / 2 * 8 + t * 2 + step % 2;
      u32 word = line_word(panel, lines, line, g + i % 2 * 8, 0x80808080u) ^ 0x80808080u;
      words[i] = __byte_perm(word, 0, 0x3120);
    } else {
      u32 line = block * 32 + piece / 2 * 16 + t * 4 + piece % 2 * 2 + i / 2;
      words[i] = line_word(panel, lines, line, g + i % 2 * 8, 0);
    }
  }
  target[index] = make_uint4(words[0], words[1], words[2], words[3]);
}

KERNEL(256) repack_int4(uint4 *target, const u8 *source, u64 pieces, u32 tiles, u64 panel_bytes, u32 lines) {
  begin_launch();
  repack<INT4>(target, source, pieces, tiles, panel_bytes, lines);
}
KERNEL(256) repack_int8(uint4 *target, const u8 *source, u64 pieces, u32 tiles, u64 panel_bytes, u32 lines) {
  begin_launch();
  repack<INT8>(target, source, pieces, tiles, panel_bytes, lines);
}
KERNEL(256) repack_bf16(uint4 *target, const u8 *source, u64 pieces, u32 tiles, u64 panel_bytes, u32 lines) {
  begin_launch();
  repack<BF16>(target, source, pieces, tiles, panel_bytes, lines);
}

KERNEL(256) repack_scales(u32 *target, const u8 *source, u64 words, u32 tile_groups, u32 tiles,
                          u64 panel_bytes, u64 code_bytes, u32 groups) {
  begin_launch();
  u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= words) return;
  u32 within = index % tile_groups, g = index / tile_groups % 8;
  u64 tile = index / (tile_groups * 8);
  u32 group = tile % tiles * tile_groups + within;
  const u16 *scales = (const u16 *)(source + tile / tiles * panel_bytes + code_bytes) + group * 16;
  target[index] = group < groups ? scales[g] | (u32)scales[g + 8] << 16 : 0;
}
