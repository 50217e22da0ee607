// Elementwise operations on rows: one thread a value, a grid that covers them all.
// Bytes: each value read once per operand, written once.

KERNEL(256) add(float *x, const float *y, u64 count) {
  u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i < count) x[i] += y[i];
}
