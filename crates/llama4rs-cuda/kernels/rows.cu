// Elementwise operations and moves of rows. Tensors are [rows, cols] single precision, row-major.
//
// `x op= y` over all values: one thread a value, ceil(count / 256) blocks.
// Per row: one block of 256 threads a row.
// Each value is read once per operand and written once.

DEVICE u64 global_index() { return (u64)blockIdx.x * 256 + threadIdx.x; }

KERNEL(256) add(float *x, const float *y, u64 count) {
  begin_launch();
  u64 i = global_index();
  if (i < count) x[i] += y[i];
}

// silu(gate) * up with silu(x) = x / (1 + exp(-x)).
KERNEL(256) swiglu(float *gate, const float *up, u64 count) {
  begin_launch();
  u64 i = global_index();
  if (i < count) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

// x/2 * (1 + erf(x / sqrt(2))).
KERNEL(256) gelu(float *x, u64 count) {
  begin_launch();
  u64 i = global_index();
  if (i < count) x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678118654752f));
}

KERNEL(256) scale_rows(float *x, const float *scales, u32 cols) {
  begin_launch();
  float *row = x + (u64)blockIdx.x * cols;
  for (u32 i = threadIdx.x; i < cols; i += 256) row[i] *= scales[blockIdx.x];
}

KERNEL(256) add_bias(float *x, const float *bias, u32 cols) {
  begin_launch();
  float *row = x + (u64)blockIdx.x * cols;
  for (u32 i = threadIdx.x; i < cols; i += 256) row[i] += bias[i];
}

// out[i] = x[rows[i]]
KERNEL(256) select_rows(float *out, const float *x, const u32 *rows, u32 cols) {
  begin_launch();
  const float *from = x + (u64)rows[blockIdx.x] * cols;
  float *to = out + (u64)blockIdx.x * cols;
  for (u32 i = threadIdx.x; i < cols; i += 256) to[i] = from[i];
}

// x[moves[2i]] = with[moves[2i + 1]]; no row of x comes twice.
KERNEL(256) replace_rows(float *x, const float *with, const u32 *moves, u32 cols) {
  begin_launch();
  float *to = x + (u64)moves[2 * blockIdx.x] * cols;
  const float *from = with + (u64)moves[2 * blockIdx.x + 1] * cols;
  for (u32 i = threadIdx.x; i < cols; i += 256) to[i] = from[i];
}

// Rotates the pairs of every head by the row's angles: `rotations` is [rows, head_dim], cos, sin per
// pair. One block a row.
KERNEL(256) rope(float *x, const float *rotations, u32 cols, u32 head_dim) {
  begin_launch();
  float2 *row = reinterpret_cast<float2 *>(x + (u64)blockIdx.x * cols);
  const float2 *angles = reinterpret_cast<const float2 *>(rotations + (u64)blockIdx.x * head_dim);
  for (u32 i = threadIdx.x; i < cols / 2; i += 256) {
    float2 pair = row[i], angle = angles[i % (head_dim / 2)];
    row[i] = make_float2(fmaf(-pair.y, angle.y, pair.x * angle.x),
                         fmaf(pair.x, angle.y, pair.y * angle.x));
  }
}
