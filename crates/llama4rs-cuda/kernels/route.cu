// Which expert each token goes to, and the tiles of tokens that the matrix kernels take.
//
// router_parts: parts [splits][tokens, experts] f32: x [tokens, cols] f32 times f32 panels (docs/format.md) of
//   [experts, cols], times the factors of the norm that is left of x, the inputs cut into splits of 256, whose
//   sums are added in order. Launch: (panels, splits, ceil(tokens / 4)) blocks of 128 threads: row
//   r = i % 16 of the panel, inputs i / 16 + 8 k. Bytes: the weights once for 4 tokens. A token's sums have one order.
// route: the sums of parts -> for each assignment a = token * top_k + choice its expert and sigmoid(logit), the
//   largest logits first, ties to the lower index; then the assignments sorted by expert (in an expert by
//   number) in `order`, cut into tiles of at most `tile_tokens`. One block of 1024 threads; at most 256
//   experts; room for experts + assignments / tile_tokens tiles. token_tiles: only the sorting.
// router: both in one launch, that of router_parts, for few tokens: the last block goes on with `route`.

constexpr u32 MOST_EXPERTS = 256;

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp2_fast(-1.44269504f * x)); }

struct RouterInput {
  const float *x;        // [tokens, cols]
  RowNorm norm;
  const float *panels;
  u64 panel_floats;
  u32 cols;
};

struct TokenTile {
  u32 expert, first, count, unused;
};

struct RouterResult {
  float *logits;         // [tokens, experts]
  u32 *expert_of;        // [assignments]
  float *weights;        // [assignments]
  u32 *order;            // [assignments]
  TokenTile *tiles;
  u32 *num_tiles;
  u32 tokens, experts, top_k, tile_tokens;
};

DEVICE void add_parts(const RouterInput &input, float *parts, u32 tokens, u32 experts) {
  u32 cols = input.cols;
  SHARED float chunk[4][256];
  SHARED float sums[8][4][16];
  SHARED float factors[4];
  u32 first_col = blockIdx.y * 256, first_token = blockIdx.z * 4, row = threadIdx.x % 16, part = threadIdx.x / 16;
  for (u32 i = threadIdx.x; i < 4 * 256; i += 128) {
    u32 token = first_token + i / 256, col = first_col + i % 256;
    chunk[i / 256][i % 256] = token < tokens && col < cols ? input.x[(u64)token * cols + col] : 0.0f;
  }
  u32 warp = threadIdx.x / WARP, row_of_warp = min(first_token + warp, tokens - 1);
  float factor = input.norm.squares ? row_factor(input.norm, row_of_warp, cols) : 1.0f;
  if (threadIdx.x % WARP == 0) factors[warp] = factor;
  __syncthreads();
  const float *lines = input.panels + blockIdx.x * input.panel_floats + row;
  float sum[4] = {};
#pragma unroll 8
  for (u32 i = part; i < 256; i += 8) {
    float w = first_col + i < cols ? __ldg(lines + (u64)(first_col + i) * 16) : 0.0f;
#pragma unroll
    for (u32 j = 0; j < 4; j++) sum[j] = fmaf(w, chunk[j][i], sum[j]);
  }
#pragma unroll
  for (u32 j = 0; j < 4; j++) sums[part][j][row] = sum[j];
  __syncthreads();
  u32 j = threadIdx.x / 16, expert = blockIdx.x * 16 + row;
  if (j >= 4 || first_token + j >= tokens || expert >= experts) return;
  float total = 0.0f;
#pragma unroll
  for (u32 i = 0; i < 8; i++) total += sums[i][j][row];
  parts[((u64)blockIdx.y * tokens + first_token + j) * experts + expert] = total * factors[j];
}

// Sorts assignments by expert and cuts them into tiles; all threads of a block.
template <u32 THREADS>
DEVICE void make_tiles(const u32 *expert_of, u32 *order, TokenTile *tiles, u32 *num_tiles, u32 assignments,
                       u32 experts, u32 tile_tokens) {
  SHARED u32 counts[MOST_EXPERTS], firsts[MOST_EXPERTS], first_tiles[MOST_EXPERTS];
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  // Few assignments are read once.
  u32 mine = lane < assignments ? expert_of[lane] : experts;
  auto goes_to = [&](u32 i, u32 e) { return i < WARP ? mine == e : i < assignments && expert_of[i] == e; };
  for (u32 e = warp; e < experts; e += THREADS / WARP) {
    u32 count = 0;
    for (u32 i = lane; i - lane < assignments; i += WARP) count += __popc(__ballot_sync(FULL_WARP, goes_to(i, e)));
    if (lane == 0) counts[e] = count;
  }
  __syncthreads();
  if (warp == 0) {
    u32 first = 0, tile = 0; // of the 32 experts at hand
    for (u32 e = lane; e - lane < experts; e += WARP) {
      u32 count = e < experts ? counts[e] : 0, of_expert = ceil_div(count, tile_tokens);
      u32 end = count, tile_end = of_expert;
#pragma unroll
      for (u32 offset = 1; offset < WARP; offset *= 2) {
        u32 before = __shfl_up_sync(FULL_WARP, end, offset), tile_before = __shfl_up_sync(FULL_WARP, tile_end, offset);
        if (lane >= offset) end += before, tile_end += tile_before;
      }
      if (e < experts) firsts[e] = first + end - count, first_tiles[e] = tile + tile_end - of_expert;
      first += __shfl_sync(FULL_WARP, end, WARP - 1), tile += __shfl_sync(FULL_WARP, tile_end, WARP - 1);
    }
    if (lane == 0) *num_tiles = tile;
  }
  __syncthreads();
  for (u32 e = warp; e < experts; e += THREADS / WARP) {
    for (u32 i = lane; i < ceil_div(counts[e], tile_tokens); i += WARP)
      tiles[first_tiles[e] + i] = {e, firsts[e] + i * tile_tokens, min(tile_tokens, counts[e] - i * tile_tokens), 0};
    u32 at = firsts[e];
    for (u32 i = lane; i - lane < assignments; i += WARP) {
      u32 chosen = __ballot_sync(FULL_WARP, goes_to(i, e));
      if (chosen >> lane & 1) order[at + __popc(chosen & ((1u << lane) - 1))] = i;
      at += __popc(chosen);
    }
  }
}

// The experts of one token, by the lanes of a warp: the best one behind the last choice in the order of
// (logit falling, index rising); what is no number comes last.
DEVICE void choose_experts(const RouterResult &result, u32 token) {
  const float *row = result.logits + (u64)token * result.experts;
  float last = infinity();
  u32 last_expert = 0;
  for (u32 choice = 0; choice < result.top_k; choice++) {
    float best = -infinity();
    u32 best_expert = result.experts;
    auto take = [&](float logit, u32 e) {
      if (logit > best || (logit == best && e < best_expert)) best = logit, best_expert = e;
    };
    for (u32 e = threadIdx.x % WARP; e < result.experts; e += WARP) {
      float logit = row[e] == row[e] ? row[e] : -infinity();
      if (choice == 0 || logit < last || (logit == last && e > last_expert)) take(logit, e);
    }
#pragma unroll
    for (u32 offset = 16; offset; offset >>= 1) {
      float logit = __shfl_xor_sync(FULL_WARP, best, offset);
      take(logit, __shfl_xor_sync(FULL_WARP, best_expert, offset));
    }
    if (threadIdx.x % WARP == 0) {
      result.expert_of[token * result.top_k + choice] = best_expert;
      result.weights[token * result.top_k + choice] = sigmoid(best);
    }
    last = best, last_expert = best_expert;
  }
}

// All threads of a block.
template <u32 THREADS> DEVICE void choose_and_sort(const RouterResult &result, const float *parts, u32 splits) {
  u32 count = result.tokens * result.experts;
  for (u32 i = threadIdx.x; i < count; i += THREADS) {
    float sum = 0.0f;
#pragma unroll 20 // all splits of 5120 inputs are under way at once
    for (u32 split = 0; split < splits; split++) sum += __ldcg(parts + (u64)split * count + i);
    result.logits[i] = sum;
  }
  __syncthreads();
  for (u32 token = threadIdx.x / WARP; token < result.tokens; token += THREADS / WARP) choose_experts(result, token);
  __syncthreads();
  make_tiles<THREADS>(result.expert_of, result.order, result.tiles, result.num_tiles, result.tokens * result.top_k,
                      result.experts, result.tile_tokens);
}

KERNEL(128) router_parts(const __grid_constant__ RouterInput input, float *parts, u32 tokens, u32 experts) {
  begin_launch();
  add_parts(input, parts, tokens, experts);
}

KERNEL(1024) route(const __grid_constant__ RouterResult result, const float *parts, u32 splits) {
  begin_launch();
  choose_and_sort<1024>(result, parts, splits);
}

KERNEL(128) router(const __grid_constant__ RouterInput input, const __grid_constant__ RouterResult result, float *parts,
                   u32 *ticket) {
  begin_launch();
  add_parts(input, parts, result.tokens, result.experts);
  if (is_last_block(ticket, gridDim.x * gridDim.y * gridDim.z)) choose_and_sort<128>(result, parts, gridDim.y);
}

KERNEL(1024) token_tiles(const u32 *expert_of, u32 *order, TokenTile *tiles, u32 *num_tiles, u32 assignments,
                         u32 experts, u32 tile_tokens) {
  begin_launch();
  make_tiles<1024>(expert_of, order, tiles, num_tiles, assignments, experts, tile_tokens);
}
