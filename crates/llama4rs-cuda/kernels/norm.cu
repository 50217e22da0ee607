// Norms. Rows are [rows, cols] single precision; one block of 256 threads a row, except `head_norm`.
// A row is read twice (the second time from the cache) and written once.

// out = x / sqrt(mean(x^2) + eps) * weight
KERNEL(256) rms_norm(float *out, const float *x, const float *weight, u32 cols, float eps) {
  begin_launch();
  const float *row = x + (u64)blockIdx.x * cols;
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < cols; i += 256) sum = fmaf(row[i], row[i], sum);
  float scale = 1.0f / sqrtf(block_sum<256>(sum) / (float)cols + eps);
  float *to = out + (u64)blockIdx.x * cols;
  for (u32 i = threadIdx.x; i < cols; i += 256) to[i] = row[i] * scale * weight[i];
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias; the variance is that of x - mean.
KERNEL(256) layer_norm(float *out, const float *x, const float *weight, const float *bias, u32 cols,
                       float eps) {
  begin_launch();
  const float *row = x + (u64)blockIdx.x * cols;
  float sum = 0.0f, squares = 0.0f;
  for (u32 i = threadIdx.x; i < cols; i += 256) sum += row[i];
  float mean = block_sum<256>(sum) / (float)cols;
  for (u32 i = threadIdx.x; i < cols; i += 256) {
    float centred = row[i] - mean;
    squares = fmaf(centred, centred, squares);
  }
  float scale = 1.0f / sqrtf(block_sum<256>(squares) / (float)cols + eps);
  float *to = out + (u64)blockIdx.x * cols;
  for (u32 i = threadIdx.x; i < cols; i += 256)
    to[i] = fmaf((row[i] - mean) * scale, weight[i], bias[i]);
}

// x / sqrt(mean(x^2) + eps) for each head; one warp a head, eight heads a block.
KERNEL(256) head_norm(float *x, u64 heads, u32 head_dim, float eps) {
  begin_launch();
  u64 head = (u64)blockIdx.x * 8 + threadIdx.x / WARP;
  u32 lane = threadIdx.x % WARP;
  bool inside = head < heads;
  float *values = x + (inside ? head : 0) * head_dim;
  float sum = 0.0f;
  for (u32 i = lane; i < head_dim; i += WARP) sum = fmaf(values[i], values[i], sum);
  float scale = 1.0f / sqrtf(warp_sum(sum) / (float)head_dim + eps);
  if (inside)
    for (u32 i = lane; i < head_dim; i += WARP) values[i] *= scale;
}
