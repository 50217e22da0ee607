// Logits to tokens, one row of logits [rows, vocab] f32 a block (or more). Ties go to the lower token. A row with
// a logit that is no finite number gives NO_TOKEN.
//
// argmax_parts, argmax: the largest logit. (PARTS, rows) blocks of 256 threads, then a warp a row.
// sample: the rule of crates/llama4rs-engine/src/sampler.rs, bit for bit: temperature, the top_k
//   most likely tokens, of them those before which there is at most top_p of the mass, of them those
//   at least min_p as likely as the best one; then one draw. A block of 1024 threads a row.
//   Probabilities are counts of 2^-40 of the best one's, so that every sum is exact and in no order;
//   the draw takes the kept tokens by number, at `random` * mass / 2^64. vocab < 2^23.
// Bytes: the logits once (argmax), 11 times from L2 (sample).

constexpr u32 NO_TOKEN = ~0u;
constexpr u64 NOT_FINITE = ~0ull; // beats all candidates

// Larger floats have larger keys.
DEVICE u32 order_key(float x) {
  u32 bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
// Larger logit, then lower token.
DEVICE u64 candidate(float logit, u32 token) {
  bool finite = (__float_as_uint(logit) & 0x7f800000u) != 0x7f800000u;
  return finite ? (u64)order_key(logit) << 32 | (u32)~token : NOT_FINITE;
}
DEVICE u32 token_of(u64 best) { return best == NOT_FINITE ? NO_TOKEN : ~(u32)best; }
DEVICE u64 warp_best(u64 best) {
#pragma unroll
  for (u32 offset = 16; offset; offset >>= 1) best = max(best, __shfl_xor_sync(FULL_WARP, best, offset));
  return best;
}

constexpr u32 PARTS = 32;

KERNEL(256) argmax_parts(const float *logits, u64 *parts, u32 vocab) {
  begin_launch();
  SHARED u64 warps[8];
  const float *row = logits + (u64)blockIdx.y * vocab;
  u64 best = 0;
  for (u32 i = blockIdx.x * 256 + threadIdx.x; i < vocab; i += PARTS * 256) best = max(best, candidate(row[i], i));
  best = warp_best(best);
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (u32 i = 1; i < 8; i++) best = max(best, warps[i]);
    parts[(u64)blockIdx.y * PARTS + blockIdx.x] = best;
  }
}

KERNEL(32) argmax(const u64 *parts, u32 *tokens) {
  begin_launch();
  u64 best = warp_best(parts[(u64)blockIdx.x * PARTS + threadIdx.x]);
  if (threadIdx.x == 0) tokens[blockIdx.x] = token_of(best);
}

struct SampleOptions {
  u64 random;
  float powers; // of two for each unit of a logit; 0 takes the largest
  float top_p, min_p;
  u32 top_k;    // 0: all
};

constexpr float ONE = 1099511627776.0f; // 2^40

// The sum over the block of 1024 threads of what lies before each thread, and of all.
DEVICE u64 block_scan(u64 x, u64 &total) {
  SHARED u64 warps[32];
  u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  u64 sum = x;
#pragma unroll
  for (u32 offset = 1; offset < WARP; offset *= 2) {
    u64 other = __shfl_up_sync(FULL_WARP, sum, offset);
    if (lane >= offset) sum += other;
  }
  __syncthreads(); // an earlier scan was read
  if (lane == WARP - 1) warps[warp] = sum;
  __syncthreads();
  u64 before = 0;
  total = 0;
  for (u32 i = 0; i < 32; i++) {
    if (i < warp) before += warps[i];
    total += warps[i];
  }
  return before + sum - x;
}

// A row's tokens, and this thread's own run of them: runs are in the order of tokens.
struct Row {
  const float *logits;
  u32 vocab, begin, end;
  float peak, powers;

  // 2^((logit - peak) * powers) in parts of 2^-40, rounded down: operations of IEEE 754, as on the host.
  DEVICE u64 mass(u32 token) const {
    constexpr float TERMS[8] = {1.0f, 0.6931472f, 0.2402265f, 0.05550411f, 0.009618129f, 0.0013333558f, 0.0001540353f, 0.000015252734f};
    float x = (logits[token] - peak) * powers;
    if (x < -41.5f) return 0;
    float whole = floorf(x + 0.5f), part = x - whole, power = 0.0f;
#pragma unroll
    for (i32 i = 7; i >= 0; i--) power = power * part + TERMS[i];
    return (u64)(power * __uint_as_float((u32)(127 + 40 + (i32)whole) << 23));
  }
};

// Tokens with larger keys are kept, and of those with this key the first `ties`.
struct Threshold {
  u32 key;
  u64 ties;
};

// The best tokens, down to key `least`, until their measures, summed up in order, pass `goal`: the token
// that passes it is the last. Radix selection by 8 bits of the key at a time.
template <class Measure> DEVICE Threshold select(const Row &row, u64 goal, u32 least, Measure measure) {
  SHARED u64 histogram[256];
  SHARED u64 chosen[2];
  u32 prefix = 0, fixed = 0;
  u64 above = 0;
#pragma unroll 1
  for (i32 shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    if (threadIdx.x < 256) histogram[threadIdx.x] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < row.vocab; i += 1024) {
      u32 key = order_key(row.logits[i]);
      if ((key & fixed) == prefix && key >= least) {
        u64 amount = measure(i);
        if (amount) atomicAdd(&histogram[key >> shift & 255], amount);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      u32 digit = 256;
      u64 sum = above;
      while (digit > 0 && sum + histogram[digit - 1] <= goal) sum += histogram[--digit];
      // Past every key: all are kept, down to the least.
      chosen[0] = digit ? digit - 1 : 256, chosen[1] = sum;
    }
    __syncthreads();
    u32 digit = (u32)chosen[0];
    above = chosen[1];
    if (digit == 256) return {0, ~0ull};
    prefix |= digit << shift, fixed |= 255u << shift;
  }
  // All with this key measure the same; one more than fits is kept.
  __syncthreads();
  if (threadIdx.x == 0) chosen[0] = 0;
  __syncthreads();
  for (u32 i = threadIdx.x; i < row.vocab; i += 1024)
    if (order_key(row.logits[i]) == prefix) atomicMax(&chosen[0], measure(i));
  __syncthreads();
  u64 each = chosen[0];
  return {prefix, each ? (goal - above) / each + 1 : 0};
}

// What stays of a row.
struct Kept {
  Threshold top_k, top_p;
  u64 k_ties, p_ties; // how many with the thresholds' keys lie before this thread's run
  u64 least;          // mass

  // Calls `visit` with each token of this thread's run that stays, and its mass.
  template <class Visit> DEVICE void each(const Row &row, Visit visit) const {
    u64 k_seen = k_ties, p_seen = p_ties;
    for (u32 i = row.begin; i < row.end; i++) {
      u32 key = order_key(row.logits[i]);
      bool stays = key > top_k.key || (key == top_k.key && k_seen < top_k.ties);
      stays = stays && (key > top_p.key || (key == top_p.key && p_seen < top_p.ties));
      k_seen += key == top_k.key, p_seen += key == top_p.key;
      if (u64 mass = stays ? row.mass(i) : 0; mass && mass >= least) visit(i, mass);
    }
  }
  // Their mass.
  DEVICE u64 mass(const Row &row) const {
    u64 sum = 0;
    each(row, [&](u32, u64 mass) { sum += mass; });
    return sum;
  }
};

DEVICE u64 ties_before(const Row &row, u32 key) {
  u64 mine = 0, all;
  for (u32 i = row.begin; i < row.end; i++) mine += order_key(row.logits[i]) == key;
  return block_scan(mine, all);
}

KERNEL(1024) sample(const float *logits, const SampleOptions *options, u32 *tokens, u32 vocab) {
  begin_launch();
  SHARED u64 best_of[32];
  SampleOptions option = options[blockIdx.x];
  Row row;
  u32 run = ceil_div(vocab, 1024);
  row.logits = logits + (u64)blockIdx.x * vocab;
  row.vocab = vocab;
  row.begin = min(threadIdx.x * run, vocab), row.end = min(row.begin + run, vocab);

  u64 best = 0;
  for (u32 i = threadIdx.x; i < vocab; i += 1024) best = max(best, candidate(row.logits[i], i));
  best = warp_best(best);
  if (threadIdx.x % WARP == 0) best_of[threadIdx.x / WARP] = best;
  __syncthreads();
  for (u32 i = 0; i < 32; i++) best = max(best, best_of[i]);
  u32 best_token = token_of(best);
  if (best_token == NO_TOKEN || option.powers == 0.0f) {
    if (threadIdx.x == 0) tokens[blockIdx.x] = best_token;
    return;
  }
  row.peak = row.logits[best_token];
  row.powers = option.powers;

  constexpr Threshold EVERYTHING = {0, ~0ull};
  Kept kept = {EVERYTHING, EVERYTHING, 0, 0, 0};
  if (option.top_k && option.top_k < vocab) {
    kept.top_k = select(row, option.top_k - 1, 0, [](u32) { return 1ull; });
    kept.k_ties = ties_before(row, kept.top_k.key);
  }
  u64 all;
  if (option.top_p < 1.0f) {
    block_scan(kept.mass(row), all);
    // Of the tokens with top_k's own key, which measure the same, those that it drops come last.
    kept.top_p = select(row, (u64)((double)all * option.top_p), kept.top_k.key, [&](u32 i) { return row.mass(i); });
    kept.p_ties = ties_before(row, kept.top_p.key);
  }
  kept.least = (u64)(option.min_p * ONE);
  u64 mass = kept.mass(row), before = block_scan(mass, all), target = __umul64hi(option.random, all);
  if (!all && threadIdx.x == 0) tokens[blockIdx.x] = best_token;
  if (target < before || target - before >= mass) return;
  u64 left = target - before;
  bool found = false;
  kept.each(row, [&](u32 token, u64 mass) {
    if (!found && left < mass) tokens[blockIdx.x] = token, found = true;
    left -= mass;
  });
}
