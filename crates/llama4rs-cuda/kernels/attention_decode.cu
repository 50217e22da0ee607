// Attention of single rows over many pages: the keys of a row are cut into splits of 256, which run side by
// side; limited by reading the pages.
//
// Layouts: attention.cuh. attend_splits: splits x kv heads x items blocks of 128 threads, one row an item;
// RING pages of shared memory (dynamic, RING * 4 * D * 64 bytes). Warp i scores keys 16 i .. 16 i + 15 of a page,
// and sums channels 32 i .. of all of them: the same products and sums as one warp would do alone.
// Query heads of a kv head are the rows of one product: at most 16.
// attend_merge: heads x items blocks of D threads.
// Bytes: every page of every row once for each kv head, and (D + 4) * 4 for each split and head, twice.
// Operations: 4 * D * keys * heads, sixteen rows computed whatever the heads.

constexpr u32 RING = 3;
// Floats of what a split leaves: sums, maximum, sum of weights, two that fill up.
template <u32 D> constexpr u32 PART = D + 4;

template <u32 D, bool SEALABLE> DEVICE void attend_splits(const AttendArgs &args) {
  constexpr u32 TILES = 4, WARPS_OUT = D / 8 / TILES; // channel tiles of a warp; with D = 64 two warps repeat the others' sums
  DYNAMIC_SHARED(shared);
  SHARED float largest[4][16];
  SHARED uint4 weights[4][WARP];
  AttendItem item = args.items[blockIdx.z];
  u32 split = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  u32 first = split * SPLIT_PAGES, end = min(first + SPLIT_PAGES, ceil_div(item.visible, PAGE));
  if (first >= end) return;
  u32 group = args.heads / args.kv_heads, first_head = head * group;

  auto copy = [&](u32 page) {
    copy_page<D, 128, SEALABLE>(args, args.pages[item.first_page + page], head, item.visible - page * PAGE,
                                shared + page % RING * PageShape<D>::EXACT);
  };
#pragma unroll
  for (u32 i = 0; i < RING - 1; i++) {
    if (first + i < end) copy(first + i);
    copy_commit();
  }
  Queries<D> queries;
  const u16 *row = args.queries + ((u64)item.row * args.heads + first_head) * D;
  queries.load(g < group ? row + g * D : nullptr, g + 8 < group ? row + (g + 8) * D : nullptr, t);

  Sums<TILES> sums;
  sums.clear();
#pragma unroll 1
  for (u32 page = first; page < end; page++) {
    copy_wait<RING - 2>();
    __syncthreads(); // the page is there, and the one before was read
    if (page + RING - 1 < end) copy(page + RING - 1);
    copy_commit();
    const u8 *data = shared + page % RING * PageShape<D>::EXACT;
    bool sealed = SEALABLE && is_sealed(args.pages[item.first_page + page]);
    float score[2][4] = {};
    if (sealed) {
      float centre[2];
      Queries<D> scaled = queries.scaled(data, t, centre);
#pragma unroll
      for (u32 j = 0; j < 2; j++) {
        sealed_scores<D>(score[j], scaled, data, warp * 2 + j, g, t);
        score[j][0] += centre[0], score[j][1] += centre[0], score[j][2] += centre[1], score[j][3] += centre[1];
      }
    } else {
#pragma unroll
      for (u32 j = 0; j < 2; j++) exact_scores<D>(score[j], queries, data, warp * 2 + j, g, t);
    }
    u32 seen = item.visible - page * PAGE, visible[2] = {seen, seen};
    float most[2] = {-infinity(), -infinity()};
#pragma unroll
    for (u32 j = 0; j < 2; j++) {
      scale_and_mask(score[j], warp * 2 + j, t, args.scale_log2, visible);
#pragma unroll
      for (u32 i = 0; i < 4; i++) most[i / 2] = fmaxf(most[i / 2], score[j][i]);
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      most[i] = fmaxf(most[i], __shfl_xor_sync(FULL_WARP, most[i], 1));
      most[i] = fmaxf(most[i], __shfl_xor_sync(FULL_WARP, most[i], 2));
      if (t == 0) largest[warp][g + i * 8] = most[i];
    }
    __syncthreads();
#pragma unroll
    for (u32 w = 0; w < 4; w++) most[0] = fmaxf(most[0], largest[w][g]), most[1] = fmaxf(most[1], largest[w][g + 8]);
    float against[2];
    sums.raise(most, against);
#pragma unroll
    for (u32 j = 0; j < 2; j++)
#pragma unroll
      for (u32 i = 0; i < 4; i++) score[j][i] = exp2_fast(score[j][i] - against[i / 2]);
    weights[warp][lane] = make_uint4(bf16_pack(score[0][0], score[0][1]), bf16_pack(score[0][2], score[0][3]),
                                     bf16_pack(score[1][0], score[1][1]), bf16_pack(score[1][2], score[1][3]));
    __syncthreads();
#pragma unroll
    for (u32 step = 0; step < 4; step++) {
      uint4 v = weights[step][lane];
      u32 a[4] = {v.x, v.y, v.z, v.w};
      if (sealed) sums.template add<D, true>(a, data, step, warp % WARPS_OUT * TILES, g, t);
      else sums.template add<D, false>(a, data, step, warp % WARPS_OUT * TILES, g, t);
    }
  }
  copy_wait<0>();
  sums.close();

#pragma unroll
  for (u32 i = 0; i < 2; i++) {
    u32 of_head = g + i * 8;
    if (of_head >= group || warp >= WARPS_OUT) continue;
    float *part = args.parts + (((u64)blockIdx.z * args.heads + first_head + of_head) * args.splits + split) * PART<D>;
    float4 *to = (float4 *)(part + warp / 2 * 64 + t * 16 + warp % 2 * 4);
    to[0] = make_float4(sums.out[0][2 * i], sums.out[1][2 * i], sums.out[2][2 * i], sums.out[3][2 * i]);
    to[2] = make_float4(sums.out[0][2 * i + 1], sums.out[1][2 * i + 1], sums.out[2][2 * i + 1], sums.out[3][2 * i + 1]);
    if (warp == 0 && t == 0) *(float4 *)(part + D) = make_float4(sums.maximum[i], sums.weight[2 * i], 0, 0);
  }
}

// The chain of merges is short if the parts are there: they come through a ring of MERGE_RING stages.
constexpr u32 MERGE_SPLITS = 16, MERGE_RING = 4;

template <u32 D> DEVICE void attend_merge(const AttendArgs &args) {
  constexpr u32 UNITS = PART<D> / 4; // of 16 bytes, in a part
  SHARED float parts[MERGE_RING][MERGE_SPLITS][PART<D>];
  AttendItem item = args.items[blockIdx.y];
  u32 splits = ceil_div(item.visible, PAGE * SPLIT_PAGES), channel = threadIdx.x;
  const float *from = args.parts + ((u64)blockIdx.y * args.heads + blockIdx.x) * args.splits * PART<D>;
  auto copy = [&](u32 stage) {
    u32 first = stage * MERGE_SPLITS * UNITS, units = splits * UNITS;
    for (u32 i = threadIdx.x; i < MERGE_SPLITS * UNITS; i += D)
      if (first + i < units) copy16_async(&parts[stage % MERGE_RING][0][i * 4], from + (u64)(first + i) * 4, true);
  };
  u32 stages = ceil_div(splits, MERGE_SPLITS);
#pragma unroll
  for (u32 i = 0; i < MERGE_RING - 1; i++) {
    if (i < stages) copy(i);
    copy_commit();
  }
  float maximum = -infinity(), weight = 0.0f, sum = 0.0f;
#pragma unroll 1
  for (u32 stage = 0; stage < stages; stage++) {
    copy_wait<MERGE_RING - 2>();
    __syncthreads(); // the stage is there, and the one before was read
    if (stage + MERGE_RING - 1 < stages) copy(stage + MERGE_RING - 1);
    copy_commit();
    u32 count = min(MERGE_SPLITS, splits - stage * MERGE_SPLITS);
    auto add = [&](u32 split) {
      const float *part = parts[stage % MERGE_RING][split];
      Merge merge(maximum, part[D]);
      maximum = merge.maximum, weight = merge(weight, part[D + 1]), sum = merge(sum, part[channel]);
    };
    if (count == MERGE_SPLITS) {
#pragma unroll
      for (u32 split = 0; split < MERGE_SPLITS; split++) add(split);
    } else {
#pragma unroll 1
      for (u32 split = 0; split < count; split++) add(split);
    }
  }
  copy_wait<0>();
  u64 at = ((u64)item.row * args.heads + blockIdx.x) * D + channel;
  args.out[at] = sum / weight;
  args.halves[at] = f32_to_bf16(sum / weight);
}

// Compiled with -DHEAD_DIM= (64 or 128), -DSEALED_PAGES= (1: a pool with int8 codes).
KERNEL_OCCUPANCY(128, 2) attend_decode(const __grid_constant__ AttendArgs args) {
  attend_splits<HEAD_DIM, SEALED_PAGES>(args);
}
KERNEL(HEAD_DIM) attend_decode_merge(const __grid_constant__ AttendArgs args) {
  attend_merge<HEAD_DIM>(args);
}
