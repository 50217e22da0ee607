// Writing keys and values into pages, [layer][kv head][key, value][token][head_dim].
// Constants: HEAD_DIM, KV_HEADS, PAGE_TOKENS; KV_BF16: 1 when pages are bf16 (rounded to nearest
// even), else single precision. One block of 256 threads a row.
// Bytes: each row read once, written once.

#if KV_BF16
typedef u16 Element;
DEVICE Element element(float x) { return f32_to_bf16(x); }
#else
typedef float Element;
DEVICE Element element(float x) { return x; }
#endif

// Row t of keys and values, [rows, KV_HEADS * HEAD_DIM], goes to token offsets[t] of pages[t].
KERNEL(256) write_kv(const u64 *pages, const u32 *offsets, const float *keys, const float *values,
                     u32 layer) {
  constexpr u32 COLS = KV_HEADS * HEAD_DIM;
  constexpr u64 PLANE = (u64)PAGE_TOKENS * HEAD_DIM;
  Element *page = reinterpret_cast<Element *>(pages[blockIdx.x]) + layer * KV_HEADS * 2 * PLANE;
  u64 from = (u64)blockIdx.x * COLS;
  for (u32 i = threadIdx.x; i < COLS; i += 256) {
    u64 at = i / HEAD_DIM * 2 * PLANE + offsets[blockIdx.x] * HEAD_DIM + i % HEAD_DIM;
    page[at] = element(keys[from + i]);
    page[at + PLANE] = element(values[from + i]);
  }
}
