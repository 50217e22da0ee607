// Which expert each token goes to, and the tiles of tokens that the matrix kernels take.
//
// router_parts: parts [splits][tokens, experts] f32: x [tokens, cols] f32 times f32 panels (docs/format.md) of
//   [experts, cols], times the factors of the norm that is left of x, the inputs cut into splits of 256, whose
//   sums are added in order by `route`.
//   Launch: (panels, splits, ceil(tokens / 4)) blocks of 128 threads: row r = i % 16 of the panel, inputs
//   i / 16 + 8 k. Bytes: the weights once for 4 tokens. A token's sums have one order.
// route: the sums of parts -> for each assignment a = token * top_k + choice its expert and sigmoid(logit), the
//   largest logits first, ties to the lower index; then the assignments sorted by expert (in an expert by
//   number) in `order`, cut into tiles of at most `tile_tokens`. One block of 1024 threads; at most 256
//   experts; room for experts + assignments / tile_tokens tiles. token_tiles: only the sorting.

constexpr u32 MOST_EXPERTS = 256;

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp2_fast(-1.44269504f * x)); }

KERNEL(128) router_parts(const float *x, RowNorm norm, const float *panels, float *parts, u32 tokens, u32 cols,
                         u32 experts, u64 panel_floats) {
  SHARED float chunk[4][256];
  SHARED float sums[8][4][16];
  SHARED float factors[4];
  u32 first_input = blockIdx.y * 256, first_token = blockIdx.z * 4, row = threadIdx.x % 16, part = threadIdx.x / 16;
  for (u32 i = threadIdx.x; i < 4 * 256; i += 128) {
    u32 token = first_token + i / 256, input = first_input + i % 256;
    chunk[i / 256][i % 256] = token < tokens && input < cols ? x[(u64)token * cols + input] : 0.0f;
  }
  u32 warp = threadIdx.x / WARP, row_of_warp = min(first_token + warp, tokens - 1);
  float factor = norm.squares ? row_factor(norm, row_of_warp, cols) : 1.0f;
  if (threadIdx.x % WARP == 0) factors[warp] = factor;
  __syncthreads();
  const float *lines = panels + blockIdx.x * panel_floats + row;
  float sum[4] = {};
#pragma unroll 8
  for (u32 i = part; i < 256; i += 8) {
    float w = first_input + i < cols ? __ldg(lines + (u64)(first_input + i) * 16) : 0.0f;
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

struct TokenTile {
  u32 expert, first, count, unused;
};

// Sorts assignments by expert and cuts them into tiles; all 1024 threads of the only block.
DEVICE void make_tiles(const u32 *expert_of, u32 *order, TokenTile *tiles, u32 *num_tiles, u32 assignments,
                       u32 experts, u32 tile_tokens) {
  SHARED u32 counts[MOST_EXPERTS], firsts[MOST_EXPERTS], first_tiles[MOST_EXPERTS];
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (u32 e = warp; e < experts; e += 32) {
    u32 count = 0;
    for (u32 i = lane; i - lane < assignments; i += WARP)
      count += __popc(__ballot_sync(FULL_WARP, i < assignments && expert_of[i] == e));
    if (lane == 0) counts[e] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    u32 first = 0, tile = 0;
    for (u32 e = 0; e < experts; e++) {
      firsts[e] = first, first_tiles[e] = tile;
      first += counts[e], tile += ceil_div(counts[e], tile_tokens);
    }
    *num_tiles = tile;
  }
  __syncthreads();
  for (u32 e = warp; e < experts; e += 32) {
    for (u32 i = lane; i < ceil_div(counts[e], tile_tokens); i += WARP)
      tiles[first_tiles[e] + i] = {e, firsts[e] + i * tile_tokens, min(tile_tokens, counts[e] - i * tile_tokens), 0};
    u32 at = firsts[e];
    for (u32 i = lane; i - lane < assignments; i += WARP) {
      u32 chosen = __ballot_sync(FULL_WARP, i < assignments && expert_of[i] == e);
      if (chosen >> lane & 1) order[at + __popc(chosen & ((1u << lane) - 1))] = i;
      at += __popc(chosen);
    }
  }
}

KERNEL(1024) token_tiles(const u32 *expert_of, u32 *order, TokenTile *tiles, u32 *num_tiles, u32 assignments,
                         u32 experts, u32 tile_tokens) {
  make_tiles(expert_of, order, tiles, num_tiles, assignments, experts, tile_tokens);
}

KERNEL(1024) route(const float *parts, float *logits, u32 splits, u32 *expert_of, float *weights, u32 *order,
                   TokenTile *tiles, u32 *num_tiles, u32 tokens, u32 experts, u32 top_k, u32 tile_tokens) {
  u32 count = tokens * experts;
  for (u32 i = threadIdx.x; i < count; i += 1024) {
    float sum = 0.0f;
    for (u32 split = 0; split < splits; split++) sum += parts[(u64)split * count + i];
    logits[i] = sum;
  }
  __syncthreads();
  for (u32 token = threadIdx.x; token < tokens; token += 1024) {
    const float *row = logits + (u64)token * experts;
    float last = infinity();
    u32 last_expert = 0;
    for (u32 choice = 0; choice < top_k; choice++) {
      // The best one behind the last choice in the order of (logit falling, index rising).
      float best = -infinity();
      u32 best_expert = experts;
      for (u32 e = 0; e < experts; e++) {
        float logit = row[e] == row[e] ? row[e] : -infinity(); // what is no number never wins
        bool behind = choice == 0 || logit < last || (logit == last && e > last_expert);
        if (behind && (best_expert == experts || logit > best)) best = logit, best_expert = e;
      }
      expert_of[token * top_k + choice] = best_expert;
      weights[token * top_k + choice] = sigmoid(best);
      last = best, last_expert = best_expert;
    }
  }
  __syncthreads();
  make_tiles(expert_of, order, tiles, num_tiles, tokens * top_k, experts, tile_tokens);
}
