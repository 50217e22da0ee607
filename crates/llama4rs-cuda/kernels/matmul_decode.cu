// Few tokens: out = x · Wᵀ for up to 8 * TILES tokens a tile, limited by reading the weights once.
//
// x [x rows, K] bf16, weights in fragment order (fragments.cuh), jobs and token tiles: matmul.cuh.
// Launch: 128 threads; a block computes PANELS * 16 rows for one tile of 8 * TILES tokens (SWIGLU: 16
// rows of both matrices); job j has ceil(rows / rows a block) * token tiles blocks. Warp i sums slice i
// of the inputs; weights go from memory to registers, 4 (one panel of int4) or 8 loads of 16 bytes in
// flight a lane, the first ones before the launches before have ended; activations come through L1. The
// tensor core computes 16 rows x 8 tokens at once, which costs fewer instructions than multiplying one token
// on the scalar cores.
// RESIDUAL: PANELS = 1; steps of at most 8 * TILES tokens, in a mixture of at most 32.
// Bytes: the weights of the used rows once; x and the results (small). Operations: 2 * N * K * 8 * TILES.

template <int KIND, int GROUP_COLS, int PANELS, int TILES, int EPILOGUE>
DEVICE void matmul_decode(const MatmulArgs &args) {
  constexpr u32 GROUPS = TILE_GROUPS<KIND, GROUP_COLS>;
  constexpr u32 BLOCK_ROWS = EPILOGUE == SWIGLU ? PANEL : PANELS * PANEL;
  static_assert(EPILOGUE != SWIGLU || PANELS == 2, "gate and up");
  // Blocks of weights that are under way: 8 registers' worth of 16 bytes at most.
  constexpr u32 AHEAD = PANELS * PIECES<KIND> >= 8 ? 1 : PANELS * PIECES<KIND> >= 4 ? 2 : 4;
  // Of small groups there are so many that registers would run short if they were under way for long.
  constexpr bool SCALES_LATE = GROUP_COLS == 32;
  SHARED float4 parts[SLICES][PANELS * TILES][WARP];
  SHARED float factors[8 * TILES];
  SHARED u32 rows_of[8 * TILES]; // of the result
  constexpr bool ENDS = EPILOGUE == RESIDUAL;
  static_assert(!ENDS || PANELS == 1, "a block has all of a panel");
  SHARED float stream_ahead[ENDS ? 8 * TILES * PanelAhead<8 * TILES>::PITCH : 1], weights_ahead[ENDS ? PANEL : 1];
  PanelAhead<8 * TILES> panel_ahead{stream_ahead, weights_ahead};

  // Weights stay as they are, so the first ones are on their way before the launches before have ended
  // (`Gpu::may_begin_early`); only which expert's they are is told by one of these.
  bool routed = find_job(args, blockIdx.x).routed;
  if (routed) wait_for_launches_before();
  Work work;
  if (!find_work(args, blockIdx.x, BLOCK_ROWS, 8 * TILES, 0, work)) return begin_launch();
  u32 lane = threadIdx.x % WARP, slice = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  u32 tiles = ceil_div(args.cols, TILE_COLS), panels = ceil_div(work.job->rows, PANEL);

  const u8 *codes[PANELS];
  const u32 *scales[PANELS];
#pragma unroll
  for (u32 p = 0; p < PANELS; p++) {
    bool up = EPILOGUE == SWIGLU && p == 1;
    u32 panel = min(work.row_block * (BLOCK_ROWS / PANEL) + (EPILOGUE == SWIGLU ? 0 : p), panels - 1);
    codes[p] = (up ? work.up_codes : work.codes) + (u64)panel * tiles * TILE_BLOCKS * BLOCK_BYTES<KIND> + lane * 16;
    scales[p] = (up ? work.up_scales : work.scales) + ((u64)panel * tiles * 8 + g) * GROUPS;
  }
  // Columns without a token get the first one's values: nobody reads what becomes of them.
  const u16 *x[TILES];
#pragma unroll
  for (u32 n = 0; n < TILES; n++) {
    u32 token = n * 8 + g < work.count ? n * 8 + g : 0;
    x[n] = activations(args, work, token) + t * 8;
    if (slice == 0 && t == 0) rows_of[n * 8 + g] = assignment(work, token);
  }

  u32 tile = slice * tiles / SLICES, end = (slice + 1) * tiles / SLICES;
  float sums[PANELS][TILES][4] = {};
  uint4 ahead[AHEAD][PANELS][PIECES<KIND>], x_ahead[2][TILES][2];
  TileScales<GROUPS> scales_ahead[PANELS];

  // Pointers stand at `tile`; a block may lie in the next one.
#pragma unroll
  for (u32 p = 0; p < PANELS; p++) codes[p] += (u64)tile * TILE_BLOCKS * BLOCK_BYTES<KIND>, scales[p] += (u64)tile * 8 * GROUPS;
#pragma unroll
  for (u32 n = 0; n < TILES; n++) x[n] += tile * TILE_COLS;
  i32 left = (i32)(args.cols - tile * TILE_COLS) - (i32)(t * 8); // inputs from this lane's first one on
  auto load_weights = [&](u32 block) {
#pragma unroll
    for (u32 p = 0; p < PANELS; p++)
#pragma unroll
      for (u32 i = 0; i < PIECES<KIND>; i++)
        ahead[block % AHEAD][p][i] = load_stream(codes[p] + block * BLOCK_BYTES<KIND> + i * 512);
  };
  auto load_scales = [&](u32 of_tile) {
#pragma unroll
    for (u32 p = 0; p < PANELS; p++)
      if constexpr (GROUPS > 0) scales_ahead[p].load(scales[p] + of_tile * 8 * GROUPS);
  };
  auto load_x = [&](u32 block, bool checked) {
#pragma unroll
    for (u32 n = 0; n < TILES; n++)
#pragma unroll
      for (u32 half = 0; half < 2; half++) {
        u32 col = block * BLOCK_COLS + half * 32;
        bool inside = !checked || (i32)col < left;
        x_ahead[block % 2][n][half] = inside ? *(const uint4 *)(x[n] + col) : make_uint4(0, 0, 0, 0);
      }
  };
  // One tile. CHECKED: it or the next one may have fewer inputs. MORE: there is a next one.
  auto multiply = [&](auto checked, auto more) {
    constexpr bool CHECKED = decltype(checked)::VALUE, MORE = decltype(more)::VALUE;
    TileScales<GROUPS> scale[PANELS];
#pragma unroll
    for (u32 p = 0; p < PANELS; p++) scale[p] = scales_ahead[p];
    if constexpr (MORE) load_scales(1);
#pragma unroll
    for (u32 block = 0; block < TILE_BLOCKS; block++) {
#pragma unroll
      for (u32 p = 0; p < PANELS; p++) {
        float part[TILES][4];
#pragma unroll
        for (u32 s = 0; s < 4; s++) {
          bool first = s == 0 || (GROUP_COLS == 32 && s == 2);
          u32 a[4];
          decode_fragment<KIND>(ahead[block % AHEAD][p], s, a);
#pragma unroll
          for (u32 n = 0; n < TILES; n++) {
            const uint4 &v = x_ahead[block % 2][n][s / 2];
            u32 b0 = s % 2 ? v.z : v.x, b1 = s % 2 ? v.w : v.y;
            if (KIND == BF16) mma_bf16(sums[p][n], a, b0, b1);
            else if (first) mma_bf16_from_zero(part[n], a, b0, b1);
            else mma_bf16(part[n], a, b0, b1);
          }
          if constexpr (KIND != BF16) {
            if (s == 3 || (GROUP_COLS == 32 && s == 1)) {
#pragma unroll
              for (u32 n = 0; n < TILES; n++) fold(sums[p][n], part[n], scale[p].of(block, s / 2));
            }
          }
        }
      }
      // What was used makes room.
      if (block + AHEAD < TILE_BLOCKS || MORE) load_weights(block + AHEAD);
      if (block + 2 < TILE_BLOCKS || MORE) load_x(block + 2, CHECKED);
    }
#pragma unroll
    for (u32 p = 0; p < PANELS; p++) codes[p] += TILE_BLOCKS * BLOCK_BYTES<KIND>, scales[p] += 8 * GROUPS;
#pragma unroll
    for (u32 n = 0; n < TILES; n++) x[n] += TILE_COLS;
    left -= TILE_COLS;
  };

  if (tile < end) {
#pragma unroll
    for (u32 block = 0; block < AHEAD; block++) load_weights(block);
    if constexpr (!SCALES_LATE) load_scales(0);
  }
  // A block of code of its own: the compiler moves a wait in front of the loads beside it.
  if (!routed) wait_for_launches_before();
  let_next_launch_begin();
  if (tile < end) {
    if constexpr (SCALES_LATE) load_scales(0);
    load_x(0, true), load_x(1, true);
  }
  // While the first weights are on their way.
  u32 blocks = 0;
  if constexpr (ENDS) {
    // Of a mixture's panel there is a block for each tile of the shared expert and of the routed ones.
    if (args.end.tickets) blocks = ceil_div(args.tokens, 8 * TILES) + *args.num_tiles;
    else panel_ahead.start(args.end, work.row_block, work.count, work.job->rows);
  }
  for (u32 i = slice; i < work.count; i += SLICES) {
    float factor = !ENDS && args.norm.squares ? row_factor(args.norm, x_row(args, work, i), args.cols) : 1.0f;
    if (lane == 0) factors[i] = factor;
  }
  u32 whole = args.cols / TILE_COLS;
#pragma unroll 1
  for (; tile + 1 < end && tile + 2 <= whole; tile++) multiply(Flag<false>(), Flag<true>());
#pragma unroll 1
  for (; tile + 1 < end; tile++) multiply(Flag<true>(), Flag<true>());
  if (tile < end) multiply(Flag<true>(), Flag<false>());

#pragma unroll
  for (u32 p = 0; p < PANELS; p++)
#pragma unroll
    for (u32 n = 0; n < TILES; n++)
      parts[slice][p * TILES + n][lane] = make_float4(sums[p][n][0], sums[p][n][1], sums[p][n][2], sums[p][n][3]);
  if constexpr (ENDS) copy_wait<0>();
  __syncthreads();

  auto total = [&](u32 fragment, float (&sum)[4]) {
#pragma unroll
    for (u32 i = 0; i < SLICES; i++) {
      float4 w = parts[i][fragment][lane];
      sum[0] += w.x, sum[1] += w.y, sum[2] += w.z, sum[3] += w.w;
    }
  };
  bool stores = !ENDS || args.end.tickets;
  constexpr u32 FRAGMENTS = EPILOGUE == SWIGLU ? TILES : PANELS * TILES;
#pragma unroll 1
  for (u32 fragment = slice; stores && fragment < FRAGMENTS; fragment += SLICES) {
    float sum[4] = {}, up[4] = {};
    total(fragment, sum);
    if constexpr (EPILOGUE == SWIGLU) total(TILES + fragment, up);
    u32 row = work.row_block * BLOCK_ROWS + fragment / TILES * PANEL + g;
    u32 token = fragment % TILES * 8 + t * 2;
    float scale[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++)
      if (token + i < work.count) scale[i] = assignment_scale(args, work, rows_of[token + i], factors[token + i]);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      u32 n = row + i / 2 * 8;
      if (token + i % 2 < work.count && n < work.job->rows)
        finish<EPILOGUE>(work.job->out, (u64)rows_of[token + i % 2] * work.job->rows + n, sum[i], up[i], scale[i % 2]);
    }
  }
  if constexpr (ENDS) {
    PanelLane panel{work.row_block, slice * 8, args.tokens, work.job->rows};
    float x[4], w[2];
    if (stores) {
      if (!is_last_block(args.end.tickets + work.row_block, blocks) || panel.first_token >= args.tokens) return;
      add_mixture(args.end, panel, x, w);
    } else {
      if (slice >= TILES) return;
      float sum[4] = {};
      total(slice, sum);
      panel_ahead.add(args.end, panel, sum, x, w);
    }
    end_half(args.end, panel, x, w);
  }
}

// Compiled with -DFORMAT=, -DGROUP= (0 for bf16), -DFINISH=, -DROW_PANELS=.
// Five blocks a processor hold all 640 of Scout's two down projections at once on 132 processors.
KERNEL_OCCUPANCY(128, ROW_PANELS == 1 ? (FORMAT == INT4 ? 5 : 4) : 3) matmul_decode_8(const __grid_constant__ MatmulArgs args) {
  matmul_decode<FORMAT, GROUP, ROW_PANELS, 1, FINISH>(args);
}
KERNEL_OCCUPANCY(128, ROW_PANELS == 1 && GROUP != 32 ? 3 : 2) matmul_decode_16(const __grid_constant__ MatmulArgs args) {
  matmul_decode<FORMAT, GROUP, ROW_PANELS, 2, FINISH>(args);
}
