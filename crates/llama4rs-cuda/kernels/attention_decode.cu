// Attention of single rows over many pages: the keys of a row are cut into splits, which run side by side;
// limited by reading the pages.
//
// Layouts: attention.cuh. attend_decode: splits x kv heads x items blocks of 128 threads, one row an item, later
// and so longer splits first. A warp takes every fourth page of its split alone: its pages come through two
// slots of its own, keys through the first, values through the second, in halves if the page is exact. What
// four pages sum up is merged, page by page, into columns of four channels that the threads hold. Query heads
// of a kv head are the rows: at most 8 ROW_TILES.
// The last block of a row and kv head to finish, which its ticket tells, merges the splits in their order and leaves the
// ticket at zero; a row with one split needs no ticket.
// attend_decode_merge: kv heads x items blocks of 128 threads merge what attend_prefill_parts left.
// Shared memory (dynamic): SLOTS bytes, 544 * D.
// Bytes: every page of every row once for each kv head, and (D + 4) * 4 for each split and head, twice.
// Operations: 4 * D * keys * heads, eight or sixteen rows computed whatever the heads.
// Compiled with -DHEAD_DIM= (64 or 128), -DROW_TILES= (1 or 2), -DSEALED_PAGES= (1: a pool with int8 codes).

constexpr u32 D = HEAD_DIM, TILES = ROW_TILES, WARPS = 4, THREADS = WARPS * WARP;
constexpr bool SEALABLE = SEALED_PAGES;
// Half of an exact page's keys, or all of a sealed one's.
constexpr u32 SLOT = 68 * D, SLOTS = 2 * WARPS * SLOT;
static_assert(PageShape<D>::KEYS <= SLOT && PageShape<D>::VALUES <= SLOT && 8 * TILES * PART<D> * 4 <= SLOT, "");

// What the launch gives: two slots for each warp; the parts that are merged.
DYNAMIC_SHARED(shared);

// Four channels of a row. Thread i holds columns i, i + THREADS, ..: `row * D / 4 + channel / 4`.
struct Column {
  float4 sum;
  float maximum, weight;

  // A part, wherever it is: `channel` of its sums, maximum, sum of weights.
  DEVICE void add(const float *part, u32 channel) {
    Merge merge(maximum, part[D]);
    float4 v = *(const float4 *)(part + channel);
    maximum = merge.maximum, weight = merge(weight, part[D + 1]);
    sum = make_float4(merge(sum.x, v.x), merge(sum.y, v.y), merge(sum.z, v.z), merge(sum.w, v.w));
  }
};

struct Columns {
  static constexpr u32 COUNT = 8 * TILES * D / 4 / THREADS;
  Column column[COUNT];

  DEVICE Columns() {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) column[i] = {make_float4(0.0f, 0.0f, 0.0f, 0.0f), -infinity(), 0.0f};
  }

  // do_it(column, row, channel) for the thread's columns of `rows` rows.
  template <class Do> DEVICE void each(u32 rows, Do do_it) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
      u32 at = threadIdx.x + i * THREADS;
      if (at < rows * (D / 4)) do_it(column[i], at / (D / 4), at % (D / 4) * 4);
    }
  }

  // `count` parts of shared memory in their order, `stride` floats from one to the next.
  DEVICE void add(const float *parts, u32 count, u32 stride, u32 rows) {
#pragma unroll 1
    for (u32 i = 0; i < count; i++)
      each(rows, [&](Column &column, u32 row, u32 channel) { column.add(parts + i * stride + row * PART<D>, channel); });
  }

  DEVICE void put(const AttendArgs &args, u64 first_row, u32 rows) {
    each(rows, [&](Column &column, u32 row, u32 channel) {
      u64 at = (first_row + row) * D + channel;
      float4 v = make_float4(column.sum.x / column.weight, column.sum.y / column.weight,
                             column.sum.z / column.weight, column.sum.w / column.weight);
      *(float4 *)(args.out + at) = v;
      *(uint2 *)(args.halves + at) = make_uint2(bf16_pack(v.x, v.y), bf16_pack(v.z, v.w));
    });
  }
};

// Merges all splits of a row and kv head, which come through two halves of shared memory; `parts` are its own.
DEVICE void merge_splits(const AttendArgs &args, const float *parts, u64 first_row, u32 splits, u32 group) {
  u32 stride = group * PART<D>, most = SLOTS / 2 / (stride * 4);
  auto copy = [&](u32 first) {
    u32 units = min(most, splits - first) * stride / 4;
    u8 *to = shared + first / most % 2 * (SLOTS / 2);
    for (u32 i = threadIdx.x; i < units; i += THREADS) copy16_async(to + i * 16, parts + (u64)first * stride + i * 4, true);
  };
  copy(0);
  copy_commit();
  Columns columns;
#pragma unroll 1
  for (u32 first = 0; first < splits; first += most) {
    if (first + most < splits) copy(first + most);
    copy_commit();
    copy_wait<1>();
    __syncthreads(); // these parts are there
    columns.add((const float *)(shared + first / most % 2 * (SLOTS / 2)), min(most, splits - first), stride, group);
    __syncthreads(); // and were read
  }
  columns.put(args, first_row, group);
}

// The pages of one warp.
struct Pages {
  const AttendArgs &args;
  const AttendItem &item;
  u8 *slots; // two
  u32 head, lane;

  // Starts the copy of stage `stage` of a page: keys, then values; halves of them if it is exact.
  DEVICE void copy(u64 place, u32 page, u32 stage) const {
    using Shape = PageShape<D>;
    const u8 *from = head_of<D>(args, place, head);
    u8 *to = slots + stage % 2 * SLOT;
    if (SEALABLE && is_sealed(place)) {
      if (stage == 0) copy_sealed<D, WARP, Shape::KEY_CODES>(from, to, lane);
      else copy_sealed<D, WARP, Shape::VALUE_CODES>(from + Shape::KEYS, to, lane);
    } else {
      u32 first = stage % 2 * (PAGE / 2), seen = item.visible - page * PAGE, valid = max(seen, first) - first;
      from += stage * (Shape::EXACT_HALF / 2);
      if (stage < 2) copy_exact<D, WARP, PAGE / 2, false>(from, to, valid, lane);
      else copy_exact<D, WARP, PAGE / 2, true>(from, to, valid, lane);
    }
  }

  // The oldest copy has arrived, for all lanes.
  DEVICE void wait() const {
    copy_wait<1>();
    __syncwarp();
  }
  // All lanes have read a slot: the next copy goes there, if there is one. Every call counts as a copy.
  DEVICE void refill(u64 place, u32 page, u32 stage) const {
    __syncwarp();
    if (place) copy(place, page, stage);
    copy_commit();
  }
};

DEVICE void attend(const AttendArgs &args) {
  AttendItem item = args.items[blockIdx.z];
  u32 split = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  u32 g = lane / 4, t = lane % 4, pages = ceil_div(item.visible, PAGE);
  u32 first = split_begin(split), end = min(split_begin(split + 1), pages);
  if (first >= end) return;
  u32 group = args.heads / args.kv_heads, first_head = head * group;
  const u64 *list = args.pages + item.first_page;
  Pages own{args, item, shared + warp * 2 * SLOT, head, lane};

  u32 page = first + warp;
  u64 here = page < end ? list[page] : 0;
#pragma unroll
  for (u32 stage = 0; stage < 2; stage++) own.refill(here, page, stage);

  const u16 *row = args.queries + ((u64)item.row * args.heads + first_head) * D, *rows[TILES];
#pragma unroll
  for (u32 r = 0; r < TILES; r++) rows[r] = r * 8 + g < group ? row + (r * 8 + g) * D : nullptr;
  Queries<D, TILES> queries;
  queries.load(rows, t);
  float powers[TILES][2];
  if (SEALABLE) queries.to_f16(powers, t);

  Columns columns;
#pragma unroll 1
  for (u32 round = first; round < end; round += WARPS, page += WARPS) {
    u64 next = page + WARPS < end ? list[page + WARPS] : 0;
    if (here) {
      Scores<D, TILES> scores;
      Weights<D, TILES> weights;
      float out[D / 16][TILES][4];
      scores.clear();
      if (SEALABLE && is_sealed(here)) {
        own.wait();
        scores.add_sealed(queries, own.slots, g, t);
        own.refill(next, page + WARPS, 0);
        scores.scale(args.scale_log2, powers);
        scores.exponents();
        own.wait();
        const u8 *values = own.slots + SLOT;
        weights.of_sealed(scores, values, t);
#pragma unroll
        for (u32 n = 0; n < D / 16; n++) {
          weights.begin(out[n]);
#pragma unroll
          for (u32 s = 0; s < 4; s++) weights.add_sealed(out[n], values, s, n, g, t);
        }
      } else {
        Queries<D, TILES> as_given = queries;
        if (SEALABLE) as_given.load(rows, t);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
          own.wait();
#pragma unroll
          for (u32 i = 0; i < 2; i++)
            scores.add_exact(as_given, own.slots + half * SLOT + i * 16 * PageShape<D>::ROW, half * 2 + i, g, t);
          own.refill(here, page, 2 + half);
        }
        scores.scale(args.scale_log2);
        u32 seen = item.visible - page * PAGE, visible[TILES][2];
#pragma unroll
        for (u32 r = 0; r < TILES; r++) visible[r][0] = visible[r][1] = seen;
        if (seen < PAGE) scores.hide(visible, g);
        scores.exponents();
        weights.of_exact(scores);
#pragma unroll
        for (u32 n = 0; n < D / 16; n++) weights.begin(out[n]);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
          own.wait();
          const u8 *values = own.slots + half * SLOT;
#pragma unroll
          for (u32 n = 0; n < D / 16; n++)
#pragma unroll
            for (u32 i = 0; i < 2; i++)
              weights.add_exact(out[n], values + i * 16 * PageShape<D>::ROW, half * 2 + i, n, lane);
          if (half == 0) own.refill(next, page + WARPS, 0);
        }
      }
      // Where the values were.
      __syncwarp();
#pragma unroll
      for (u32 r = 0; r < TILES; r++)
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
          u32 of_head = r * 8 + t * 2 + i;
          if (of_head >= group) continue;
          float *part = (float *)(shared + constant(warp * 2 * SLOT + SLOT + of_head * PART<D> * 4 + g * 4));
#pragma unroll
          for (u32 n = 0; n < D / 16; n++) part[n * 16] = out[n][r][i], part[n * 16 + 8] = out[n][r][i + 2];
          if (g == 0) *(float2 *)(part + D) = make_float2(scores.maximum[r][i], weights.sum[r][i]);
        }
    }
    __syncthreads(); // the parts of up to four pages are there
    columns.add((const float *)(shared + SLOT), min(WARPS, end - round), 2 * SLOT / 4, group);
    __syncthreads(); // and were read
    own.refill(next, page + WARPS, 1);
    here = next;
  }
  copy_wait<0>();

  u64 first_row = (u64)item.row * args.heads + first_head, place = (u64)blockIdx.z * args.kv_heads + head;
  u32 splits = splits_before(pages);
  if (splits == 1) {
    columns.put(args, first_row, group);
    return;
  }
  float *parts = args.parts + place * args.splits * group * PART<D>;
  columns.each(group, [&](Column &column, u32 row, u32 channel) {
    float *part = parts + (split * group + row) * PART<D>;
    *(float4 *)(part + channel) = column.sum;
    if (channel == 0) *(float4 *)(part + D) = make_float4(column.maximum, column.weight, 0.0f, 0.0f);
  });
  if (!is_last_block(args.tickets + place, splits)) return;
  merge_splits(args, parts, first_row, splits, group);
}

KERNEL_OCCUPANCY(THREADS, TILES == 1 ? 3 : 2) attend_decode(const __grid_constant__ AttendArgs args) { begin_launch(); attend(args); }

KERNEL(THREADS) attend_decode_merge(const __grid_constant__ AttendArgs args) {
  begin_launch();
  AttendItem item = args.items[blockIdx.y];
  u32 head = blockIdx.x, group = args.heads / args.kv_heads;
  const float *parts = args.parts + ((u64)blockIdx.y * args.kv_heads + head) * args.splits * group * PART<D>;
  merge_splits(args, parts, (u64)item.row * args.heads + head * group, splits_before(ceil_div(item.visible, PAGE)), group);
}
