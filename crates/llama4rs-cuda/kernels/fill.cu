// Repeatable random bits, for measurements: never zeros, never NaN when the caller masks well.
//
// fill: word i = (hash(seed, i) & keep) | set; one thread a word, blocks of 256. Bytes: each word written once.

KERNEL(256) fill(u32 *out, u64 words, u32 seed, u32 keep, u32 set) {
  begin_launch();
  u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= words) return;
  u64 z = i + (u64)seed * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  out[i] = ((u32)(z ^ (z >> 31)) & keep) | set;
}
