// Attention in single precision: softmax(scale * q kᵀ) v per query head.
//
// Constants: HEAD_DIM; GROUP_HEADS: query heads of a key/value head; ROWS: query rows of a block;
// KV_BF16: 1 when keys and values are bf16, else single precision; CODE_BITS: 4 or 8 when pages may
// be sealed (the layout is drawn in llama4rs-tensor/src/kv.rs), else 0.
//
// A block takes up to ROWS query rows that see the same keys, for one key/value head. It goes
// through the keys in blocks of 64, and 512 keys make a *split*. Within a split the softmax is a
// running one; splits are folded together in their order, by this block or, when the splits have a
// block each, by `fold_splits`. Both use the same operations in the same order, and a key that a
// row does not see changes nothing: a row's bits depend on its own keys alone.
//
// Bytes: keys and values once per block; 4 * HEAD_DIM operations per key and query head.

constexpr u32 THREADS = 128, KEYS = 64, SPLIT_BLOCKS = 8, SPLIT_KEYS = KEYS * SPLIT_BLOCKS;
constexpr u32 QUERIES = ROWS * GROUP_HEADS;
constexpr u32 WIDTH = (HEAD_DIM + 3) / 4 * 4, PITCH = WIDTH + 4;
constexpr u32 OUTPUTS = (HEAD_DIM + THREADS - 1) / THREADS;

#if KV_BF16
typedef u16 Element;
DEVICE float value(Element x) { return bf16_to_f32(x); }
#else
typedef float Element;
DEVICE float value(Element x) { return x; }
#endif

// A softmax-weighted sum of some keys: the largest score, the sum of exponentials, and (beside it)
// the sum of weighted values. How two such parts become one, `a` first:
struct Factors { float a, b; };
DEVICE Factors fold(float &largest, float &sum, float other_largest, float other_sum) {
  if (other_largest == -infinity()) return {1.0f, 0.0f};
  float both = fmaxf(largest, other_largest);
  Factors f = {expf(largest - both), expf(other_largest - both)};
  sum = fmaf(sum, f.a, other_sum * f.b);
  largest = both;
  return f;
}
DEVICE float folded(float a, Factors f, float b) { return fmaf(a, f.a, b * f.b); }

struct Shared {
  float keys[KEYS][PITCH];
  float queries[QUERIES][WIDTH];
  float scores[QUERIES][KEYS];
  // Of the split at hand; of all splits before; and the factors that were just computed.
  float largest[QUERIES], sum[QUERIES], all_largest[QUERIES], all_sum[QUERIES];
  Factors factors[QUERIES];
};

// Keys and values of 64 tokens: [64][HEAD_DIM], `stride` elements apart, or one head of a sealed page.
struct Block {
  const Element *keys, *values;
  u64 stride;
  const u8 *sealed;
};

#if CODE_BITS
constexpr u32 PER_WORD = 32 / CODE_BITS, SEALED_WIDTH = (HEAD_DIM + 15) / 16 * 16;
constexpr u32 KEY_CODES = 4 * SEALED_WIDTH, CODE_BYTES = KEYS * SEALED_WIDTH * CODE_BITS / 8;
constexpr u32 VALUE_SCALES = KEY_CODES + CODE_BYTES, VALUE_CODES = VALUE_SCALES + 4 * KEYS;
constexpr u32 SEALED_BYTES = VALUE_CODES + CODE_BYTES;
constexpr i32 CODE_ZERO = 1 << (CODE_BITS - 1);

// centre + step * (code - zero); the steps follow `count` centres.
DEVICE float unseal(const u8 *scales, u32 count, u32 index, u32 code) {
  const u16 *halves = reinterpret_cast<const u16 *>(scales);
  return fmaf(f16_to_f32(halves[count + index]), (float)((i32)code - CODE_ZERO),
              f16_to_f32(halves[index]));
}
// Code `i` of a word, in the order of docs: bytes first, then high nibbles.
DEVICE u32 code_of(u32 word, u32 i) {
  return word >> (i % 4 * 8 + i / 4 * 4) & ((1u << CODE_BITS) - 1);
}

DEVICE void load_sealed_keys(Shared &s, const u8 *head) {
  const u32 *words = reinterpret_cast<const u32 *>(head + KEY_CODES);
  for (u32 i = threadIdx.x; i < KEYS * SEALED_WIDTH / PER_WORD; i += THREADS) {
    u32 lane = i % 16, line = i / 16, at = line % (SEALED_WIDTH / PER_WORD) * PER_WORD;
    u32 key = line / (SEALED_WIDTH / PER_WORD) * 16 + lane;
#pragma unroll
    for (u32 j = 0; j < PER_WORD; j++)
      if (at + j < WIDTH)
        s.keys[key][at + j] = at + j < HEAD_DIM
            ? unseal(head, SEALED_WIDTH, at + j, code_of(words[i], j)) : 0.0f;
  }
}

// Channel d of the values of 4 tokens.
DEVICE void sealed_values(float (&v)[4], const u8 *head, u32 token, u32 d) {
  const u32 *words = reinterpret_cast<const u32 *>(head + VALUE_CODES);
  u32 word = words[(d / 16 * (KEYS / PER_WORD) + token / PER_WORD) * 16 + d % 16];
#pragma unroll
  for (u32 k = 0; k < 4; k++)
    v[k] = unseal(head + VALUE_SCALES, KEYS, token + k, code_of(word, token % PER_WORD + k));
}
#endif

// HEAD_DIM values, as 16-byte pieces where the rows allow it.
constexpr u32 PIECE = 16 / sizeof(Element);
constexpr bool PIECES = HEAD_DIM % PIECE == 0;

// Keys [64][HEAD_DIM], `stride` elements apart, to shared memory; rows from `count` on are skipped.
DEVICE void load_keys(Shared &s, const Element *keys, u64 stride, u32 count) {
  if constexpr (PIECES) {
    constexpr u32 PER_KEY = HEAD_DIM / PIECE;
    for (u32 i = threadIdx.x; i < count * PER_KEY; i += THREADS) {
      u32 key = i / PER_KEY, at = i % PER_KEY * PIECE;
      uint4 piece = *reinterpret_cast<const uint4 *>(keys + key * stride + at);
      u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
      float *to = &s.keys[key][at];
#pragma unroll
      for (u32 w = 0; w < 4; w++) {
#if KV_BF16
        to[2 * w] = bf16_low(words[w]), to[2 * w + 1] = bf16_high(words[w]);
#else
        to[w] = __uint_as_float(words[w]);
#endif
      }
    }
  } else {
    for (u32 i = threadIdx.x; i < count * WIDTH; i += THREADS) {
      u32 key = i / WIDTH, at = i % WIDTH;
      s.keys[key][at] = at < HEAD_DIM ? value(keys[key * stride + at]) : 0.0f;
    }
  }
}

// One block of keys: scores, the running softmax, weighted values. `count` of the keys are seen by
// the last row, `visible` by the first; `sums` are this thread's columns of every query's sum.
DEVICE void attend_block(Shared &s, float (&sums)[QUERIES][OUTPUTS], const Block &block, u32 count,
                         i32 visible, u32 step, float scale) {
#if CODE_BITS
  if (block.sealed) load_sealed_keys(s, block.sealed);
  else load_keys(s, block.keys, block.stride, count);
#else
  load_keys(s, block.keys, block.stride, count);
#endif
  __syncthreads();
  {
    constexpr u32 HALF = (QUERIES + 1) / 2;
    u32 key = threadIdx.x % KEYS, first = threadIdx.x / KEYS * HALF;
    float dots[HALF];
#pragma unroll
    for (u32 i = 0; i < HALF; i++) dots[i] = 0.0f;
    if (key < count) {
#pragma unroll 4
      for (u32 d = 0; d < WIDTH; d += 4) {
        float4 k = *reinterpret_cast<const float4 *>(&s.keys[key][d]);
#pragma unroll
        for (u32 i = 0; i < HALF; i++) {
          u32 m = min(first + i, QUERIES - 1);
          float4 q = *reinterpret_cast<const float4 *>(&s.queries[m][d]);
          dots[i] = fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, fmaf(q.w, k.w, dots[i]))));
        }
      }
    }
#pragma unroll
    for (u32 i = 0; i < HALF; i++)
      if (first + i < QUERIES) {
        i32 seen = visible + (i32)((first + i) / GROUP_HEADS * step);
        s.scores[first + i][key] =
            key < count && (i32)key < seen ? dots[i] * scale : -infinity();
      }
  }
  __syncthreads();
  for (u32 m = threadIdx.x / WARP; m < QUERIES; m += THREADS / WARP) {
    u32 lane = threadIdx.x % WARP;
    float a = s.scores[m][lane], b = s.scores[m][lane + WARP];
    float largest = s.largest[m], both = fmaxf(largest, warp_max(fmaxf(a, b)));
    // No key so far: the exponentials below must still be numbers.
    float base = both == -infinity() ? 0.0f : both;
    float before = expf(largest - base);
    a = expf(a - base), b = expf(b - base);
    float sum = warp_sum(a + b);
    __syncwarp();
    s.scores[m][lane] = a, s.scores[m][lane + WARP] = b;
    if (lane == 0) {
      s.largest[m] = both;
      s.sum[m] = fmaf(s.sum[m], before, sum);
      s.factors[m].a = before;
    }
  }
  __syncthreads();
#pragma unroll
  for (u32 o = 0; o < OUTPUTS; o++) {
    u32 d = threadIdx.x + o * THREADS;
    if (d < HEAD_DIM) {
#pragma unroll
      for (u32 m = 0; m < QUERIES; m++) sums[m][o] *= s.factors[m].a;
      for (u32 key = 0; key < count; key += 4) {
        float v[4];
#if CODE_BITS
        if (block.sealed) sealed_values(v, block.sealed, key, d);
        else
#endif
#pragma unroll
          for (u32 k = 0; k < 4; k++)
            v[k] = key + k < count ? value(block.values[(key + k) * block.stride + d]) : 0.0f;
#pragma unroll
        for (u32 m = 0; m < QUERIES; m++) {
          float4 p = *reinterpret_cast<const float4 *>(&s.scores[m][key]);
          float sum = fmaf(p.x, v[0], sums[m][o]);
          sum = fmaf(p.y, v[1], sum);
          sum = fmaf(p.z, v[2], sum);
          sums[m][o] = fmaf(p.w, v[3], sum);
        }
      }
    }
  }
  __syncthreads(); // the keys and scores have been read
}

// Rows of queries [.., heads * HEAD_DIM] to shared memory; rows from `count` on repeat the last.
DEVICE void load_queries(Shared &s, const float *q, u64 stride, u32 count) {
  for (u32 i = threadIdx.x; i < QUERIES * WIDTH; i += THREADS) {
    u32 m = i / WIDTH, d = i % WIDTH, row = min(m / GROUP_HEADS, count - 1);
    s.queries[m][d] = d < HEAD_DIM ? q[row * stride + m % GROUP_HEADS * HEAD_DIM + d] : 0.0f;
  }
}

DEVICE void begin(float *largest, float *sum) {
  for (u32 m = threadIdx.x; m < QUERIES; m += THREADS) largest[m] = -infinity(), sum[m] = 0.0f;
}

DEVICE void clear(float (&sums)[QUERIES][OUTPUTS]) {
#pragma unroll
  for (u32 m = 0; m < QUERIES; m++)
#pragma unroll
    for (u32 o = 0; o < OUTPUTS; o++) sums[m][o] = 0.0f;
}

// The keys of a split, then their fold into `all`. Row i of the block sees visible + i * step keys;
// `block_at(i)` gives keys 64i and on.
template <class BlockAt>
DEVICE void attend_split(Shared &s, float (&all)[QUERIES][OUTPUTS], BlockAt block_at, u32 split,
                         u32 visible, u32 step, u32 rows, float scale) {
  float sums[QUERIES][OUTPUTS];
  clear(sums);
  begin(s.largest, s.sum);
  u32 most = visible + (rows - 1) * step;
  u32 first = split * SPLIT_KEYS, end = min(first + SPLIT_KEYS, most);
  __syncthreads();
  for (u32 key = first; key < end; key += KEYS)
    attend_block(s, sums, block_at(key / KEYS), min(end - key, KEYS), (i32)visible - (i32)key, step,
                 scale);
  for (u32 m = threadIdx.x; m < QUERIES; m += THREADS)
    s.factors[m] = fold(s.all_largest[m], s.all_sum[m], s.largest[m], s.sum[m]);
  __syncthreads();
#pragma unroll
  for (u32 m = 0; m < QUERIES; m++)
#pragma unroll
    for (u32 o = 0; o < OUTPUTS; o++) all[m][o] = folded(all[m][o], s.factors[m], sums[m][o]);
  __syncthreads(); // the factors have been read
}

// The whole of `attend` for one block; see the kernels for the arguments.
template <class BlockAt>
DEVICE void attend_rows(float *out, const float *q, u64 row_stride, BlockAt block_at, u32 first_split,
                        u32 splits, u32 visible, u32 step, u32 rows, float scale,
                        float *partial, u64 partial_stride) {
  DYNAMIC_SHARED(memory);
  Shared &s = *reinterpret_cast<Shared *>(memory);
  load_queries(s, q, row_stride, rows);
  begin(s.all_largest, s.all_sum);
  float all[QUERIES][OUTPUTS];
  clear(all);
  for (u32 split = first_split; split < first_split + splits; split++)
    attend_split(s, all, block_at, split, visible, step, rows, scale);
#pragma unroll
  for (u32 m = 0; m < QUERIES; m++) {
    u32 row = m / GROUP_HEADS, head = m % GROUP_HEADS;
    if (row < rows) {
#pragma unroll
      for (u32 o = 0; o < OUTPUTS; o++) {
        u32 d = threadIdx.x + o * THREADS;
        if (d < HEAD_DIM) {
          if (partial == nullptr)
            out[row * row_stride + head * HEAD_DIM + d] = all[m][o] / s.all_sum[m];
          else partial[row * row_stride / HEAD_DIM * partial_stride + head * partial_stride + d] = all[m][o];
        }
      }
      if (partial != nullptr && threadIdx.x == 0) {
        float *end = partial + row * row_stride / HEAD_DIM * partial_stride + head * partial_stride;
        end[HEAD_DIM] = s.all_largest[m], end[HEAD_DIM + 1] = s.all_sum[m];
      }
    }
  }
}

// Paged keys. `tiles` holds {first page in `pages`, first row, rows, visible} of each block of rows;
// `pages` addresses, a page being [layer][kv head][key, value][64][HEAD_DIM], or sealed when its
// address is odd; row i of a tile sees visible + i keys. Launch: (tiles, kv heads, splits or 1) blocks. With `partial` each split has its
// block and writes [row][head][split]{sum of values [HEAD_DIM], largest, sum}.
KERNEL(THREADS) attend(float *out, const float *q, const u64 *pages, const u32 *tiles, u32 layer,
                       float scale, float *partial, u32 max_splits) {
  begin_launch();
  const u32 *tile = tiles + blockIdx.x * 4;
  const u64 *first_page = pages + tile[0];
  u32 rows = tile[2], visible = tile[3], kv_heads = gridDim.y, head = blockIdx.y;
  u64 place = (u64)layer * kv_heads + head;
  u64 row_stride = (u64)kv_heads * GROUP_HEADS * HEAD_DIM;
  u64 at = tile[1] * row_stride + (u64)head * GROUP_HEADS * HEAD_DIM;
  u32 splits = ceil_div(visible + rows - 1, SPLIT_KEYS), first_split = blockIdx.z;
  auto block_at = [&](u32 block) {
    u64 page = first_page[block];
#if CODE_BITS
    if (page & 1)
      return Block{nullptr, nullptr, 0, reinterpret_cast<const u8 *>(page - 1) + place * SEALED_BYTES};
#endif
    const Element *keys = reinterpret_cast<const Element *>(page) + place * 2 * KEYS * HEAD_DIM;
    return Block{keys, keys + KEYS * HEAD_DIM, HEAD_DIM, nullptr};
  };
  if (partial == nullptr) {
    attend_rows(out + at, q + at, row_stride, block_at, 0, splits, visible, 1, rows, scale,
                nullptr, 0);
  } else if (first_split < splits) {
    u64 stride = (u64)max_splits * (HEAD_DIM + 2);
    float *to = partial + at / HEAD_DIM * stride + (u64)first_split * (HEAD_DIM + 2);
    attend_rows(out + at, q + at, row_stride, block_at, first_split, 1, visible, 1, rows,
                scale, to, stride);
  }
}

// Folds the splits of a row and head in their order. Launch: (rows, heads) blocks; `visible` holds
// the keys that each row sees; a row that sees none is left alone.
KERNEL(THREADS) fold_splits(float *out, const float *partial, const u32 *visible, u32 max_splits) {
  begin_launch();
  u64 index = (u64)blockIdx.x * gridDim.y + blockIdx.y;
  const float *parts = partial + index * max_splits * (HEAD_DIM + 2);
  float largest = -infinity(), sum = 0.0f, all[OUTPUTS];
#pragma unroll
  for (u32 o = 0; o < OUTPUTS; o++) all[o] = 0.0f;
  u32 splits = ceil_div(visible[blockIdx.x], SPLIT_KEYS);
  for (u32 split = 0; split < splits; split++, parts += HEAD_DIM + 2) {
    Factors f = fold(largest, sum, parts[HEAD_DIM], parts[HEAD_DIM + 1]);
#pragma unroll
    for (u32 o = 0; o < OUTPUTS; o++) {
      u32 d = threadIdx.x + o * THREADS;
      if (d < HEAD_DIM) all[o] = folded(all[o], f, parts[d]);
    }
  }
#pragma unroll
  for (u32 o = 0; o < OUTPUTS; o++) {
    u32 d = threadIdx.x + o * THREADS;
    if (d < HEAD_DIM && splits > 0) out[index * HEAD_DIM + d] = all[o] / sum;
  }
}

#if !KV_BF16
// Attention in which the rows of a tile all see each other (GROUP_HEADS = 1): q, k, v and out are
// [tiles * tile_rows, heads * HEAD_DIM]. Launch: (tiles * ceil(tile_rows / ROWS), heads) blocks.
KERNEL(THREADS) attend_all(float *out, const float *q, const float *k, const float *v, u32 tile_rows,
                           float scale) {
  begin_launch();
  u32 parts = ceil_div(tile_rows, ROWS), tile = blockIdx.x / parts;
  u32 row = blockIdx.x % parts * ROWS;
  u64 stride = (u64)gridDim.y * HEAD_DIM, head = (u64)blockIdx.y * HEAD_DIM;
  u64 base = (u64)tile * tile_rows * stride + head, at = base + row * stride;
  auto block_at = [&](u32 block) {
    u64 keys = base + (u64)block * KEYS * stride;
    return Block{k + keys, v + keys, stride, nullptr};
  };
  attend_rows(out + at, q + at, stride, block_at, 0, ceil_div(tile_rows, SPLIT_KEYS), tile_rows,
              0, min(tile_rows - row, (u32)ROWS), scale, nullptr, 0);
}
#endif
