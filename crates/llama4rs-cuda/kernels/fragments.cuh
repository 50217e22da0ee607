// Weights in fragment order: what the matrix kernels read, made once from packed panels by repack.cu.
//
// A matrix is cut into panels of 16 rows and blocks of 64 inputs; inputs are padded to whole tiles of
// 256, so a matrix of N rows and K inputs has ceil(N/16) panels of tiles = ceil(K/256) tiles each.
//   codes  [panel][block][piece][lane] 16 bytes: int4 has 1 piece, int8 2, bf16 4
//   scales [panel][tile][g 0..7][group of the tile] u32: bf16 of row g, of row g+8 in the upper half
// A lane is 4g + t. Product step s = 0..3 of a block multiplies 16 inputs; lane t's four are
//   k(s, t) = 32(s/2) + 8t + 4(s%2) + 0..3,
// so that one 16-byte load of activations (8 bf16) serves two steps, and a group of 32 inputs two
// whole steps. A fragment's registers are {row g, k 0..1 | row g+8, k 0..1 | row g, k 2..3 | row g+8, k 2..3}.
//   int4 word s of the lane: code + 8 by nibble: g k0, g+8 k0, g k2, g+8 k2, g k1, g+8 k1, g k3, g+8 k3
//   int8 words 2s, 2s+1: rows g, g+8: two's complement bytes k0, k2, k1, k3
//   bf16 words 4s..4s+3: the fragment itself
//
// Every product of a row with an activation is summed in one order, whatever the kernel: by slices of
// the tiles (slice i of 4 has tiles [i*tiles/4, (i+1)*tiles/4)), in a slice by blocks, in a block by
// steps; the sum of a block (of half a block for groups of 32) is multiplied by the group's scale and
// added to the slice's sum with one rounding; slices are added in order. So a row's result does not
// depend on how many rows a launch has, or on which kernel ran.

constexpr u32 PANEL = 16, BLOCK_COLS = 64, TILE_COLS = 256, TILE_BLOCKS = 4, SLICES = 4;

template <int KIND> constexpr u32 PIECES = KIND == BF16 ? 4 : KIND == INT8 ? 2 : 1;
template <int KIND> constexpr u32 BLOCK_BYTES = PIECES<KIND> * 512;
// Groups in a tile; 0: no scales.
template <int KIND, int GROUP_COLS> constexpr u32 TILE_GROUPS = GROUP_COLS ? TILE_COLS / (GROUP_COLS ? GROUP_COLS : 1) : 0;

// The fragment of step s from the words that a lane holds of a block.
template <int KIND> DEVICE void decode_fragment(const uint4 (&pieces)[PIECES<KIND>], u32 s, u32 (&a)[4]) {
  if constexpr (KIND == BF16) {
    a[0] = pieces[s].x, a[1] = pieces[s].y, a[2] = pieces[s].z, a[3] = pieces[s].w;
  } else if constexpr (KIND == INT8) {
    const uint4 &piece = pieces[s / 2];
    u32 words[2] = {s % 2 ? piece.z : piece.x, s % 2 ? piece.w : piece.y};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      // 128 + low seven bits, minus 128 (or 256 where the sign bit is set).
      u32 pair = words[i % 2] >> (i / 2 * 8);
      u32 low = lop3<0xEA>(pair, 0x007F007Fu, 0x43004300u);
      u32 offset = lop3<0xEA>(pair, 0x00800080u, 0x43004300u);
      a[i] = bf16_fma2(offset, 0xBF80BF80u, low);
    }
  } else {
    const uint4 &piece = pieces[0];
    u32 word = s == 0 ? piece.x : s == 1 ? piece.y : s == 2 ? piece.z : piece.w;
#pragma unroll
    for (u32 i = 0; i < 4; i++)
      // 128 + (code + 8), minus 136.
      a[i] = bf16_fma2(lop3<0xEA>(word >> (4 * i), 0x000F000Fu, 0x43004300u), 0x3F803F80u, 0xC308C308u);
  }
}

// sum += scale * part for one fragment of results: registers 0, 1 are of row g, 2, 3 of row g+8.
DEVICE void fold(float (&sum)[4], const float (&part)[4], u32 scales) {
  sum[0] = fmaf(bf16_low(scales), part[0], sum[0]);
  sum[1] = fmaf(bf16_low(scales), part[1], sum[1]);
  sum[2] = fmaf(bf16_high(scales), part[2], sum[2]);
  sum[3] = fmaf(bf16_high(scales), part[3], sum[3]);
}

// The scales of one tile for rows g and g+8.
template <u32 GROUPS> struct TileScales {
  u32 words[GROUPS ? GROUPS : 1];
  DEVICE void load(const u32 *scales) {
    if constexpr (GROUPS == 2) {
      uint2 v = __ldg((const uint2 *)scales);
      words[0] = v.x, words[1] = v.y;
    } else {
#pragma unroll
      for (u32 i = 0; i < GROUPS; i += 4) {
        uint4 v = __ldg((const uint4 *)(scales + i));
        words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
      }
    }
  }
  // Of the half block `half` of block `block`.
  DEVICE u32 of(u32 block, u32 half) const { return words[(block * 2 + half) * GROUPS / 8]; }
};
