// Many tokens on Hopper (sm_90a): out = x · Wᵀ in tiles of 256 rows and 128 tokens, by products of warpgroups.
//
// x [x rows, K rounded up to 256] bf16 in the order of steps (order_steps.cu), weights in fragment order
// (fragments.cuh), jobs and token tiles: matmul.cuh. What is added and in which order is as in matmul_tile.cu.
// Launch: 256 threads; job j has ceil(rows / rows a block) * (token tiles rounded up to 8) blocks, rows a
// block being 256 (SWIGLU: 128 of both matrices). Dynamic shared memory: a RING of 16 KB for each block of 64
// inputs, and 128 KB for the sums of slices.
// Each of the two warpgroups has two tiles of 64 rows (SWIGLU: gate and up of the same rows). A warp decodes its own
// 16 rows of a tile from memory into registers, as operand A, and uses them for both halves of the tokens, operand
// B. A tile's products with a half, 128 cycles of the tensor cores, are a group; while one is under way, the one
// before it is scaled and added and the next weights are decoded. The block's barrier comes when two are under way,
// and the warpgroups' groups take turns on the tensor cores, so that these do not wait at a block's end.
// Bytes: per tile 128 * K * 2 of x and 256 rows of weights, mostly from L2. Operations: 2 * N * K * tokens.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr u32 RING = 4, SPAN = 8, TOKENS = 128, X_BYTES = TOKENS * 128, HALF_BYTES = X_BYTES / 2, PREFETCH = 4;

// HALVES: how many halves of the tile have tokens.
template <int KIND, int GROUP_COLS, int EPILOGUE, int HALVES>
DEVICE void multiply_tile(const MatmulArgs &args, const Work &work, u8 *shared) {
  constexpr u32 GROUPS = TILE_GROUPS<KIND, GROUP_COLS>, FOLDS = GROUP_COLS == 32 ? 2 : 1;
  constexpr u32 PANELS = EPILOGUE == SWIGLU ? 8 : 16; // of each matrix
  u32 lane = threadIdx.x % WARP, warp = __shfl_sync(FULL_WARP, threadIdx.x / WARP, 0), g = lane / 4;
  u32 tiles = ceil_div(args.cols, TILE_COLS), panels = ceil_div(work.job->rows, PANEL), blocks = tiles * TILE_BLOCKS;

  // Where the rows of x begin, in 16 bytes. Columns without a token get the first one's values: nobody reads what
  // becomes of them.
  SHARED u32 x_rows[TOKENS];
  if (threadIdx.x < TOKENS)
    x_rows[threadIdx.x] = x_row(args, work, threadIdx.x < work.count ? threadIdx.x : 0) * (tiles * (TILE_COLS / 8));
  __syncthreads();
  // This thread copies unit threadIdx.x % 8 of 4 rows.
  u8 *x_to = shared + threadIdx.x / 8 * 128 + (threadIdx.x ^ threadIdx.x / 8) % 8 * 16;
  const u32 *x_from = x_rows + threadIdx.x / 8;
  const uint4 *x_units = (const uint4 *)args.x + threadIdx.x % 8;
  auto copy = [&](u32 block) {
    u8 *to = x_to + block % RING * X_BYTES;
    block = min(block, blocks - 1);
#pragma unroll
    for (u32 i = 0; i < 2 * HALVES; i++) copy16_async(to + i * 4096, x_units + (x_from[i * 32] + block * 8), true);
  };

  // Tile m of a warp is panel 4 m further than its first one; SWIGLU: that panel of the second matrix.
  auto panel_of_warp = [&](u32 warp) { return warp / 4 * (PANELS / 2) + warp % 4; };
  const u8 *codes[2];
  const u32 *scales[2];
#pragma unroll
  for (u32 m = 0; m < 2; m++) {
    bool up = EPILOGUE == SWIGLU && m == 1;
    u32 panel = min(work.row_block * PANELS + panel_of_warp(warp) + (EPILOGUE == SWIGLU ? 0 : m * 4), panels - 1);
    codes[m] = (up ? work.up_codes : work.codes) + (u64)panel * blocks * BLOCK_BYTES<KIND> + lane * 16;
    scales[m] = (up ? work.up_scales : work.scales) + ((u64)panel * tiles * 8 + g) * GROUPS;
  }
  uint4 ahead[PIECES<KIND>];
  u32 scale_ahead[FOLDS], scale[2][FOLDS] = {}, a[2][4][4];
  auto load = [&](u32 m, u32 block) {
    block = min(block, blocks - 1);
#pragma unroll
    for (u32 i = 0; i < PIECES<KIND>; i++)
      ahead[i] = load_stream(codes[m] + (u64)block * BLOCK_BYTES<KIND> + i * 512);
    prefetch(codes[m] + (u64)min(block + PREFETCH, blocks - 1) * BLOCK_BYTES<KIND>);
    if constexpr (GROUPS > 0)
#pragma unroll
      for (u32 i = 0; i < FOLDS; i++)
        scale_ahead[i] = __ldg(scales[m] + (u64)(block / TILE_BLOCKS) * 8 * GROUPS + block % TILE_BLOCKS * GROUPS / 4 + i);
  };
  // Nothing that uses the tile's fragments before is under way.
  auto decode = [&](u32 m, u32 next) {
#pragma unroll
    for (u32 s = 0; s < 4; s++) decode_fragment<KIND>(ahead, s, a[m][s]);
#pragma unroll
    for (u32 i = 0; i < FOLDS; i++) scale[m][i] = scale_ahead[i];
    load(1 - m, next);
  };

  float sums[2][HALVES][8][4] = {}, part[2][8][4] = {};
  // Group `c` of a block: part of the inputs fold, tile, half of the tokens.
  constexpr u32 CHUNKS = 2 * HALVES * FOLDS;
  auto start = [&](u32 c, u64 x) {
    u32 f = c % FOLDS, h = c / FOLDS % HALVES, m = c / FOLDS / HALVES;
    x += h * (HALF_BYTES / 16);
    if constexpr (KIND == BF16) start_adding_products(sums[m][h], a[m], x);
    else if constexpr (FOLDS == 2) start_products_of_half(part[c % 2], a[m][f * 2], a[m][f * 2 + 1], x + f * 4);
    else start_products(part[c % 2], a[m], x);
  };
  // Waits for a group, `another` being under way behind it.
  auto finish_group = [&](u32 c, auto another) {
    u32 f = c % FOLDS, h = c / FOLDS % HALVES, m = c / FOLDS / HALVES;
    wait_products<decltype(another)::VALUE>(KIND == BF16 ? sums[m][h] : part[c % 2]);
    if ((c + 1) % (HALVES * FOLDS) == 0) release_fragments(a[m]);
    if constexpr (KIND != BF16)
#pragma unroll
      for (u32 n = 0; n < 8; n++) fold(sums[m][h][n], part[c % 2][n], scale[m][f]);
  };

  // Sums of the slices before, each thread's own; too many for registers.
  float4 *totals = (float4 *)(shared + RING * X_BYTES) + threadIdx.x;
  auto close_slice = [&](u32 slice) {
#pragma unroll
    for (u32 i = 0; i < 2 * HALVES * 8; i++) {
      float(&sum)[4] = sums[i / 8 / HALVES][i / 8 % HALVES][i % 8];
      float4 before = slice ? totals[i * 256] : make_float4(0, 0, 0, 0);
      sum[0] = before.x + sum[0], sum[1] = before.y + sum[1], sum[2] = before.z + sum[2], sum[3] = before.w + sum[3];
      if (slice + 1 == SLICES) continue;
      totals[i * 256] = make_float4(sum[0], sum[1], sum[2], sum[3]);
      sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
    }
  };

#pragma unroll
  for (u32 i = 0; i < RING - 1; i++) copy(i), copy_commit();
  // The copies of all threads for a block are there, after which RING - 3 more are under way.
  auto arrived = [&] {
    copy_wait<RING - 3>();
    publish_to_products();
    __syncthreads();
  };
  load(0, 0);
  decode(0, 0);
  arrived();
  u32 block = 0;
#pragma unroll 1
  for (u32 slice = 0; slice < SLICES; slice++) {
    u32 end = (slice + 1) * tiles / SLICES * TILE_BLOCKS;
#pragma unroll 1
    for (; block < end; block++) {
      u64 x = swizzled_rows(shared + block % RING * X_BYTES);
#pragma unroll
      for (u32 c = 0; c < CHUNKS; c++) {
        start(c, x);
        if (c == CHUNKS / 2) {
          // Amid the block, for the next one: products go on meanwhile. All have read the block before.
          arrived();
          copy(block + RING - 1);
          copy_commit();
        }
        if (c > 0) finish_group(c - 1, Flag<true>());
        if (c == CHUNKS / 2 - 1) decode(1, block + 1);
        if (c == CHUNKS - 1) decode(0, block + 1);
      }
      finish_group(CHUNKS - 1, Flag<false>());
    }
    close_slice(slice);
  }
  copy_wait<0>();

  u32 thread = thread_anew(), first_row = (work.row_block * PANELS + panel_of_warp(thread / WARP)) * PANEL + thread % WARP / 4;
#pragma unroll
  for (u32 h = 0; h < HALVES; h++)
#pragma unroll
    for (u32 n = 0; n < 8; n++)
#pragma unroll
      for (u32 odd = 0; odd < 2; odd++) {
        u32 token = h * 64 + n * 8 + thread % 4 * 2 + odd;
        if (token >= work.count) continue;
        u32 at = assignment(work, token);
        float scale = assignment_scale(args, work, at, whole_row_factor(args.norm, x_row(args, work, token), args.cols));
#pragma unroll
        for (u32 m = 0; m < (EPILOGUE == SWIGLU ? 1 : 2); m++)
#pragma unroll
          for (u32 i = odd; i < 4; i += 2) {
            u32 row = first_row + m * 4 * PANEL + i / 2 * 8;
            if (row < work.job->rows)
              finish<EPILOGUE>(work.job->out, (u64)at * work.job->rows + row, sums[m][h][n][i], sums[1][h][n][i], scale);
          }
      }
}

// Compiled with -DFORMAT=, -DGROUP= (0 for bf16), -DFINISH=.
KERNEL_OCCUPANCY(256, 1) matmul_wgmma(const __grid_constant__ MatmulArgs args) {
  begin_launch();
  DYNAMIC_SHARED(shared);
  Work work;
  if (!find_work(args, blockIdx.x, FINISH == SWIGLU ? 128 : 256, TOKENS, SPAN, work)) return;
  if (work.count > TOKENS / 2) multiply_tile<FORMAT, GROUP, FINISH, 2>(args, work, shared);
  else multiply_tile<FORMAT, GROUP, FINISH, 1>(args, work, shared);
}
#endif
