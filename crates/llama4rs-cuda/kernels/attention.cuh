// Attention over pages, on tensor cores: what decode and prefill have in common.
//
// A page holds 64 tokens of one kv head as bf16 keys [64][D], then values [64][D] (exact), or as 8-bit
// codes (sealed; llama4rs-tensor/src/kv.rs draws them). Keys and values are the 16 rows of products, queries their
// 8 columns: scores are [64 keys][rows], in 4 tiles of 16 keys, sums [D channels][rows], in D / 16 tiles of 16
// channels and 4 steps of 16 keys. Rows - query heads of one kv head, of one token or several - come in tiles
// of 8. A lane is 4g + t, and has rows 2t, 2t + 1 of each tile of rows.
//   channels of score step s, lane t:     32 (s/2) + 8t + 4 (s%2) + 0..3
//   keys of score tile m, lane g:         exact 16m + g, + 8; sealed 32 (m/2) + 4g + 2 (m%2), + 1
//   keys of a step of sums, lane t:       exact 16s + 2t, + 1, + 8, + 9; sealed 32 (s/2) + 8t + 4 (s%2) + 0..3
//   channels of a tile n of sums, lane g: 16n + g, + 8
// Any such order serves, for a sum does not care; these let lanes read whole words of both forms.
//
// Exact pages are multiplied as bf16. Of sealed pages the codes are: as IEEE halves code - 128, which are exact,
// with queries times key steps, and weights times value steps, rounded to halves; the products with centres
// are added in single precision. Powers of two, of each row for its queries and of each page for its steps, and
// one for all weights, keep them where halves are normal numbers and products do not overflow.
//
// One definition for every number of rows, so that a row's bits depend on its position only: a page has
// its own maximum and sums; pages are merged in order into a split's, splits in order into a row's (Merge
// below). Splits begin at fixed pages. A page of finite values that a row does not see changes nothing of it.
//
// Shared memory of a page: exact rows of D/8 units of 16 bytes, unit u of row r at u ^ 4 (r%2) for keys, u ^ r%8
// for values; sealed sections as stored, but unit u of codes at u ^ 2 (u/8%4): every read of a warp then hits
// all banks.

constexpr u32 PAGE = 64;

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
  float *parts;        // [items][kv heads][splits][heads of a kv head][D + 4]: sums, maximum, sum of weights
  u32 *tickets;        // [items][kv heads]: zeros, before a launch and after it
  u32 heads, kv_heads, splits, layer;
  float scale_log2;    // scale / ln 2
  u32 ranges;          // attend_prefill_parts: how many ranges of pages
};

// Floats of what a split leaves of a row: sums, maximum, sum of weights, two that fill up.
template <u32 D> constexpr u32 PART = D + 4;

// The page at which a split begins. Splits grow where there are many: 4 pages, 8, 32, 64
// (ops/pages_attention.rs counts them, too).
DEVICE u32 split_begin(u32 split) {
  return split < 32 ? split * 4 : split < 80 ? (split - 16) * 8 : split < 128 ? (split - 64) * 32 : (split - 96) * 64;
}
// How many splits begin before a page.
DEVICE u32 splits_before(u32 page) {
  return page <= 128   ? ceil_div(page, 4)
         : page <= 512 ? ceil_div(page, 8) + 16
         : page <= 2048 ? ceil_div(page, 32) + 64
                        : ceil_div(page, 64) + 96;
}

// Bytes of one head of a page: rows of an exact one; of a sealed one keys, then values.
template <u32 D> struct PageShape {
  static constexpr u32 ROW = 2 * D, EXACT_HALF = PAGE * ROW;
  static constexpr u32 KEY_STEPS = 2 * D, KEY_CODES = 4 * D, KEYS = KEY_CODES + PAGE * D;
  static constexpr u32 VALUE_STEPS = 2 * PAGE, VALUE_CODES = 4 * PAGE, VALUES = VALUE_CODES + PAGE * D;
};

DEVICE bool is_sealed(u64 page) { return page & 1; }

// Where head `head` of a page begins.
template <u32 D> DEVICE const u8 *head_of(const AttendArgs &args, u64 page, u32 head) {
  using Shape = PageShape<D>;
  u64 place = (u64)args.layer * args.kv_heads + head;
  return is_sealed(page) ? (const u8 *)(page - 1) + place * (Shape::KEYS + Shape::VALUES)
                         : (const u8 *)page + place * (2 * Shape::EXACT_HALF);
}

// Starts the copy of the keys or values of a sealed page: PLAIN bytes of centres and steps, then codes.
template <u32 D, u32 THREADS, u32 PLAIN> DEVICE void copy_sealed(const u8 *from, u8 *to, u32 thread) {
  from = constant(from + thread * 16);
  u8 *plain = constant(to + thread * 16), *codes = constant(to + PLAIN + (thread ^ thread / 8 % 4 * 2) * 16);
#pragma unroll
  for (u32 i = 0; i < PLAIN / 16; i += THREADS)
    if (i + thread < PLAIN / 16) copy16_async(plain + i * 16, from + i * 16, true);
#pragma unroll
  for (u32 i = 0; i < PAGE * D / 16; i += THREADS) copy16_async(codes + i * 16, from + PLAIN + i * 16, true);
}

// Starts the copy of ROWS rows of an exact page's keys or values; those from `valid` on become zeros.
template <u32 D, u32 THREADS, u32 ROWS, bool VALUES>
DEVICE void copy_exact(const u8 *from, u8 *to, u32 valid, u32 thread) {
  constexpr u32 UNITS = D / 8, STRIDE = THREADS / UNITS; // rows that the threads copy at once
  u32 first = thread / UNITS, unit = thread % UNITS;
  from = constant(from + thread * 16);
#pragma unroll
  for (u32 i = 0; i < (STRIDE < 8 ? 8 / STRIDE : 1); i++) {
    u32 row = first + i * STRIDE;
    u8 *at = constant(to + row * PageShape<D>::ROW + (unit ^ (VALUES ? row % 8 : row % 2 * 4)) * 16);
#pragma unroll
    for (u32 k = 0; k < ROWS; k += max(8u, STRIDE))
      copy16_async(at + k * PageShape<D>::ROW, from + (k + i * STRIDE) * PageShape<D>::ROW, row + k < valid);
  }
}

// Tiles of 8 rows of queries as columns of products. Lanes of row g have the same g.
template <u32 D, u32 TILES> struct Queries {
  u32 b[TILES][D / 16][2];

  // Row g of each tile; null: zeros.
  DEVICE void load(const u16 *const (&from)[TILES], u32 t) {
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 j = 0; j < D / 32; j++) {
        uint4 v = from[r] ? *(const uint4 *)(from[r] + j * 32 + t * 8) : make_uint4(0, 0, 0, 0);
        b[r][2 * j][0] = v.x, b[r][2 * j][1] = v.y, b[r][2 * j + 1][0] = v.z, b[r][2 * j + 1][1] = v.w;
      }
  }

  // To IEEE halves, each row divided by the power of two that brings its largest to 2^14..2^15.
  DEVICE void to_f16(float (&powers)[TILES][2], u32 t) {
#pragma unroll
    for (u32 r = 0; r < TILES; r++) {
      float largest = 0.0f;
#pragma unroll
      for (u32 s = 0; s < D / 16; s++)
#pragma unroll
        for (u32 i = 0; i < 2; i++)
          largest = fmaxf(largest, fmaxf(fabsf(bf16_low(b[r][s][i])), fabsf(bf16_high(b[r][s][i]))));
      largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
      u32 exponent = min(254u, 268u - (__float_as_uint(largest) >> 23));
      float power = __uint_as_float(exponent << 23), inverse = __uint_as_float((254u - exponent) << 23);
#pragma unroll
      for (u32 s = 0; s < D / 16; s++)
#pragma unroll
        for (u32 i = 0; i < 2; i++)
          b[r][s][i] = f16_pack(bf16_low(b[r][s][i]) * power, bf16_high(b[r][s][i]) * power);
#pragma unroll
      for (u32 i = 0; i < 2; i++) powers[r][i] = __shfl_sync(FULL_WARP, inverse, (t * 2 + i) * 4);
    }
  }
};

// Four codes, each 0..255, as halves code - 128: of bytes 0, 1 and of bytes 2, 3. A code is the low byte of 1024 + code.
DEVICE void decode_codes(u32 word, u32 &first, u32 &second) {
  first = f16_add2(__byte_perm(word, 0x64646464u, 0x4140), 0xE480E480u);
  second = f16_add2(__byte_perm(word, 0x64646464u, 0x4342), 0xE480E480u);
}

// What a page's steps are multiplied with so that the largest becomes 1/2..1, as halves and as its exponent.
struct StepPower {
  u32 halves;
  i32 exponent;

  // Steps of which the lanes with the same t have the largest.
  DEVICE explicit StepPower(u32 largest) {
    largest = f16_max2(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
    largest = f16_max2(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
    exponent = 14 - (i32)(max(largest >> 16, largest & 0xFFFF) >> 10);
    halves = (15 + exponent) * 0x04000400u;
  }
  // 2^exponent, or its inverse.
  DEVICE float value() const { return __uint_as_float((127 + exponent) << 23); }
  DEVICE float inverse() const { return __uint_as_float((127 - exponent) << 23); }
};
DEVICE u32 largest_of(uint4 v) { return f16_max2(f16_max2(v.x, v.y), f16_max2(v.z, v.w)); }

// Products of a page's 64 keys with tiles of rows, and their weights in the sums.
template <u32 D, u32 TILES> struct Scores {
  float score[4][TILES][4]; // tile of keys; key g, then + 8: rows 2t, 2t + 1
  float centre[TILES][2];   // what the rows' products with centres add to each score of a sealed page
  float maximum[TILES][2];  // what exponents are taken against
  float step;               // what a sealed page's steps were divided by

  DEVICE void clear() {
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 m = 0; m < 4; m++) score[m][r][0] = score[m][r][1] = score[m][r][2] = score[m][r][3] = 0.0f;
  }

  // Tile m of keys: `keys` is its first row, a multiple of 16.
  DEVICE void add_exact(const Queries<D, TILES> &queries, const u8 *keys, u32 m, u32 g, u32 t) {
#pragma unroll
    for (u32 j = 0; j < D / 32; j++) {
      const u8 *at = keys + g * PageShape<D>::ROW + ((j * 4 + t) ^ g % 2 * 4) * 16;
      uint4 v = *(const uint4 *)at, w = *(const uint4 *)(at + 8 * PageShape<D>::ROW);
      u32 even[4] = {v.x, w.x, v.y, w.y}, odd[4] = {v.z, w.z, v.w, w.w};
#pragma unroll
      for (u32 r = 0; r < TILES; r++) {
        mma_bf16(score[m][r], even, queries.b[r][2 * j][0], queries.b[r][2 * j][1]);
        mma_bf16(score[m][r], odd, queries.b[r][2 * j + 1][0], queries.b[r][2 * j + 1][1]);
      }
    }
  }

  // All keys of a sealed page; queries are halves.
  DEVICE void add_sealed(const Queries<D, TILES> &queries, const u8 *keys, u32 g, u32 t) {
    using Shape = PageShape<D>;
    float centres_sum[TILES][4] = {};
    u32 largest = 0;
#pragma unroll
    for (u32 j = 0; j < D / 32; j++)
      largest = f16_max2(largest, largest_of(*(const uint4 *)(keys + Shape::KEY_STEPS + (j * 32 + t * 8) * 2)));
    StepPower power(largest);
    step = power.inverse();
#pragma unroll
    for (u32 j = 0; j < D / 32; j++) {
      const u8 *channels = keys + (j * 32 + t * 8) * 2;
      uint4 c = *(const uint4 *)channels, d = *(const uint4 *)(channels + Shape::KEY_STEPS);
      u32 centres[4] = {c.x, c.y, c.z, c.w}, steps[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        u32 every_row[4] = {centres[2 * i], centres[2 * i], centres[2 * i + 1], centres[2 * i + 1]};
        u32 scaled[TILES][2];
        u32 low = f16_mul2(steps[2 * i], power.halves), high = f16_mul2(steps[2 * i + 1], power.halves);
#pragma unroll
        for (u32 r = 0; r < TILES; r++) {
          const u32 (&q)[2] = queries.b[r][2 * j + i];
          mma_f16(centres_sum[r], every_row, q[0], q[1]);
          scaled[r][0] = f16_mul2(q[0], low), scaled[r][1] = f16_mul2(q[1], high);
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
          // Line 8j + 2t + i of the 16 tokens with token 32 half + 4g, of which this lane has four.
          u32 unit = t * 8 + ((i * 4 + g % 4) ^ t * 2);
          uint4 v = *(const uint4 *)(keys + Shape::KEY_CODES + (half * 2 + g / 4) * 16 * D + j * 512 + unit * 16);
          u32 even[4], odd[4];
          decode_codes(v.x, even[0], even[2]), decode_codes(v.y, even[1], even[3]);
          decode_codes(v.z, odd[0], odd[2]), decode_codes(v.w, odd[1], odd[3]);
#pragma unroll
          for (u32 r = 0; r < TILES; r++) {
            mma_f16(score[half * 2][r], even, scaled[r][0], scaled[r][1]);
            mma_f16(score[half * 2 + 1][r], odd, scaled[r][0], scaled[r][1]);
          }
        }
      }
    }
#pragma unroll
    for (u32 r = 0; r < TILES; r++) centre[r][0] = centres_sum[r][0], centre[r][1] = centres_sum[r][1];
  }

  // Scales scores of an exact page; of a sealed one, by what queries were divided by, too.
  DEVICE void scale(float factor) {
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 m = 0; m < 4; m++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) score[m][r][i] *= factor;
  }
  DEVICE void scale(float scale, const float (&powers)[TILES][2]) {
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        float factor = scale * powers[r][i % 2], base = centre[r][i % 2] * factor;
#pragma unroll
        for (u32 m = 0; m < 4; m++) score[m][r][i] = fmaf(score[m][r][i], factor * step, base);
      }
  }
  // Hides the keys of an exact page from `visible` on.
  DEVICE void hide(const u32 (&visible)[TILES][2], u32 g) {
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 m = 0; m < 4; m++)
#pragma unroll
        for (u32 i = 0; i < 4; i++)
          if (m * 16 + i / 2 * 8 + g >= visible[r][i % 2]) score[m][r][i] = -infinity();
  }

  // Scores to weights: the largest of a row is near 2^15.
  DEVICE void exponents() {
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        float largest = fmaxf(score[0][r][i], score[0][r][i + 2]);
#pragma unroll
        for (u32 m = 1; m < 4; m++) largest = fmaxf(largest, fmaxf(score[m][r][i], score[m][r][i + 2]));
#pragma unroll
        for (u32 lanes = 4; lanes < WARP; lanes *= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, lanes));
        maximum[r][i] = largest - 15.0f;
        float against = largest == -infinity() ? 0.0f : maximum[r][i];
#pragma unroll
        for (u32 m = 0; m < 4; m++)
          score[m][r][i] = exp2_fast(score[m][r][i] - against), score[m][r][i + 2] = exp2_fast(score[m][r][i + 2] - against);
      }
  }
};

// Weights of a page's 64 keys as columns of products, and what they come to.
template <u32 D, u32 TILES> struct Weights {
  u32 b[TILES][4][2];
  float sum[TILES][2];
  float centre[TILES][2]; // what the products with centres add to each channel

  DEVICE void of_exact(const Scores<D, TILES> &scores) {
    constexpr u32 ONES[4] = {0x3F803F80u, 0x3F803F80u, 0x3F803F80u, 0x3F803F80u};
#pragma unroll
    for (u32 r = 0; r < TILES; r++) {
      float total[4] = {};
#pragma unroll
      for (u32 s = 0; s < 4; s++) {
        const float (&p)[4] = scores.score[s][r];
        b[r][s][0] = transpose(bf16_pack(p[0], p[1])), b[r][s][1] = transpose(bf16_pack(p[2], p[3]));
        mma_bf16(total, ONES, b[r][s][0], b[r][s][1]);
      }
      sum[r][0] = total[0], sum[r][1] = total[1];
      centre[r][0] = centre[r][1] = 0.0f;
    }
  }

  // What the values' steps are divided by goes to the maxima.
  DEVICE void of_sealed(Scores<D, TILES> &scores, const u8 *values, u32 t) {
    const u8 *tokens = values + t * 16; // keys 8t .. of either half
    const uint4 *steps_at = (const uint4 *)(tokens + PageShape<D>::VALUE_STEPS);
    uint4 steps_of[2] = {steps_at[0], steps_at[4]};
    StepPower power(f16_max2(largest_of(steps_of[0]), largest_of(steps_of[1])));
    float total[TILES][4] = {};
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      uint4 c = *(const uint4 *)(tokens + half * 64), d = steps_of[half];
      u32 centres[4] = {c.x, c.y, c.z, c.w}, steps[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
      for (u32 i = 0; i < 4; i++) steps[i] = f16_mul2(steps[i], power.halves);
#pragma unroll
      for (u32 r = 0; r < TILES; r++) {
        // Of keys 4g + i to keys 8t + i, 8t + 4 + i.
        u32 pairs[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
          const float *p = scores.score[half * 2 + i / 2][r] + i % 2 * 2;
          pairs[i] = transpose(f16_pack(p[0], p[1]));
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
          u32 order = i ? 0x7632 : 0x5410;
          u32 first = __byte_perm(pairs[0], pairs[1], order), second = __byte_perm(pairs[2], pairs[3], order);
          // Rows 0..7 sum up weights, rows 8..15 their products with centres.
          u32 a[4] = {0x3C003C00u, centres[2 * i], 0x3C003C00u, centres[2 * i + 1]};
          mma_f16(total[r], a, first, second);
          b[r][half * 2 + i][0] = f16_mul2(first, steps[2 * i]), b[r][half * 2 + i][1] = f16_mul2(second, steps[2 * i + 1]);
        }
      }
    }
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        sum[r][i] = total[r][i] * power.value(), centre[r][i] = total[r][i + 2] * power.value();
        scores.maximum[r][i] -= (float)power.exponent;
      }
  }

  // Where the sums of a tile of channels begin.
  DEVICE void begin(float (&out)[TILES][4]) const {
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 i = 0; i < 4; i++) out[r][i] = centre[r][i % 2];
  }

  // Adds step s to the sums of channel tile n; `values` is the step's first row, a multiple of 16.
  DEVICE void add_exact(float (&out)[TILES][4], const u8 *values, u32 s, u32 n, u32 lane) const {
    u32 token = lane / 16 * 8 + lane % 8, a[4];
    load_matrices_transposed(a, values + token * PageShape<D>::ROW + ((n * 2 + lane / 8 % 2) ^ token % 8) * 16);
#pragma unroll
    for (u32 r = 0; r < TILES; r++) mma_bf16(out[r], a, b[r][s][0], b[r][s][1]);
  }
  DEVICE void add_sealed(float (&out)[TILES][4], const u8 *values, u32 s, u32 n, u32 g, u32 t) const {
    u32 a[4];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      // Channel 16n + 8i + g of line 8 (s/2) + 2t + s%2.
      u32 unit = t * 8 + ((s % 2 * 4 + i * 2 + g / 4) ^ t * 2);
      const u8 *at = values + PageShape<D>::VALUE_CODES + n * 1024 + s / 2 * 512 + unit * 16 + g % 4 * 4;
      decode_codes(*(const u32 *)at, a[i], a[i + 2]);
    }
#pragma unroll
    for (u32 r = 0; r < TILES; r++) mma_f16(out[r], a, b[r][s][0], b[r][s][1]);
  }
};

// Merging a part into what was before: all = all * before + part * now.
struct Merge {
  float maximum, before, now;
  DEVICE Merge(float maximum_before, float maximum_of_part) {
    maximum = fmaxf(maximum_before, maximum_of_part);
    float against = maximum == -infinity() ? 0.0f : maximum;
    before = exp2_fast(maximum_before - against), now = exp2_fast(maximum_of_part - against);
  }
  DEVICE float operator()(float all, float part) const { return fmaf(part, now, all * before); }
};
