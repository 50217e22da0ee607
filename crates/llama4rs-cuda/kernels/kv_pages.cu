// Writing keys and values into exact pages, and sealing full ones; the layouts are drawn in
// llama4rs-tensor/src/kv.rs.
// Constants: HEAD_DIM, KV_HEADS, PAGE_TOKENS; KV_BF16: 1 when exact pages are bf16 (rounded to nearest
// even), else single precision; CODE_BITS: 4 or 8 when pages can be sealed, else 0.

#if KV_BF16
typedef u16 Element;
DEVICE Element element(float x) { return f32_to_bf16(x); }
#else
typedef float Element;
DEVICE Element element(float x) { return x; }
#endif

// Row t of keys and values, [rows, KV_HEADS * HEAD_DIM], goes to token offsets[t] of pages[t]. One
// block a row; each value is read once, written once.
KERNEL(256) write_kv(const u64 *pages, const u32 *offsets, const float *keys, const float *values,
                     u32 layer) {
  begin_launch();
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

// out = H x / sqrt(B) for each head, H the Hadamard matrix of order B, the largest power of two that
// divides HEAD_DIM. One block of 128 threads a head; out may be x.
KERNEL(128) rotate_heads(float *out, const float *x) {
  begin_launch();
  constexpr u32 ORDER = HEAD_DIM & -HEAD_DIM;
  SHARED float values[HEAD_DIM];
  u64 base = (u64)blockIdx.x * HEAD_DIM;
  for (u32 i = threadIdx.x; i < HEAD_DIM; i += 128) values[i] = x[base + i];
  __syncthreads();
  for (u32 half = 1; half < ORDER; half *= 2) {
    for (u32 i = threadIdx.x; i < HEAD_DIM / 2; i += 128) {
      u32 low = i / half * 2 * half + i % half;
      float a = values[low], b = values[low + half];
      values[low] = a + b, values[low + half] = a - b;
    }
    __syncthreads();
  }
  float norm = 1.0f / sqrtf((float)ORDER);
  for (u32 i = threadIdx.x; i < HEAD_DIM; i += 128) out[base + i] = values[i] * norm;
}

#if CODE_BITS
constexpr u32 SEALED_WIDTH = (HEAD_DIM + 15) / 16 * 16, PER_WORD = 32 / CODE_BITS;
constexpr u32 KEY_CODES = 4 * SEALED_WIDTH, CODE_BYTES = PAGE_TOKENS * SEALED_WIDTH * CODE_BITS / 8;
constexpr u32 VALUE_SCALES = KEY_CODES + CODE_BYTES, VALUE_CODES = VALUE_SCALES + 4 * PAGE_TOKENS;
constexpr u32 SEALED_BYTES = VALUE_CODES + CODE_BYTES;
constexpr float ZERO = 1 << (CODE_BITS - 1), TOP = (1 << CODE_BITS) - 1, LARGEST_F16 = 65504.0f;

// A number that has a place among f16.
DEVICE float tame(u16 x) {
  float y = bf16_to_f32(x);
  return y == y ? fminf(fmaxf(y, -LARGEST_F16), LARGEST_F16) : 0.0f;
}

// Quantises `count` numbers, `stride` apart, that share a centre and a step, into `codes`.
template <class Put>
DEVICE void seal_numbers(const u16 *numbers, u32 count, u32 stride, u16 *centres, u16 *steps, u32 index,
                         Put put) {
  float low = infinity(), high = -infinity();
  for (u32 i = 0; i < count; i++) {
    float x = tame(numbers[i * stride]);
    low = fminf(low, x), high = fmaxf(high, x);
  }
  u16 centre = f32_to_f16(low + (high - low) / TOP * ZERO);
  float middle = f16_to_f32(centre);
  float reach = fmaxf((middle - low) / ZERO, (high - middle) / (TOP - ZERO));
  u16 step = f32_to_f16(fmaxf(reach, 0.0f));
  if (f16_to_f32(step) < reach) step++;
  centres[index] = centre, steps[index] = step;
  float width = f16_to_f32(step), inverse = width > 0.0f ? 1.0f / width : 0.0f;
  for (u32 i = 0; i < count; i++) {
    float code = rintf((tame(numbers[i * stride]) - middle) * inverse) + ZERO;
    put(i, (u32)fminf(fmaxf(code, 0.0f), TOP));
  }
}

// Adds a code to its word; several threads may add to one word.
DEVICE void put_code(u32 *words, u32 lane, u32 at, u32 length, u32 code) {
  u32 word = (lane / 16 * (length / PER_WORD) + at / PER_WORD) * 16 + lane % 16, i = at % PER_WORD;
  atomicOr(words + word, code << (i % 4 * 8 + i / 4 * 4));
}

// Seals one head of a layer: pages[2i] exact to pages[2i + 1]. Launch: (pages, KV_HEADS) blocks of 128.
KERNEL(128) seal(const u64 *pages, u32 layer) {
  begin_launch();
  u64 place = (u64)layer * KV_HEADS + blockIdx.y;
  const u16 *exact = reinterpret_cast<const u16 *>(pages[2 * blockIdx.x]) + place * 2 * PAGE_TOKENS * HEAD_DIM;
  u8 *head = reinterpret_cast<u8 *>(pages[2 * blockIdx.x + 1]) + place * SEALED_BYTES;
  for (u32 i = threadIdx.x; i < SEALED_BYTES / 4; i += 128) reinterpret_cast<u32 *>(head)[i] = 0;
  __syncthreads();
  u16 *centres = reinterpret_cast<u16 *>(head);
  u32 *codes = reinterpret_cast<u32 *>(head + KEY_CODES);
  for (u32 d = threadIdx.x; d < HEAD_DIM; d += 128)
    seal_numbers(exact + d, PAGE_TOKENS, HEAD_DIM, centres, centres + SEALED_WIDTH, d,
                 [&](u32 token, u32 code) { put_code(codes, token, d, SEALED_WIDTH, code); });
  exact += PAGE_TOKENS * HEAD_DIM;
  centres = reinterpret_cast<u16 *>(head + VALUE_SCALES);
  codes = reinterpret_cast<u32 *>(head + VALUE_CODES);
  for (u32 t = threadIdx.x; t < PAGE_TOKENS; t += 128)
    seal_numbers(exact + t * HEAD_DIM, HEAD_DIM, 1, centres, centres + PAGE_TOKENS, t,
                 [&](u32 d, u32 code) { put_code(codes, d, t, PAGE_TOKENS, code); });
}
#endif
