// Attention over pages, on tensor cores: what decode and prefill have in common.
//
// A page holds 64 tokens of one kv head as bf16 keys [64][D], then values [64][D] (exact), or as 8-bit
// codes (sealed; llama4rs-tensor/src/kv.rs draws them). A warp multiplies 16 rows of queries - query
// heads of one kv head, of one token or several - with a page: scores[rows][64 keys] in 8 tiles of 8
// keys, then out[rows][D] in D/8 tiles of 8 channels, 4 steps of 16 keys. A lane is 4g + t.
//   key in column c of key tile j:            16 (j/2) + 4 (c/2) + 2 (j%2) + c%2
//     so the four keys that lane t has of a step of 16 (columns 2t, 2t+1 of two tiles) are 4t .. 4t+3
//   channels of score step s, lane t:         32 (s/2) + 8t + 4 (s%2) + 0..3
//   channel in column c of channel tile i:    64 (i/8) + 8c + i%8
// Any such order serves, for a sum does not care; these let lanes read whole words of both forms.
//
// One definition for every number of rows, so that a row's bits depend on its position only: keys
// are taken page by page with a running maximum; every 256 keys from the first page on are a split
// with sums of its own; splits are merged in order (merge below). A page that a row does not see
// changes nothing of it.
//
// Shared memory of a page: exact rows of D/8 units of 16 bytes, unit u of row r at u ^ 4 (r%2) for keys,
// u ^ 2 (r/4%4) for values; sealed sections as stored, but units of codes swapped as copy_page says:
// every read of a warp then hits all banks.

constexpr u32 PAGE = 64, SPLIT_PAGES = 4;

// Query rows that share pages: row `row + i` sees the first `visible + i` tokens of pages[first_page..].
struct AttendItem {
  u32 row, rows, first_page, visible;
};

struct AttendArgs {
  const u16 *queries;  // [rows, heads * D] bf16
  const u64 *pages;    // where each page begins, plus 1 for sealed ones
  const AttendItem *items;
  float *out;          // [rows, heads * D]
  u16 *halves;         // the same as bf16
  float *parts;        // decode: [items][heads][splits][D + 4]: sums, maximum, sum of weights
  u32 heads, kv_heads, splits, layer;
  float scale_log2;    // scale / ln 2
  u32 ranges, range_splits; // attend_prefill_parts: how many ranges of keys, splits of each
};

template <u32 D> struct PageShape {
  static constexpr u32 EXACT = 2 * PAGE * D * 2;
  static constexpr u32 KEY_STEPS = 2 * D, KEY_CODES = 4 * D, VALUE_CENTRES = KEY_CODES + PAGE * D;
  static constexpr u32 VALUE_STEPS = VALUE_CENTRES + 2 * PAGE, VALUE_CODES = VALUE_CENTRES + 4 * PAGE;
  static constexpr u32 SEALED = VALUE_CODES + PAGE * D;
};

DEVICE bool is_sealed(u64 page) { return page & 1; }

// Starts the copy of one head of a page; tokens from `valid` on become zeros.
template <u32 D, u32 THREADS, bool SEALABLE>
DEVICE void copy_page(const AttendArgs &args, u64 page, u32 head, u32 valid, u8 *to) {
  using Shape = PageShape<D>;
  u64 place = (u64)args.layer * args.kv_heads + head;
  if (SEALABLE && is_sealed(page)) {
    const u8 *from = (const u8 *)(page - 1) + place * Shape::SEALED;
    for (u32 i = threadIdx.x; i < Shape::SEALED / 16; i += THREADS) {
      u32 at = i;
      if (i >= Shape::VALUE_CODES / 16) {
        u32 unit = i - Shape::VALUE_CODES / 16;
        at = Shape::VALUE_CODES / 16 + (unit ^ unit / 8 % 2);
      } else if (i >= Shape::KEY_CODES / 16 && i < Shape::VALUE_CENTRES / 16) {
        u32 unit = i - Shape::KEY_CODES / 16;
        at = Shape::KEY_CODES / 16 + (unit ^ unit / 8 % 4 * 2);
      }
      copy16_async(to + at * 16, from + i * 16, true);
    }
  } else {
    const u8 *from = (const u8 *)page + place * Shape::EXACT;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < PAGE * D / 8; i += THREADS) {
      u32 row = i / (D / 8), unit = i % (D / 8);
      bool inside = row < valid;
      u8 *keys = to + row * D * 2 + (unit ^ row % 2 * 4) * 16;
      u8 *values = to + Shape::EXACT / 2 + row * D * 2 + (unit ^ row / 4 % 4 * 2) * 16;
      copy16_async(keys, from + i * 16, inside);
      copy16_async(values, from + Shape::EXACT / 2 + i * 16, inside);
    }
  }
}

// 16 rows of queries as fragments.
template <u32 D> struct Queries {
  u32 a[D / 16][4];

  // Row g from `low`, row g + 8 from `high`; null: zeros.
  DEVICE void load(const u16 *low, const u16 *high, u32 t) {
#pragma unroll
    for (u32 i = 0; i < D / 32; i++) {
      uint4 v = low ? __ldg((const uint4 *)(low + i * 32 + t * 8)) : make_uint4(0, 0, 0, 0);
      uint4 w = high ? __ldg((const uint4 *)(high + i * 32 + t * 8)) : make_uint4(0, 0, 0, 0);
      a[2 * i][0] = v.x, a[2 * i][1] = w.x, a[2 * i][2] = v.y, a[2 * i][3] = w.y;
      a[2 * i + 1][0] = v.z, a[2 * i + 1][1] = w.z, a[2 * i + 1][2] = v.w, a[2 * i + 1][3] = w.w;
    }
  }

  // Multiplies by a sealed page's key steps; adds up the products with its key centres for both rows.
  DEVICE Queries scaled(const u8 *page, u32 t, float (&centre)[2]) const {
    Queries out;
    centre[0] = centre[1] = 0.0f;
#pragma unroll
    for (u32 s = 0; s < D / 16; s++) {
      u32 at = s / 2 * 32 + t * 8 + s % 2 * 4;
      uint2 centres = *(const uint2 *)(page + at * 2), steps = *(const uint2 *)(page + PageShape<D>::KEY_STEPS + at * 2);
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        u32 c = i < 2 ? centres.x : centres.y, step = i < 2 ? steps.x : steps.y;
        float low = bf16_low(a[s][i]), high = bf16_high(a[s][i]);
        centre[i % 2] = fmaf(low, f16_low(c), centre[i % 2]);
        centre[i % 2] = fmaf(high, f16_high(c), centre[i % 2]);
        out.a[s][i] = bf16_pack(low * f16_low(step), high * f16_high(step));
      }
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      centre[i] += __shfl_xor_sync(FULL_WARP, centre[i], 1);
      centre[i] += __shfl_xor_sync(FULL_WARP, centre[i], 2);
    }
    return out;
  }
};

// Four codes, each 0..255, as bf16 pairs code - 128: of bytes 0, 1 and of bytes 2, 3.
DEVICE void decode_codes(u32 word, u32 &first, u32 &second) {
  u32 pairs = __byte_perm(word, 0, 0x3120), high = pairs >> 8;
  first = bf16_fma2(lop3<0x6A>(pairs, 0x00800080u, 0x43804380u), 0xBF80BF80u, lop3<0xEA>(pairs, 0x007F007Fu, 0x43004300u));
  second = bf16_fma2(lop3<0x6A>(high, 0x00800080u, 0x43804380u), 0xBF80BF80u, lop3<0xEA>(high, 0x007F007Fu, 0x43004300u));
}

// score = queries · keys of tile j, not scaled yet.
template <u32 D>
DEVICE void exact_scores(float (&score)[4], const Queries<D> &queries, const u8 *page, u32 j, u32 g, u32 t) {
  u32 key = j / 2 * 16 + g / 2 * 4 + j % 2 * 2 + g % 2;
#pragma unroll
  for (u32 i = 0; i < D / 32; i++) {
    uint4 v = *(const uint4 *)(page + key * D * 2 + ((i * 4 + t) ^ key % 2 * 4) * 16);
    mma_bf16(score, queries.a[2 * i], v.x, v.y);
    mma_bf16(score, queries.a[2 * i + 1], v.z, v.w);
  }
}
template <u32 D>
DEVICE void sealed_scores(float (&score)[4], const Queries<D> &scaled, const u8 *page, u32 j, u32 g, u32 t) {
  u32 token = g / 2 * 4 + j % 2 * 2 + g % 2;
#pragma unroll
  for (u32 s = 0; s < D / 16; s++) {
    u32 line = j / 2 * (D / 4) + s / 2 * 8 + t * 2 + s % 2, unit = (line * 4 + token / 4) ^ t * 2, b0, b1;
    decode_codes(*(const u32 *)(page + PageShape<D>::KEY_CODES + unit * 16 + token % 4 * 4), b0, b1);
    mma_bf16(score, scaled.a[s], b0, b1);
  }
}

// Scales the scores of tile j and hides keys that the rows do not see: row g sees `visible[0]` keys of
// the page, row g + 8 `visible[1]`.
DEVICE void scale_and_mask(float (&score)[4], u32 j, u32 t, float scale_log2, const u32 (&visible)[2]) {
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    u32 key = j / 2 * 16 + t * 4 + j % 2 * 2 + i % 2;
    score[i] = key < visible[i / 2] ? score[i] * scale_log2 : -infinity();
  }
}

// What 16 rows have summed up in a split: TILES tiles of channels.
template <u32 TILES> struct Sums {
  float out[TILES][4], weight[4];
  float centre[2]; // this lane's share of the products with value centres
  float maximum[2];

  DEVICE void clear() {
#pragma unroll
    for (u32 i = 0; i < TILES; i++) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
    weight[0] = weight[1] = weight[2] = weight[3] = 0.0f;
    centre[0] = centre[1] = 0.0f;
    maximum[0] = maximum[1] = -infinity();
  }

  // Takes over larger maxima, which the lanes of a row agree on; what exponents are taken against.
  DEVICE void raise(const float (&largest)[2], float (&against)[2]) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      float next = fmaxf(maximum[i], largest[i]);
      against[i] = next == -infinity() ? 0.0f : next;
      float factor = exp2_fast(maximum[i] - against[i]);
      maximum[i] = next;
      centre[i] *= factor;
      weight[2 * i] *= factor, weight[2 * i + 1] *= factor;
#pragma unroll
      for (u32 n = 0; n < TILES; n++) out[n][2 * i] *= factor, out[n][2 * i + 1] *= factor;
    }
  }

  // Adds `weights` (a step of 16 keys) times the values of channel tiles first, first + 1, .., which are
  // `first` .. `first + TILES - 1` of all.
  template <u32 D, bool SEALED> DEVICE void add(const u32 (&weights)[4], const u8 *page, u32 step, u32 first, u32 g, u32 t) {
    mma_bf16(weight, weights, 0x3F803F80u, 0x3F803F80u);
    u32 scaled[4] = {weights[0], weights[1], weights[2], weights[3]};
    if constexpr (SEALED) {
      u32 at = (step * 16 + t * 4) * 2;
      uint2 centres = *(const uint2 *)(page + PageShape<D>::VALUE_CENTRES + at), steps = *(const uint2 *)(page + PageShape<D>::VALUE_STEPS + at);
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        u32 c = i < 2 ? centres.x : centres.y, s = i < 2 ? steps.x : steps.y;
        float low = bf16_low(weights[i]), high = bf16_high(weights[i]);
        centre[i % 2] = fmaf(low, f16_low(c), centre[i % 2]);
        centre[i % 2] = fmaf(high, f16_high(c), centre[i % 2]);
        scaled[i] = bf16_pack(low * f16_low(s), high * f16_high(s));
      }
    }
    uint4 both[4];
    // Four tiles are 4 neighbouring channels in each column.
#pragma unroll
    for (u32 n = 0; n < TILES; n += 4) {
      u32 tile = first + n, half = tile / 8, quarter = tile / 4 % 2;
      if constexpr (SEALED) {
        u32 line = (half * 4 + g / 2) * (PAGE / 4) + step * 4 + t, unit = (line * 4 + g % 2 * 2 + quarter) ^ line / 2 % 2;
        uint4 v = *(const uint4 *)(page + PageShape<D>::VALUE_CODES + unit * 16);
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
          u32 b0, b1;
          decode_codes(words[i], b0, b1);
          mma_bf16(out[n + i], scaled, b0, b1);
        }
      } else {
        // A warp with whole halves of the channels reads both quarters at once: 16 bytes a lane hit all banks.
        uint2 v[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
          u32 key = step * 16 + t * 4 + i;
          const u8 *unit = page + PageShape<D>::EXACT / 2 + key * D * 2 + ((half * 8 + g) ^ t * 2) * 16;
          if constexpr (TILES % 8 == 0) {
            if (quarter == 0) both[i] = *(const uint4 *)unit;
            v[i] = quarter ? make_uint2(both[i].z, both[i].w) : make_uint2(both[i].x, both[i].y);
          } else {
            v[i] = *(const uint2 *)(unit + quarter * 8);
          }
        }
        mma_bf16(out[n], scaled, __byte_perm(v[0].x, v[1].x, 0x5410), __byte_perm(v[2].x, v[3].x, 0x5410));
        mma_bf16(out[n + 1], scaled, __byte_perm(v[0].x, v[1].x, 0x7632), __byte_perm(v[2].x, v[3].x, 0x7632));
        mma_bf16(out[n + 2], scaled, __byte_perm(v[0].y, v[1].y, 0x5410), __byte_perm(v[2].y, v[3].y, 0x5410));
        mma_bf16(out[n + 3], scaled, __byte_perm(v[0].y, v[1].y, 0x7632), __byte_perm(v[2].y, v[3].y, 0x7632));
      }
    }
  }

  // Ends a split: the products with value centres count for every channel.
  DEVICE void close() {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      float sum = centre[i];
      sum += __shfl_xor_sync(FULL_WARP, sum, 1);
      sum += __shfl_xor_sync(FULL_WARP, sum, 2);
#pragma unroll
      for (u32 n = 0; n < TILES; n++) out[n][2 * i] += sum, out[n][2 * i + 1] += sum;
    }
  }
};

// Merging a split into what was before: all = all * before + split * now.
struct Merge {
  float maximum, before, now;
  DEVICE Merge(float maximum_before, float maximum_of_split) {
    maximum = fmaxf(maximum_before, maximum_of_split);
    float against = maximum == -infinity() ? 0.0f : maximum;
    before = exp2_fast(maximum_before - against), now = exp2_fast(maximum_of_split - against);
  }
  DEVICE float operator()(float all, float split) const { return fmaf(split, now, all * before); }
};
