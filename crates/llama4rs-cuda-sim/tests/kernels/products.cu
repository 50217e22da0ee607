// D = A B + C of one warp: A 16 x 16, B 16 x 8 (bf16), C and D 16 x 8 (f32), all by
// rows; and of bytes: A 16 x 32, B 32 x 8. A comes through ldmatrix, B through
// ldmatrix.trans, so that the fragments' layouts are tested, too.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

extern "C" __global__ void __launch_bounds__(32)
product_bf16(float* d, const u16* a, const u16* b, const float* c) {
  __shared__ __align__(16) u16 sa[16 * 24], sb[16 * 8];
  u32 lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (u32 i = lane; i < 256; i += 32) sa[i / 16 * 24 + i % 16] = a[i];
  for (u32 i = lane; i < 128; i += 32) sb[i] = b[i];
  __syncthreads();
  u32 ra[4], rb[2];
  u32 at = (u32)__cvta_generic_to_shared(sa + (lane & 15) * 24 + (lane >> 4) * 8);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3]) : "r"(at) : "memory");
  at = (u32)__cvta_generic_to_shared(sb + (lane & 15) * 8);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(rb[0]), "=r"(rb[1]) : "r"(at) : "memory");
  float s[4];
  for (u32 i = 0; i < 4; i++) s[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
               "{%8, %9}, {%0, %1, %2, %3};"
               : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
               : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  for (u32 i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = s[i];
}

extern "C" __global__ void __launch_bounds__(32) product_s8(int* d, const u8* a, const u8* b) {
  u32 lane = threadIdx.x, g = lane / 4, t = lane % 4, ra[4], rb[2];
  int s[4] = {0, 0, 0, 0};
  for (u32 i = 0; i < 4; i++) {
    ra[i] = 0;
    for (u32 e = 0; e < 4; e++) ra[i] |= (u32)a[(g + i % 2 * 8) * 32 + 4 * t + i / 2 * 16 + e] << 8 * e;
  }
  for (u32 i = 0; i < 2; i++) {
    rb[i] = 0;
    for (u32 e = 0; e < 4; e++) rb[i] |= (u32)b[(4 * t + i * 16 + e) * 8 + g] << 8 * e;
  }
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
               "{%8, %9}, {%0, %1, %2, %3};"
               : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
               : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  for (u32 i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = s[i];
}
