// Products of many rows of activations with stored weights: tiles of both become f16 in shared memory, and tensor cores
// multiply these with f32 sums.
//
// f16 ends at 65504, which activations of some models pass. So each row is brought to at most 1 by its largest value,
// and sums are brought back at the end.

// c += a b for tiles of 16 x 16 and 16 x 8, spread over a warp as PTX says (mma.m16n8k16, f16 with f32 sums).
__device__ __forceinline__ void mma_16_8_16(float c[4], const u32 a[4], const u32 b[2]) {
#ifdef BRIOLETTE_EMULATED
  emulated_mma_f16(c, a, b, c);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Sixteen elements of a stored row from a multiple of sixteen on, as f16.
template <class Fmt>
struct Halves {
  static __device__ __forceinline__ void of(const u8* row, int column, u32 out[8]) {
    typedef Blocks<Fmt> B;
    const u8* block = row + column / Fmt::elements * Fmt::bytes;
    const int element = column % Fmt::elements, many = Fmt::low_run * B::PARTS;
    // With runs of one byte (whole bytes only), a part is the slice itself.
    const int part = Fmt::whole ? 0 : element % many / Fmt::low_run;
    const int slice = Fmt::whole ? element / 16 : (element / many * Fmt::low_run + element % Fmt::low_run) / 16;
    u32 low[4], q[4];
    B::load(block, slice, low);
    B::integers(block, slice, part, low, q);
    const float scale = B::scale(block, element), offset = B::offset(block, element) - scale * (float)Fmt::bias;
#pragma unroll
    for (int w = 0; w < 4; w++) {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const u32 byte = q[w] >> (8 * i) & 255u;
        v[i] = fmaf(scale, Fmt::is_signed || Fmt::has_table ? (float)(signed char)byte : (float)byte, offset);
      }
      out[2 * w] = two_halves(v[0], v[1]);
      out[2 * w + 1] = two_halves(v[2], v[3]);
    }
  }
};

template <class Number>
struct PlainHalves {
  static __device__ __forceinline__ void of(const u8* row, int column, u32 out[8]) {
    const typename Number::stored* w = (const typename Number::stored*)row + column;
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = two_halves(Number::get(w + 2 * i), Number::get(w + 2 * i + 1));
  }
};
template <>
struct Halves<f16> : PlainHalves<f16> {};
template <>
struct Halves<bf16> : PlainHalves<bf16> {};
template <>
struct Halves<f32> : PlainHalves<f32> {};

// `Shape` brings COLUMNS, the depth of a tile DEPTH, WIDTH weight rows of each of PRODUCTS products, X, the type of the
// activations, and `weight`, which gives sixteen elements of a row of a product's weights. ROWS rows of activations and
// four warps make a tile.
template <class Shape>
struct Gemm {
  static const int ROWS = 64, THREADS = 128, STRIDE = Shape::DEPTH + 8;  // padded: rows begin in different banks
  static const int N_TILES = Shape::WIDTH / 16, M_TILES = 2;              // of 8 and of 16, for each warp

  struct Shared {
    __align__(16) u16 x[ROWS * STRIDE];
    __align__(16) u16 w[Shape::PRODUCTS * Shape::WIDTH * STRIDE];
    float most[ROWS];
  };

  float sums[Shape::PRODUCTS][M_TILES][N_TILES][4];

  // The row of activations that this thread brings to a tile of `rows`, one of two threads that do.
  static __device__ __forceinline__ int mine(int rows) {
    const int row = threadIdx.x / 2;
    return row < rows ? row : rows - 1;
  }

  // x: this thread's row; w: the weights of each product, of which `outputs` rows from `first` on are wanted.
  __device__ __forceinline__ void run(
      const u8* x, const u8* const w[Shape::PRODUCTS], int first, int outputs, Shared& own) {
#pragma unroll
    for (int i = 0; i < Shape::PRODUCTS * M_TILES * N_TILES * 4; i++) (&sums[0][0][0][0])[i] = 0.0f;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Each thread brings half of a tile's row: of activations, and of weights.
    const int mine = threadIdx.x / 2, side = threadIdx.x % 2;
    const typename Shape::X input = {(decltype(Shape::X::row))x};
    float most = input.template most<Shape::COLUMNS>(side);
    most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
    if (side == 0) own.most[mine] = most;
    const float factor = most > 0.0f ? 1.0f / most : 0.0f;
    for (int start = 0; start < Shape::COLUMNS; start += Shape::DEPTH) {
      __syncthreads();
#pragma unroll
      for (int c = side * 16; c < Shape::DEPTH; c += 32) {
        u32 halves[8];
        input.halves(start + c, factor, halves);
        put(own.x + mine * STRIDE + c, halves);
        for (int n = mine; n < Shape::PRODUCTS * Shape::WIDTH; n += THREADS / 2) {
          const int product = n / Shape::WIDTH, row = n % Shape::WIDTH;
          Shape::weight(w, product, first + (row < outputs ? row : outputs - 1), start + c, halves);
          put(own.w + n * STRIDE + c, halves);
        }
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < Shape::DEPTH; k += 16) {
        u32 a[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
          const u16* at = own.x + (warp / 2 * 32 + m * 16 + lane / 4) * STRIDE + k + lane % 4 * 2;
          a[m][0] = *(const u32*)at, a[m][1] = *(const u32*)(at + 8 * STRIDE);
          a[m][2] = *(const u32*)(at + 8), a[m][3] = *(const u32*)(at + 8 * STRIDE + 8);
        }
#pragma unroll
        for (int p = 0; p < Shape::PRODUCTS; p++) {
#pragma unroll
          for (int n = 0; n < N_TILES; n++) {
            const int row = p * Shape::WIDTH + warp % 2 * (Shape::WIDTH / 2) + n * 8 + lane / 4;
            const u16* at = own.w + row * STRIDE + k + lane % 4 * 2;
            const u32 b[2] = {*(const u32*)at, *(const u32*)(at + 8)};
#pragma unroll
            for (int m = 0; m < M_TILES; m++) mma_16_8_16(sums[p][m][n], a[m], b);
          }
        }
      }
    }
  }

  // `body(row, column, m, n, i)` for each sum that this thread holds: sums[product][m][n][i], times own.most[row].
  template <class Body>
  __device__ __forceinline__ void each(int rows, int outputs, Body body) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
      for (int n = 0; n < N_TILES; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = warp / 2 * 32 + m * 16 + lane / 4 + i / 2 * 8;
          const int column = warp % 2 * (Shape::WIDTH / 2) + n * 8 + lane % 4 * 2 + i % 2;
          if (row < rows && column < outputs) body(row, column, m, n, i);
        }
      }
    }
  }

  static __device__ __forceinline__ void put(u16* to, const u32 halves[8]) {
    ((uint4*)to)[0] = make_uint4(halves[0], halves[1], halves[2], halves[3]);
    ((uint4*)to)[1] = make_uint4(halves[4], halves[5], halves[6], halves[7]);
  }
};

// Which of an expert's pairs a block takes, of pairs in order of their experts: tiles of EACH, one expert after another.
// `starts`: shared memory, EXPERTS + 1. False where a block has nothing to do.
template <int EXPERTS, int EACH>
__device__ __forceinline__ bool expert_tile(
    const int* ids, const int* order, int pairs, int block, int* starts, int& expert, int& begin, int& count) {
  for (int e = threadIdx.x; e <= EXPERTS; e += blockDim.x) {
    int low = 0, high = pairs;  // the first pair of an expert that is not below e
    while (low < high) {
      const int middle = (low + high) / 2;
      if (ids[order[middle]] < e) low = middle + 1;
      else high = middle;
    }
    starts[e] = low;
  }
  __syncthreads();
  for (int e = 0; e < EXPERTS; e++) {
    const int tiles = (starts[e + 1] - starts[e] + EACH - 1) / EACH;
    if (block < tiles) {
      expert = e, begin = starts[e] + block * EACH;
      count = starts[e + 1] - begin < EACH ? starts[e + 1] - begin : EACH;
      return true;
    }
    block -= tiles;
  }
  return false;
}
