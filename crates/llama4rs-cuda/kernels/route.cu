// Which expert each token goes to, and the tiles of tokens that the matrix kernels take.
//
// router_logits: logits [tokens, experts] f32 = x [tokens, cols] bf16 · weights [experts, cols] f32.
//   Launch: experts x ceil(tokens / 4) blocks of 128 threads; warp i sums a quarter of the inputs for 4
//   tokens. cols % 8 == 0. Bytes: the weights once for 4 tokens. A token's sums have one order.
// route: logits -> for each assignment a = token * top_k + choice its expert and sigmoid(logit), the
//   largest logits first, ties to the lower index; then the assignments sorted by expert (in an expert by
//   number) in `order`, cut into tiles of at most `tile_tokens`. One block of 1024 threads; at most 256
//   experts; room for experts + assignments / tile_tokens tiles. token_tiles: only the sorting.

constexpr u32 MOST_EXPERTS = 256;

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp2_fast(-1.44269504f * x)); }

KERNEL(128) router_logits(const u16 *x, const float *weights, float *logits, u32 tokens, u32 cols, u32 experts) {
  SHARED float parts[4][4];
  u32 expert = blockIdx.x, first = blockIdx.y * 4, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const float *row = weights + (u64)expert * cols;
  float sums[4] = {};
  u32 eights = cols / 8;
#pragma unroll 5
  for (u32 i = eights * warp / 4 + lane; i < eights * (warp + 1) / 4; i += WARP) {
    float4 w0 = __ldg((const float4 *)row + i * 2), w1 = __ldg((const float4 *)row + i * 2 + 1);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      if (first + j >= tokens) continue;
      uint4 v = __ldg((const uint4 *)(x + (u64)(first + j) * cols) + i);
      sums[j] = fmaf(w0.x, bf16_low(v.x), sums[j]), sums[j] = fmaf(w0.y, bf16_high(v.x), sums[j]);
      sums[j] = fmaf(w0.z, bf16_low(v.y), sums[j]), sums[j] = fmaf(w0.w, bf16_high(v.y), sums[j]);
      sums[j] = fmaf(w1.x, bf16_low(v.z), sums[j]), sums[j] = fmaf(w1.y, bf16_high(v.z), sums[j]);
      sums[j] = fmaf(w1.z, bf16_low(v.w), sums[j]), sums[j] = fmaf(w1.w, bf16_high(v.w), sums[j]);
    }
  }
#pragma unroll
  for (u32 j = 0; j < 4; j++) {
    float sum = warp_sum(sums[j]);
    if (lane == 0) parts[j][warp] = sum;
  }
  __syncthreads();
  u32 j = threadIdx.x;
  if (j < 4 && first + j < tokens)
    logits[(u64)(first + j) * experts + expert] = parts[j][0] + parts[j][1] + parts[j][2] + parts[j][3];
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

KERNEL(1024) route(const float *logits, u32 *expert_of, float *weights, u32 *order, TokenTile *tiles,
                   u32 *num_tiles, u32 tokens, u32 experts, u32 top_k, u32 tile_tokens) {
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
