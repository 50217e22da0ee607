// Attention of many rows of a sequence over its pages, limited by the tensor cores.
//
// Layouts: attention.cuh. Launch: blocks (tiles, kv heads, items) of WARPS * 32 threads; a tile is WARPS * 16
// rows of queries: row r of an item is query head r % group of its token r / group, group being the
// query heads of a kv head. Every warp multiplies its 16 rows with each page that one of them sees.
// Shared memory (dynamic): RING pages of 4 * D * 64 bytes, and WARPS * (128 * D / 2 + 128) for merged splits.
// Later tiles see more pages, so they come first.
// attend_prefill_parts: few rows over many keys, whose tiles alone would leave most of the device idle; one
// item, blocks (tiles * ranges, kv heads), a range being the splits that begin in its share of the pages. What
// a split sums up for row i goes to parts [i], as from attend_decode, and attend_decode_merge merges it in
// the same order as here.
// Bytes: the pages a tile sees once, mostly from L2. Operations: 4 * D * keys seen, in whole pages, a row.

// Tiles of 8 rows of a warp.
constexpr u32 TILES = 2;

// What pages of a split have summed up for a warp's rows; splits in the same way.
template <u32 D> struct Sums {
  float out[D / 16][TILES][4], maximum[TILES][2], weight[TILES][2];

  DEVICE void clear() {
#pragma unroll
    for (u32 r = 0; r < TILES; r++) {
#pragma unroll
      for (u32 n = 0; n < D / 16; n++) out[n][r][0] = out[n][r][1] = out[n][r][2] = out[n][r][3] = 0.0f;
      maximum[r][0] = maximum[r][1] = -infinity();
      weight[r][0] = weight[r][1] = 0.0f;
    }
  }

  // Adds a page: tile(n, out) gives its sums of a tile of channels.
  template <class Tile> DEVICE void add(const Scores<D, TILES> &scores, const Weights<D, TILES> &weights, Tile tile) {
    float before[TILES][2], now[TILES][2];
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        Merge merge(maximum[r][i], scores.maximum[r][i]);
        maximum[r][i] = merge.maximum, weight[r][i] = merge(weight[r][i], weights.sum[r][i]);
        before[r][i] = merge.before, now[r][i] = merge.now;
      }
#pragma unroll
    for (u32 n = 0; n < D / 16; n++) {
      float page[TILES][4];
      weights.begin(page);
      tile(n, page);
#pragma unroll
      for (u32 r = 0; r < TILES; r++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) out[n][r][i] = fmaf(page[r][i], now[r][i % 2], out[n][r][i] * before[r][i % 2]);
    }
  }
};

template <u32 D, u32 WARPS, u32 RING, bool SEALABLE, bool PARTS> DEVICE void prefill(const AttendArgs &args) {
  using Shape = PageShape<D>;
  constexpr u32 ROWS = WARPS * 16, THREADS = WARPS * WARP, PAGE_BYTES = 2 * Shape::EXACT_HALF;
  DYNAMIC_SHARED(shared);
  AttendItem item = args.items[blockIdx.z];
  u32 head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  u32 group = args.heads / args.kv_heads, rows = item.rows * group;
  u32 tile = gridDim.x - 1 - blockIdx.x, range = 0;
  if (PARTS) range = blockIdx.x % args.ranges, tile = blockIdx.x / args.ranges;
  if (tile * ROWS >= rows) return;
  u32 last_row = min(tile * ROWS + ROWS, rows) - 1;
  u32 keys = item.visible + last_row / group; // that some row sees
  u32 first = 0, pages = ceil_div(keys, PAGE);
  if (PARTS) {
    u64 all = ceil_div(item.visible + item.rows - 1, PAGE);
    first = split_begin(splits_before((u32)(all * range / args.ranges)));
    pages = min(pages, split_begin(splits_before((u32)(all * (range + 1) / args.ranges))));
  }
  if (first >= pages) return;
  // The last row of this warp decides which pages it must look at, its first which it sees whole; a warp without
  // rows looks at none.
  u32 warp_first = tile * ROWS + warp * 16;
  u32 warp_pages = warp_first < rows ? ceil_div(item.visible + min(warp_first + 15, rows - 1) / group, PAGE) : 0;
  u32 seen_by_all = item.visible + warp_first / group;

  auto copy = [&](u32 page) {
    u64 place = args.pages[item.first_page + page];
    const u8 *from = head_of<D>(args, place, head);
    u8 *to = shared + page % RING * PAGE_BYTES;
    if (SEALABLE && is_sealed(place)) {
      copy_sealed<D, THREADS, Shape::KEY_CODES>(from, to, threadIdx.x);
      copy_sealed<D, THREADS, Shape::VALUE_CODES>(from + Shape::KEYS, to + Shape::KEYS, threadIdx.x);
    } else {
      copy_exact<D, THREADS, PAGE, false>(from, to, keys - page * PAGE, threadIdx.x);
      copy_exact<D, THREADS, PAGE, true>(from + Shape::EXACT_HALF, to + Shape::EXACT_HALF, keys - page * PAGE, threadIdx.x);
    }
  };
#pragma unroll
  for (u32 i = 0; i < RING - 1; i++) {
    if (first + i < pages) copy(first + i);
    copy_commit();
  }
  // Where row 8r + i of this warp is among the queries and results.
  auto place_of = [&](u32 r, u32 i) {
    u32 row = warp_first + r * 8 + i;
    return ((u64)(item.row + row / group) * args.heads + head * group + row % group) * D;
  };
  auto is_row = [&](u32 r, u32 i) { return warp_first + r * 8 + i < rows; };
  auto sees = [&](u32 r, u32 i) { return is_row(r, i) ? item.visible + (warp_first + r * 8 + i) / group : 0; };
  Queries<D, TILES> queries;
  auto load_queries = [&](Queries<D, TILES> &to) {
    const u16 *from[TILES];
#pragma unroll
    for (u32 r = 0; r < TILES; r++) from[r] = is_row(r, g) ? args.queries + place_of(r, g) : nullptr;
    to.load(from, t);
  };
  load_queries(queries);
  float powers[TILES][2];
  if (SEALABLE) queries.to_f16(powers, t);

  Sums<D> sums;
  sums.clear();
  // What the splits before have summed up: channels of each thread, and for each t maxima and sums of weights.
  float *merged = (float *)(shared + RING * PAGE_BYTES) + threadIdx.x;
  float *merged_rows = (float *)(shared + RING * PAGE_BYTES + THREADS * D / 2 * 4) + warp * 32 + t * 8;
  bool any_merged = false;
  auto leave_split = [&](u32 split) {
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        u32 row = warp_first + r * 8 + t * 2 + i;
        if (row >= rows) continue;
        u64 place = (u64)(row / group) * args.kv_heads + head;
        float *part = args.parts + ((place * args.splits + split) * group + row % group) * PART<D>;
#pragma unroll
        for (u32 n = 0; n < D / 16; n++)
          part[n * 16 + g] = sums.out[n][r][i], part[n * 16 + 8 + g] = sums.out[n][r][i + 2];
        if (g == 0) *(float4 *)(part + D) = make_float4(sums.maximum[r][i], sums.weight[r][i], 0.0f, 0.0f);
      }
    sums.clear();
  };
  auto merge_split = [&] {
#pragma unroll
    for (u32 r = 0; r < TILES; r++)
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        float2 &row = *(float2 *)(merged_rows + r * 4 + i * 2);
        float2 old = any_merged ? row : make_float2(-infinity(), 0.0f);
        Merge merge(old.x, sums.maximum[r][i]);
        __syncwarp(); // lanes with the same rows have read them
        if (g == 0) row = make_float2(merge.maximum, merge(old.y, sums.weight[r][i]));
#pragma unroll
        for (u32 n = 0; n < D / 16; n++)
#pragma unroll
          for (u32 k = i; k < 4; k += 2) {
            float &all = merged[((n * TILES + r) * 4 + k) * THREADS];
            all = merge(any_merged ? all : 0.0f, sums.out[n][r][k]);
          }
      }
    __syncwarp();
    sums.clear();
    any_merged = true;
  };

  u32 split = splits_before(first), split_end = split_begin(split + 1);
#pragma unroll 1
  for (u32 page = first; page < pages; page++) {
    copy_wait<RING - 2>();
    __syncthreads(); // the page is there, and the one before was read
    if (page + RING - 1 < pages) copy(page + RING - 1);
    copy_commit();
    if (page >= warp_pages) continue;
    if (page == split_end) {
      if constexpr (PARTS) leave_split(split);
      else merge_split();
      split++, split_end = split_begin(split + 1);
    }
    const u8 *data = shared + page % RING * PAGE_BYTES;
    Scores<D, TILES> scores;
    Weights<D, TILES> weights;
    scores.clear();
    if (SEALABLE && is_sealed(args.pages[item.first_page + page])) {
      scores.add_sealed(queries, data, g, t);
      scores.scale(args.scale_log2, powers);
      scores.exponents();
      const u8 *values = data + Shape::KEYS;
      weights.of_sealed(scores, values, t);
      sums.add(scores, weights, [&](u32 n, float (&out)[TILES][4]) {
#pragma unroll
        for (u32 s = 0; s < 4; s++) weights.add_sealed(out, values, s, n, g, t);
      });
    } else {
      Queries<D, TILES> as_given = queries;
      if (SEALABLE) load_queries(as_given);
#pragma unroll
      for (u32 m = 0; m < 4; m++) scores.add_exact(as_given, data + m * 16 * Shape::ROW, m, g, t);
      scores.scale(args.scale_log2);
      if (seen_by_all < (page + 1) * PAGE) {
        u32 before = page * PAGE, visible[TILES][2];
#pragma unroll
        for (u32 r = 0; r < TILES; r++)
#pragma unroll
          for (u32 i = 0; i < 2; i++)
            visible[r][i] = max(sees(r, t * 2 + i), before) - before;
        scores.hide(visible, g);
      }
      scores.exponents();
      weights.of_exact(scores);
      sums.add(scores, weights, [&](u32 n, float (&out)[TILES][4]) {
#pragma unroll
        for (u32 s = 0; s < 4; s++)
          weights.add_exact(out, data + Shape::EXACT_HALF + s * 16 * Shape::ROW, s, n, lane);
      });
    }
  }
  copy_wait<0>();
  if (warp_pages <= first) return;
  if constexpr (PARTS) {
    leave_split(split);
    return;
  }
  merge_split();

#pragma unroll
  for (u32 r = 0; r < TILES; r++)
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      if (!is_row(r, t * 2 + i)) continue;
      u64 at = place_of(r, t * 2 + i) + g;
      float weight = merged_rows[r * 4 + i * 2 + 1];
#pragma unroll
      for (u32 n = 0; n < D / 16; n++)
#pragma unroll
        for (u32 k = 0; k < 2; k++) {
          float v = merged[((n * TILES + r) * 4 + k * 2 + i) * THREADS] / weight;
          args.out[at + n * 16 + k * 8] = v;
          args.halves[at + n * 16 + k * 8] = f32_to_bf16(v);
        }
    }
}

// Compiled with -DHEAD_DIM= (64 or 128), -DSEALED_PAGES=, and -DPREFILL=, one kernel at a time: NVRTC needs a second for each.
#if PREFILL == 0
KERNEL_OCCUPANCY(256, 1) attend_prefill(const __grid_constant__ AttendArgs args) {
  begin_launch();
  prefill<HEAD_DIM, 8, 2, SEALED_PAGES, false>(args);
}
#elif PREFILL == 1
// For devices with less shared memory.
KERNEL_OCCUPANCY(128, 1) attend_prefill_small(const __grid_constant__ AttendArgs args) {
  begin_launch();
  prefill<HEAD_DIM, 4, 2, SEALED_PAGES, false>(args);
}
#else
KERNEL_OCCUPANCY(128, 2) attend_prefill_parts(const __grid_constant__ AttendArgs args) {
  begin_launch();
  prefill<HEAD_DIM, 4, 2, SEALED_PAGES, true>(args);
}
#endif
