// Products of small tiles by the lanes of a warp together, spread over their registers as PTX says; and, where there are
// no such instructions, the emulator's functions.

// c += a b for tiles of 16 x 16 and 16 x 8 of f16 with f32 sums (mma.m16n8k16).
__device__ __forceinline__ void mma_16_8_16(float c[4], const u32 a[4], const u32 b[2]) {
#ifdef BRIOLETTE_EMULATED
  emulated_mma_f16(c, a, b, c);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The same for tiles of 16 x 32 and 32 x 8 of bytes with signs (mma.m16n8k32).
__device__ __forceinline__ void mma_16_8_32(int c[4], const u32 a[4], const u32 b[2]) {
#ifdef BRIOLETTE_EMULATED
  emulated_mma_s8(c, a, b, c);
#else
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The same for half as many columns of a and rows of b: one half of the registers of the larger tiles.
__device__ __forceinline__ void mma_16_8_half(int c[4], u32 upper, u32 lower, u32 b) {
#ifdef BRIOLETTE_EMULATED
  const u32 a[4] = {upper, lower, 0, 0}, both[2] = {b, 0};
  emulated_mma_s8(c, a, both, c);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(upper), "r"(lower), "r"(b));
#endif
}

// What this thread has of the left side of a product: of a tile of 16 rows of 32 bytes, from a row and a column of a
// matrix in shared memory on.
template <int STRIDE, class Element>
__device__ __forceinline__ void tile_left(const Element* matrix, int row, int column, u32 a[4]) {
  const int below = 8 * STRIDE * sizeof(Element);
  const u8* at = (const u8*)(matrix + (row + threadIdx.x % 32 / 4) * STRIDE + column) + threadIdx.x % 4 * 4;
  a[0] = *(const u32*)at, a[1] = *(const u32*)(at + below);
  a[2] = *(const u32*)(at + 16), a[3] = *(const u32*)(at + below + 16);
}

// The same of the right side: of a tile of 8 columns, which lie as rows do.
template <int STRIDE, class Element>
__device__ __forceinline__ void tile_right(const Element* matrix, int row, int column, u32 b[2]) {
  const u8* at = (const u8*)(matrix + (row + threadIdx.x % 32 / 4) * STRIDE + column) + threadIdx.x % 4 * 4;
  b[0] = *(const u32*)at, b[1] = *(const u32*)(at + 16);
}
