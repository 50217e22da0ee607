// Attention of many rows of a sequence over its pages, limited by the tensor cores.
//
// Layouts: attention.cuh. Launch: blocks (tiles, kv heads, items) of WARPS * 32 threads; a tile is WARPS * 16
// rows of queries: row r of an item is query head r % group of its token r / group, group being the
// query heads of a kv head. Every warp multiplies its 16 rows with each page that one of them sees.
// Shared memory (dynamic): RING pages of 4 * D * 64 bytes, and WARPS * 32 * (D / 2 + 4) * 4 for merged splits.
// Later tiles see more pages, so they come first.
// attend_prefill_parts: few rows over many keys, whose tiles alone would leave most of the device idle; one
// item, blocks (tiles * ranges, kv heads), a range being `range_splits` splits. What a split sums up for row i
// goes to parts [i], as from attend_decode, and attend_decode_merge merges it in the same order as here.
// Bytes: the pages a tile sees once, mostly from L2. Operations: 4 * D * keys seen, in whole pages, a row.

template <u32 D, u32 WARPS, u32 RING, bool SEALABLE, bool PARTS> DEVICE void prefill(const AttendArgs &args) {
  constexpr u32 TILES = D / 8, ROWS = WARPS * 16, PART = D + 4;
  DYNAMIC_SHARED(shared);
  AttendItem item = args.items[blockIdx.z];
  u32 head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  u32 group = args.heads / args.kv_heads, rows = item.rows * group;
  u32 tile = gridDim.x - 1 - blockIdx.x, range = 0;
  if (PARTS) range = blockIdx.x % args.ranges, tile = blockIdx.x / args.ranges;
  if (tile * ROWS >= rows) return;
  u32 row[2] = {tile * ROWS + warp * 16 + g, tile * ROWS + warp * 16 + g + 8};
  u32 last_row = min(tile * ROWS + ROWS, rows) - 1;
  u32 keys = item.visible + last_row / group; // that some row sees
  u32 first = PARTS ? range * args.range_splits * SPLIT_PAGES : 0, pages = ceil_div(keys, PAGE);
  if (PARTS) pages = min(pages, first + args.range_splits * SPLIT_PAGES);
  if (first >= pages) return;
  // The last row of this warp decides which pages it must look at; a warp without rows looks at none.
  u32 warp_first = tile * ROWS + warp * 16;
  u32 warp_pages = warp_first < rows ? ceil_div(item.visible + min(warp_first + 15, rows - 1) / group, PAGE) : 0;

  auto copy = [&](u32 page) {
    copy_page<D, WARPS * WARP, SEALABLE>(args, args.pages[item.first_page + page], head, keys - page * PAGE,
                                         shared + page % RING * PageShape<D>::EXACT);
  };
#pragma unroll
  for (u32 i = 0; i < RING - 1; i++) {
    if (first + i < pages) copy(first + i);
    copy_commit();
  }
  const u16 *from[2];
  u32 sees[2];
#pragma unroll
  for (u32 i = 0; i < 2; i++) {
    u32 token = row[i] / group;
    sees[i] = row[i] < rows ? item.visible + token : 0;
    from[i] = row[i] < rows ? args.queries + ((u64)(item.row + token) * args.heads + head * group + row[i] % group) * D : nullptr;
  }
  Queries<D> queries;
  queries.load(from[0], from[1], t);

  Sums<TILES> sums;
  sums.clear();
  // What the splits before have summed up, each thread's own: rows g and g + 8.
  float *merged = (float *)(shared + RING * PageShape<D>::EXACT) + threadIdx.x;
  constexpr u32 STRIDE = WARPS * WARP;
  bool any_merged = false;
  auto leave_split = [&](u32 split) {
    sums.close();
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      if (row[i] >= rows) continue;
      u64 item_of_row = row[i] / group, of_head = head * group + row[i] % group;
      float *part = args.parts + ((item_of_row * args.heads + of_head) * args.splits + split) * PART;
#pragma unroll
      for (u32 n = 0; n < TILES; n += 4)
#pragma unroll
        for (u32 column = 0; column < 2; column++)
          *(float4 *)(part + n / 8 * 64 + t * 16 + column * 8 + n % 8) =
            make_float4(sums.out[n][2 * i + column], sums.out[n + 1][2 * i + column],
                        sums.out[n + 2][2 * i + column], sums.out[n + 3][2 * i + column]);
      if (t == 0) *(float4 *)(part + D) = make_float4(sums.maximum[i], sums.weight[2 * i], 0, 0);
    }
    sums.clear();
  };
  auto merge_split = [&] {
    sums.close();
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      float *before = merged + i * (2 * TILES + 2) * STRIDE;
      Merge merge(any_merged ? before[0] : -infinity(), sums.maximum[i]);
      auto add = [&](u32 at, float value) { before[at * STRIDE] = merge(any_merged ? before[at * STRIDE] : 0.0f, value); };
      add(1, sums.weight[2 * i]);
#pragma unroll
      for (u32 n = 0; n < TILES; n++) add(2 + 2 * n, sums.out[n][2 * i]), add(3 + 2 * n, sums.out[n][2 * i + 1]);
      before[0] = merge.maximum;
    }
    sums.clear();
    any_merged = true;
  };

#pragma unroll 1
  for (u32 page = first; page < pages; page++) {
    copy_wait<RING - 2>();
    __syncthreads(); // the page is there, and the one before was read
    if (page + RING - 1 < pages) copy(page + RING - 1);
    copy_commit();
    if (page >= warp_pages) continue;
    if (page > first && page % SPLIT_PAGES == 0) {
      if constexpr (PARTS) leave_split(page / SPLIT_PAGES - 1);
      else merge_split();
    }
    const u8 *data = shared + page % RING * PageShape<D>::EXACT;
    bool sealed = SEALABLE && is_sealed(args.pages[item.first_page + page]);
    float score[8][4] = {};
    if (sealed) {
      float centre[2];
      Queries<D> scaled = queries.scaled(data, t, centre);
#pragma unroll
      for (u32 j = 0; j < 8; j++) {
        sealed_scores<D>(score[j], scaled, data, j, g, t);
        score[j][0] += centre[0], score[j][1] += centre[0], score[j][2] += centre[1], score[j][3] += centre[1];
      }
    } else {
#pragma unroll
      for (u32 j = 0; j < 8; j++) exact_scores<D>(score[j], queries, data, j, g, t);
    }
    u32 before = page * PAGE, visible[2] = {max(sees[0], before) - before, max(sees[1], before) - before};
    float most[2] = {-infinity(), -infinity()};
#pragma unroll
    for (u32 j = 0; j < 8; j++) {
      scale_and_mask(score[j], j, t, args.scale_log2, visible);
#pragma unroll
      for (u32 i = 0; i < 4; i++) most[i / 2] = fmaxf(most[i / 2], score[j][i]);
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      most[i] = fmaxf(most[i], __shfl_xor_sync(FULL_WARP, most[i], 1));
      most[i] = fmaxf(most[i], __shfl_xor_sync(FULL_WARP, most[i], 2));
    }
    float against[2];
    sums.raise(most, against);
#pragma unroll
    for (u32 step = 0; step < 4; step++) {
      u32 a[4];
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        const float (&pair)[4] = score[2 * step + i / 2];
        a[i] = bf16_pack(exp2_fast(pair[i % 2 * 2] - against[i % 2]), exp2_fast(pair[i % 2 * 2 + 1] - against[i % 2]));
      }
      if (sealed) sums.template add<D, true>(a, data, step, 0, g, t);
      else sums.template add<D, false>(a, data, step, 0, g, t);
    }
  }
  copy_wait<0>();
  if (warp_pages <= first) return;
  if constexpr (PARTS) {
    leave_split((min(warp_pages, pages) - 1) / SPLIT_PAGES);
    return;
  }
  merge_split();

#pragma unroll
  for (u32 i = 0; i < 2; i++) {
    if (row[i] >= rows) continue;
    const float *all = merged + i * (2 * TILES + 2) * STRIDE;
    u64 at = ((u64)(item.row + row[i] / group) * args.heads + head * group + row[i] % group) * D;
#pragma unroll
    for (u32 n = 0; n < TILES; n += 4)
#pragma unroll
      for (u32 column = 0; column < 2; column++) {
        u64 channel = at + n / 8 * 64 + t * 16 + column * 8 + n % 8;
        float v[4];
#pragma unroll
        for (u32 k = 0; k < 4; k++) v[k] = all[(2 + 2 * (n + k) + column) * STRIDE] / all[STRIDE];
        *(float4 *)(args.out + channel) = make_float4(v[0], v[1], v[2], v[3]);
        *(uint2 *)(args.halves + channel) = make_uint2(bf16_pack(v[0], v[1]), bf16_pack(v[2], v[3]));
      }
  }
}

// Compiled with -DHEAD_DIM= (64 or 128), -DSEALED_PAGES=.
KERNEL_OCCUPANCY(256, 1) attend_prefill(const __grid_constant__ AttendArgs args) {
  prefill<HEAD_DIM, 8, 2, SEALED_PAGES, false>(args);
}
// For devices with less shared memory.
KERNEL_OCCUPANCY(128, 1) attend_prefill_small(const __grid_constant__ AttendArgs args) {
  prefill<HEAD_DIM, 4, 2, SEALED_PAGES, false>(args);
}
KERNEL_OCCUPANCY(128, 2) attend_prefill_parts(const __grid_constant__ AttendArgs args) {
  prefill<HEAD_DIM, 4, 2, SEALED_PAGES, true>(args);
}
