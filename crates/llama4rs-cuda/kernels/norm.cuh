// RMSNorm whose factor comes last. Products are linear: W · (x * w / r) = (W · (x * w)) / r with
// r = sqrt(mean(x^2) + eps), so whoever completes a row writes x * w and sums of squares, and whoever multiplies
// it by matrices multiplies the results by 1 / r. Nobody waits for the sum of a whole row, or reads x again for it.
//
// Squares are added in one order, whoever does it: in panels of 16 inputs (v^2 of input g plus that of g + 8,
// then these eight as a tree over g ^ 1, g ^ 2, g ^ 4; past the end of a row there are zeros), then lane
// i of a warp the panels i, i + 32, .., then the lanes as `warp_sum` does.

// What is left of a norm of rows [rows, width] that are multiplied by its weight already.
struct RowNorm {
  const float *squares;  // [rows][parts]; null: nothing is left
  u32 parts;             // panels of a row, or 1: their sum
  float eps;
};

// The sum of the panels of a row; a single one stays as it is. All lanes call, and get it.
DEVICE float sum_panels(const float *panels, u32 count) {
  float sum = 0.0f;
#pragma unroll 10 // all panels of 5120 inputs are under way at once
  for (u32 i = threadIdx.x % WARP; i < count; i += WARP) sum += panels[i];
  return warp_sum(sum);
}

DEVICE float norm_factor(float squares, u32 width, float eps) { return 1.0f / sqrtf(squares / (float)width + eps); }

// Of a row; all lanes of a warp call, and get it.
DEVICE float row_factor(const RowNorm &norm, u64 row, u32 width) {
  return norm_factor(sum_panels(norm.squares + row * norm.parts, norm.parts), width, norm.eps);
}
// The same where sums are whole; one thread. Without a norm 1.
DEVICE float whole_row_factor(const RowNorm &norm, u64 row, u32 width) {
  return norm.squares ? norm_factor(norm.squares[row], width, norm.eps) : 1.0f;
}
