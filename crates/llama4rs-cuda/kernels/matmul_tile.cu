// Many tokens: out = x · Wᵀ in tiles of 128 rows and TOKENS tokens, limited by the tensor cores.
//
// x [x rows, K] bf16, weights in fragment order (fragments.cuh), jobs and token tiles: matmul.cuh.
// Launch: 256 threads; job j has ceil(rows / rows a block) * (token tiles rounded up to 8) blocks, rows
// a block being 128 (SWIGLU: 64 of both matrices). Blocks of 64 inputs go through a ring of STAGES in
// shared memory (dynamic, STAGES * (TOKENS * 128 + 8 * BLOCK_BYTES) bytes, and TOKENS * 512 for the sums
// of slices unless SPLIT). Warp i has rows
// 32 * (i % 4).. (SWIGLU: 16 of both matrices) and half i / 4 of the tokens; it decodes 2 fragments a
// step and uses them for TOKENS / 16 products each.
// With SPLIT, blockIdx.y is a slice of the inputs, whose sums go to job.out [slice][x rows, rows] f32
// for `add_slices`: for matrices whose tiles are fewer than the processors.
// Rows of activations lie in shared memory as 8 units of 16 bytes, unit u of row r at u ^ 4 (r % 2), so
// that 8 lanes, which read 4 units of 2 rows, hit all banks.
// Bytes: per tile TOKENS * K * 2 of x and 128 rows of weights, mostly from L2. Operations: 2 * N * K * tokens.

template <int KIND> constexpr u32 STAGES = KIND == BF16 ? 3 : 4;
constexpr u32 SPAN = 8; // token tiles that share a pass over the rows

template <int KIND, int GROUP_COLS, int TOKENS, int EPILOGUE, bool SPLIT>
DEVICE void matmul_tile(const MatmulArgs &args) {
  constexpr u32 GROUPS = TILE_GROUPS<KIND, GROUP_COLS>, WARP_TILES = TOKENS / 16;
  constexpr u32 ROWS = EPILOGUE == SWIGLU ? 64 : 128;
  constexpr u32 X_BYTES = TOKENS * 128, W_BYTES = 8 * BLOCK_BYTES<KIND>, RING = STAGES<KIND>;
  DYNAMIC_SHARED(shared);

  Work work;
  if (!find_work(args, blockIdx.x, ROWS, TOKENS, SPAN, work)) return;
  u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  u32 tiles = ceil_div(args.cols, TILE_COLS), panels = ceil_div(work.job->rows, PANEL);
  auto panel_of = [&](u32 i) { // panel i of the block's 8; SWIGLU: even ones of gate, odd ones of up
    return min(work.row_block * (ROWS / PANEL) + (EPILOGUE == SWIGLU ? i / 2 : i), panels - 1);
  };
  auto of_up = [&](u32 i) { return EPILOGUE == SWIGLU && i % 2 == 1; };

  // What this thread copies of every block of inputs.
  const u8 *w_from[PIECES<KIND>];
#pragma unroll
  for (u32 i = 0; i < PIECES<KIND>; i++) {
    u32 at = threadIdx.x + i * 256, panel = at / (PIECES<KIND> * 32);
    w_from[i] = (of_up(panel) ? work.up_codes : work.codes) +
                (u64)panel_of(panel) * tiles * TILE_BLOCKS * BLOCK_BYTES<KIND> + at % (PIECES<KIND> * 32) * 16;
  }
  u32 x_from[TOKENS / 32], x_unit = threadIdx.x % 8; // in 16 bytes; NOTHING without a token
  constexpr u32 NOTHING = 0xFFFFFFFFu;
#pragma unroll
  for (u32 i = 0; i < TOKENS / 32; i++) {
    u32 row = threadIdx.x / 8 + i * 32;
    x_from[i] = row < work.count ? (activations(args, work, row) - args.x) / 8 + x_unit : NOTHING;
  }
  auto copy = [&](u32 block, u32 stage) {
    u8 *to = shared + stage * (X_BYTES + W_BYTES);
#pragma unroll
    for (u32 i = 0; i < TOKENS / 32; i++) {
      u32 row = threadIdx.x / 8 + i * 32;
      bool inside = x_from[i] != NOTHING && block * BLOCK_COLS + x_unit * 8 < args.cols;
      copy16_async(to + row * 128 + (x_unit ^ row % 2 * 4) * 16, args.x + (inside ? (u64)(x_from[i] + block * 8) * 8 : 0), inside);
    }
#pragma unroll
    for (u32 i = 0; i < PIECES<KIND>; i++)
      copy16_async(to + X_BYTES + (threadIdx.x + i * 256) * 16, w_from[i] + (u64)block * BLOCK_BYTES<KIND>, true);
  };

  // What this warp computes.
  u32 first_panel = warp % 4 * 2, first_token = warp / 4 * (TOKENS / 2);
  const u32 *scales[2];
#pragma unroll
  for (u32 p = 0; p < 2; p++)
    scales[p] = (of_up(first_panel + p) ? work.up_scales : work.scales) +
                ((u64)panel_of(first_panel + p) * tiles * 8 + g) * GROUPS;
  constexpr u32 FOLDS = GROUP_COLS == 32 ? 2 : 1;
  auto load_scales = [&](u32 block, u32 (&to)[2][FOLDS]) {
    if constexpr (GROUPS > 0)
#pragma unroll
      for (u32 p = 0; p < 2; p++)
#pragma unroll
        for (u32 i = 0; i < FOLDS; i++)
          to[p][i] = __ldg(scales[p] + (u64)(block / TILE_BLOCKS) * 8 * GROUPS + block % TILE_BLOCKS * GROUPS / 4 + i);
  };

  u32 slice = SPLIT ? blockIdx.y : 0;
  u32 begin = slice * tiles / SLICES * TILE_BLOCKS;
  u32 end = SPLIT ? (slice + 1) * tiles / SLICES * TILE_BLOCKS : tiles * TILE_BLOCKS;
  float sums[2][WARP_TILES][4] = {};
  // Sums of the slices before, each thread's own; too many for registers.
  float4 *totals = (float4 *)(shared + RING * (X_BYTES + W_BYTES)) + threadIdx.x;
  auto add_total = [&](u32 p, u32 n) {
    float4 before = slice ? totals[(p * WARP_TILES + n) * 256] : make_float4(0, 0, 0, 0);
    sums[p][n][0] = before.x + sums[p][n][0], sums[p][n][1] = before.y + sums[p][n][1];
    sums[p][n][2] = before.z + sums[p][n][2], sums[p][n][3] = before.w + sums[p][n][3];
  };
  auto close_slice = [&] {
#pragma unroll
    for (u32 p = 0; p < 2; p++)
#pragma unroll
      for (u32 n = 0; n < WARP_TILES; n++) {
        add_total(p, n);
        totals[(p * WARP_TILES + n) * 256] = make_float4(sums[p][n][0], sums[p][n][1], sums[p][n][2], sums[p][n][3]);
        sums[p][n][0] = sums[p][n][1] = sums[p][n][2] = sums[p][n][3] = 0.0f;
      }
    slice++;
  };

#pragma unroll
  for (u32 i = 0; i < RING - 1; i++) {
    if (begin + i < end) copy(begin + i, i);
    copy_commit();
  }
  u32 scale_ahead[2][FOLDS];
  if (begin < end) load_scales(begin, scale_ahead);
  u32 stage = 0;
#pragma unroll 1
  for (u32 block = begin; block < end; block++) {
    if constexpr (!SPLIT)
      while (slice + 1 < SLICES && block == (slice + 1) * tiles / SLICES * TILE_BLOCKS) close_slice();
    copy_wait<RING - 2>();
    __syncthreads(); // the block's copies of all threads are there, and the stage before was read
    if (block + RING - 1 < end) copy(block + RING - 1, (stage + RING - 1) % RING);
    copy_commit();
    const u8 *x = shared + stage * (X_BYTES + W_BYTES) + (first_token + g) * 128, *w = shared + stage * (X_BYTES + W_BYTES) + X_BYTES;
    stage = (stage + 1) % RING;
    u32 scale[2][FOLDS];
#pragma unroll
    for (u32 p = 0; p < 2; p++)
#pragma unroll
      for (u32 i = 0; i < FOLDS; i++) scale[p][i] = scale_ahead[p][i];
    if (block + 1 < end) load_scales(block + 1, scale_ahead);

    u32 a[2][4][4];
#pragma unroll
    for (u32 p = 0; p < 2; p++) {
      uint4 pieces[PIECES<KIND>];
#pragma unroll
      for (u32 i = 0; i < PIECES<KIND>; i++)
        pieces[i] = *(const uint4 *)(w + (first_panel + p) * BLOCK_BYTES<KIND> + i * 512 + lane * 16);
#pragma unroll
      for (u32 s = 0; s < 4; s++) decode_fragment<KIND>(pieces, s, a[p][s]);
    }
    // Two tiles of tokens at a time: four chains of products that do not wait for each other.
#pragma unroll
    for (u32 n = 0; n < WARP_TILES; n += 2) {
      constexpr u32 PAIR = WARP_TILES < 2 ? WARP_TILES : 2;
      uint4 b[PAIR][2];
#pragma unroll
      for (u32 i = 0; i < PAIR; i++)
#pragma unroll
        for (u32 half = 0; half < 2; half++)
          b[i][half] = *(const uint4 *)(x + (n + i) * 8 * 128 + ((half ^ g % 2) * 4 + t) * 16);
      float part[2][PAIR][4] = {};
#pragma unroll
      for (u32 s = 0; s < 4; s++) {
#pragma unroll
        for (u32 i = 0; i < PAIR; i++)
#pragma unroll
          for (u32 p = 0; p < 2; p++) {
            const uint4 &v = b[i][s / 2];
            mma_bf16(KIND == BF16 ? sums[p][n + i] : part[p][i], a[p][s], s % 2 ? v.z : v.x, s % 2 ? v.w : v.y);
          }
        if constexpr (KIND != BF16) {
          if (s == 3 || (GROUP_COLS == 32 && s == 1)) {
#pragma unroll
            for (u32 i = 0; i < PAIR; i++)
#pragma unroll
              for (u32 p = 0; p < 2; p++) {
                fold(sums[p][n + i], part[p][i], scale[p][s / 2 * FOLDS / 2]);
                part[p][i][0] = part[p][i][1] = part[p][i][2] = part[p][i][3] = 0.0f;
              }
          }
        }
      }
    }
  }
  copy_wait<0>();
  if constexpr (!SPLIT) {
    while (slice + 1 < SLICES) close_slice();
#pragma unroll
    for (u32 p = 0; p < 2; p++)
#pragma unroll
      for (u32 n = 0; n < WARP_TILES; n++) add_total(p, n);
  }

#pragma unroll
  for (u32 n = 0; n < WARP_TILES; n++)
#pragma unroll
    for (u32 odd = 0; odd < 2; odd++) {
      u32 token = first_token + n * 8 + t * 2 + odd;
      if (token >= work.count) continue;
      u32 at = assignment(work, token);
      float scale = 1.0f;
      if constexpr (!SPLIT) scale = assignment_scale(args, work, at, whole_row_factor(args.norm, x_row(args, work, token), args.cols));
#pragma unroll
      for (u32 p = 0; p < (EPILOGUE == SWIGLU ? 1 : 2); p++)
#pragma unroll
        for (u32 i = odd; i < 4; i += 2) {
          u32 row = work.row_block * ROWS + (EPILOGUE == SWIGLU ? first_panel / 2 : first_panel + p) * PANEL + g + i / 2 * 8;
          if (row >= work.job->rows) continue;
          if constexpr (SPLIT) {
            ((float *)work.job->out)[((u64)blockIdx.y * args.tokens + at) * work.job->rows + row] = sums[p][n][i];
          } else {
            finish<EPILOGUE>(work.job->out, (u64)at * work.job->rows + row, sums[p][n][i], sums[1][n][i], scale);
          }
        }
    }
}

// Compiled with -DFORMAT=, -DGROUP= (0 for bf16), -DFINISH=.
KERNEL_OCCUPANCY(256, 1) matmul_tile_128(const __grid_constant__ MatmulArgs args) {
  begin_launch();
  matmul_tile<FORMAT, GROUP, 128, FINISH, false>(args);
}
KERNEL_OCCUPANCY(256, 2) matmul_tile_32(const __grid_constant__ MatmulArgs args) {
  begin_launch();
  matmul_tile<FORMAT, GROUP, 32, FINISH, false>(args);
}
#if FINISH != 2
KERNEL_OCCUPANCY(256, 1) matmul_split_64(const __grid_constant__ MatmulArgs args) {
  begin_launch();
  matmul_tile<FORMAT, GROUP, 64, FINISH, true>(args);
}

// out [tokens, outputs] = the sum of the slices [4][tokens, outputs], in order, times the factors of a norm of rows of
// `width` inputs. Launch: (ceil(outputs / 256), tokens) blocks, one thread a value.
KERNEL(256) add_slices(const float *slices, float *out, u32 outputs, RowNorm norm, u32 width) {
  begin_launch();
  u32 output = blockIdx.x * 256 + threadIdx.x;
  if (output >= outputs) return;
  u64 i = (u64)blockIdx.y * outputs + output, count = (u64)gridDim.y * outputs;
  float sum = 0.0f;
#pragma unroll
  for (u32 slice = 0; slice < SLICES; slice++) sum += slices[slice * count + i];
  finish<FINISH>(out, i, sum, 0.0f, whole_row_factor(norm, blockIdx.y, width));
}
#endif
