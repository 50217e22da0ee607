// What a launch of the matrix kernels is told, and what becomes of a result.

// One matrix, or a stack of them, of a launch. Thread blocks [first_block, next job's first_block) are its.
struct MatmulJob {
  const u8 *codes;         // fragments.cuh; matrix e of a stack begins e * codes_stride bytes further
  const u32 *scales;       // matrix e: e * scales_stride words further
  const u8 *up_codes;      // SWIGLU: the second matrix, of the same shape
  const u32 *up_scales;
  void *out;               // [out rows, rows]
  u64 codes_stride, scales_stride;
  u32 rows;                // outputs N
  u32 first_block;
  u32 routed;              // 1: rows of x are sorted by expert, token tiles come from `route`
  u32 first_x;             // its rows of x begin here
};

// Rows that go to one expert; `first` counts in `order`.
struct TokenTile {
  u32 expert, first, count, unused;
};

struct MatmulArgs {
  MatmulJob jobs[4];
  const u16 *x;            // [x rows, cols] bf16
  const TokenTile *route;  // made by route.cu for tiles of as many tokens as the kernel takes
  const u32 *num_tiles;    // how many of them there are
  const u32 *order;        // sorted position -> assignment = token * top_k + choice
  const float *weights;    // null, or [assignments]: multiplies the products
  u32 num_jobs, cols, tokens, x_divisor; // routed: x row = assignment / x_divisor, out row = assignment
  RowNorm norm;            // of the rows of x: its factors multiply the products; not with RESIDUAL
  ResidualEnd end;         // RESIDUAL
};

enum Epilogue { STORE_F32 = 0, SWIGLU = 2, RESIDUAL = 3 };

DEVICE float silu(float x) { return x / (1.0f + exp2_fast(-1.44269504f * x)); }

// Writes the result of one output and one token, times `scale`. `up` only for SWIGLU.
template <int EPILOGUE> DEVICE void finish(void *out, u64 index, float value, float up, float scale) {
  if constexpr (EPILOGUE != SWIGLU) {
    ((float *)out)[index] = value * scale;
  } else {
    ((u16 *)out)[index] = f32_to_bf16(silu(value * scale) * (up * scale));
  }
}

// Which job, which rows of the matrix and which tokens a thread block works on.
struct Work {
  const MatmulJob *job;
  const u8 *codes, *up_codes;
  const u32 *scales, *up_scales;
  const u32 *order;  // null: the tokens are `first`..; else their assignments
  u32 row_block, first, count;
};

DEVICE const MatmulJob &find_job(const MatmulArgs &args, u32 block) {
  u32 j = 0;
#pragma unroll
  for (u32 i = 1; i < 4; i++)
    if (i < args.num_jobs && block >= args.jobs[i].first_block) j = i;
  return args.jobs[j];
}

// Blocks run through the row blocks of `span` token tiles before they go on to the next ones, so that
// neighbours share weights or activations in L2; 0: of all of them, or of one where experts differ. False: there is
// nothing to do. Only for routed jobs this reads what launches before wrote.
DEVICE bool find_work(const MatmulArgs &args, u32 block, u32 rows_per_block, u32 tokens_per_tile,
                      u32 span, Work &work) {
  const MatmulJob &job = find_job(args, block);
  block -= job.first_block;
  if (span == 0) span = job.routed ? 1 : ceil_div(args.tokens, tokens_per_tile);
  u32 row_blocks = ceil_div(job.rows, rows_per_block);
  u32 chunk = block / (row_blocks * span), within = block % (row_blocks * span);
  u32 tile = chunk * span + within % span;
  work.job = &job;
  work.row_block = within / span;
  u32 expert = 0;
  if (job.routed) {
    if (tile >= *args.num_tiles) return false;
    TokenTile t = args.route[tile];
    expert = t.expert, work.order = args.order + t.first, work.first = 0, work.count = t.count;
  } else {
    if (tile * tokens_per_tile >= args.tokens) return false;
    work.order = nullptr, work.first = tile * tokens_per_tile;
    work.count = min(tokens_per_tile, args.tokens - work.first);
  }
  work.codes = job.codes + expert * job.codes_stride;
  work.scales = job.scales + expert * job.scales_stride;
  work.up_codes = job.up_codes + expert * job.codes_stride;
  work.up_scales = job.up_scales + expert * job.scales_stride;
  return true;
}

// The token (or assignment) number `i` of the work; its row of x; its row of the result.
DEVICE u32 assignment(const Work &work, u32 i) { return work.order ? work.order[i] : work.first + i; }
DEVICE u32 x_row(const MatmulArgs &args, const Work &work, u32 i) {
  u32 row = assignment(work, i);
  return work.job->first_x + (work.order ? row / args.x_divisor : row);
}
DEVICE const u16 *activations(const MatmulArgs &args, const Work &work, u32 i) {
  return args.x + (u64)x_row(args, work, i) * args.cols;
}
// What multiplies the products of assignment `at`, of whose norm `factor` is left; every kernel in this order.
DEVICE float assignment_scale(const MatmulArgs &args, const Work &work, u32 at, float factor) {
  return work.order && args.weights ? factor * args.weights[at] : factor;
}
