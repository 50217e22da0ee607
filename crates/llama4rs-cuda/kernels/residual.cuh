// The end of a half of a block for steps of few tokens: whoever has the last products of 16 columns
// adds them to the residual stream, and begins the norm behind (norm.cuh).

struct ResidualEnd {
  float *x;             // [tokens, width], in and out
  const float *weight;  // [width] of the norm; null: nothing follows
  float *scaled;        // [tokens, width] = x * weight
  u16 *h;               // the same as bf16
  float *squares;       // [tokens][panels of 16 columns]
  // A mixture: the blocks write rows of the shared expert [tokens, width] and of the routed ones [tokens * top_k,
  // width], and the last block of a panel adds both to x, in this order.
  const float *shared, *routed;
  u32 *tickets;         // [panels] of zeros, before and after a launch; null: no mixture
  u32 top_k;
};

// Lane 4g + t has columns g, g + 8 of a panel for tokens 2t, 2t + 1 of eight: `x` as mma_bf16 leaves sums.
struct PanelLane {
  u32 panel, first_token, tokens, width;
  DEVICE u32 token(u32 i) const { return first_token + threadIdx.x % 4 * 2 + i % 2; }
  DEVICE u32 column(u32 i) const { return panel * 16 + threadIdx.x % WARP / 4 + i / 2 * 8; }
  DEVICE bool has(u32 i) const { return token(i) < tokens && column(i) < width; }
  DEVICE u64 at(u32 i) const { return (u64)token(i) * width + column(i); }
};

// Writes the new residual stream and what is made of it; all lanes of a warp. w: the norm's weights of its columns.
DEVICE void end_half(const ResidualEnd &end, const PanelLane &lane, const float (&x)[4], const float (&w)[2]) {
  float squares[4];
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    bool inside = lane.has(i);
    squares[i] = inside ? x[i] * x[i] : 0.0f;
    if (!inside) continue;
    end.x[lane.at(i)] = x[i];
    if (!end.weight) continue;
    float scaled = x[i] * w[i / 2];
    end.scaled[lane.at(i)] = scaled;
    end.h[lane.at(i)] = f32_to_bf16(scaled);
  }
  if (!end.weight) return;
#pragma unroll
  for (u32 i = 0; i < 2; i++) {
    float sum = squares[i] + squares[i + 2];
#pragma unroll
    for (u32 offset = 4; offset < WARP; offset *= 2) sum += __shfl_xor_sync(FULL_WARP, sum, offset);
    if (threadIdx.x % WARP < 4 && lane.token(i) < lane.tokens)
      end.squares[(u64)lane.token(i) * ceil_div(lane.width, 16) + lane.panel] = sum;
  }
}

// The last block of a mixture's panel: x + the shared expert + the routed ones, which other blocks wrote.
DEVICE void add_mixture(const ResidualEnd &end, const PanelLane &lane, float (&x)[4], float (&w)[2]) {
#pragma unroll
  for (u32 i = 0; i < 4; i++) x[i] = lane.has(i) ? end.x[lane.at(i)] + __ldcg(end.shared + lane.at(i)) : 0.0f;
#pragma unroll 1
  for (u32 choice = 0; choice < end.top_k; choice++)
#pragma unroll
    for (u32 i = 0; i < 4; i++)
      if (lane.has(i)) x[i] += __ldcg(end.routed + ((u64)lane.token(i) * end.top_k + choice) * lane.width + lane.column(i));
#pragma unroll
  for (u32 i = 0; i < 2; i++) w[i] = end.weight && lane.column(2 * i) < lane.width ? end.weight[lane.column(2 * i)] : 0.0f;
}

// The residual stream and the norm's weights of one panel, on their way while the products are computed.
template <u32 TOKENS> struct PanelAhead {
  static constexpr u32 PITCH = 20; // lanes of four tokens read different banks
  float *x, *weights; // shared: [TOKENS][PITCH], [16]
  // All threads, TOKENS * 4 + 4 of which copy.
  DEVICE void start(const ResidualEnd &end, u32 panel, u32 tokens, u32 width) const {
    u32 token = threadIdx.x / 4, column = panel * 16 + threadIdx.x % 4 * 4;
    if (token < TOKENS) {
      bool inside = token < tokens && column < width;
      copy16_async(x + token * PITCH + threadIdx.x % 4 * 4, end.x + (inside ? (u64)token * width + column : 0), inside);
    } else if (token == TOKENS && end.weight) {
      bool inside = column < width;
      copy16_async(weights + threadIdx.x % 4 * 4, end.weight + (inside ? column : 0), inside);
    }
    copy_commit();
  }
  // Behind a wait for the copies and a barrier: x + the products.
  DEVICE void add(const ResidualEnd &end, const PanelLane &lane, const float (&products)[4], float (&sum)[4], float (&w)[2]) const {
    u32 g = threadIdx.x % WARP / 4;
#pragma unroll
    for (u32 i = 0; i < 4; i++) sum[i] = x[lane.token(i) * PITCH + g + i / 2 * 8] + products[i];
#pragma unroll
    for (u32 i = 0; i < 2; i++) w[i] = end.weight ? weights[g + i * 8] : 0.0f;
  }
};
