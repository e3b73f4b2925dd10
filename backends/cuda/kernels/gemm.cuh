// Products of many rows of activations with stored weights that are plain numbers, and what tiles of all formats share.
//
// Tiles of both become f16 in shared memory, and tensor cores multiply these with f32 sums. f16 ends at 65504, which
// activations of some models pass, and has eleven bits, which others feel: each row is brought to at most 1 by its
// largest value, sums are brought back at the end, and a row is two in f16, the second of what the first leaves.

// Sixteen elements of a stored row from a multiple of sixteen on, as f16.
template <class Number>
struct Halves {
  static __device__ __forceinline__ void of(const u8* row, int column, u32 out[8]) {
    const typename Number::stored* w = (const typename Number::stored*)row + column;
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = two_halves(Number::get(w + 2 * i), Number::get(w + 2 * i + 1));
  }
};

// `Shape` brings COLUMNS, the depth of a tile DEPTH, WIDTH weight rows of each of PRODUCTS products, X, the type of the
// activations, and `weight`, which gives sixteen elements of a row of a product's weights. ROWS rows of activations and
// four warps make a tile.
template <class Shape>
struct Tiles {
  static const int ROWS = 64, THREADS = 128;
  static const int OUTPUTS = Shape::PRODUCTS * Shape::WIDTH;
  static const int N_TILES = Shape::WIDTH / 16, M_TILES = 2;  // of 8 and of 16, for each warp

  float sums[Shape::PRODUCTS][M_TILES][N_TILES][4];

  // The row of activations that this thread brings to a tile of `rows`, one of two threads that do.
  static __device__ __forceinline__ int mine(int rows) {
    const int row = threadIdx.x / 2;
    return row < rows ? row : rows - 1;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < Shape::PRODUCTS * M_TILES * N_TILES * 4; i++) (&sums[0][0][0][0])[i] = 0.0f;
  }

  // The first row of a tile of its warp; the first of this thread's rows in it, and of its columns; the first of the
  // rows of weights that a tile's columns are.
  static __device__ __forceinline__ int tile_row(int m) { return threadIdx.x / 64 * 32 + m * 16; }
  static __device__ __forceinline__ int first_row(int m) { return tile_row(m) + threadIdx.x % 32 / 4; }
  static __device__ __forceinline__ int first_column(int n) {
    return threadIdx.x / 32 % 2 * (Shape::WIDTH / 2) + n * 8 + threadIdx.x % 4 * 2;
  }
  static __device__ __forceinline__ int weight_row(int p, int n) {
    return p * Shape::WIDTH + threadIdx.x / 32 % 2 * (Shape::WIDTH / 2) + n * 8;
  }

  // `body(row, column, m, n, i)` for each sum that this thread holds: sums[product][m][n][i].
  template <class Body>
  __device__ __forceinline__ void each(int rows, int outputs, Body body) const {
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
      for (int n = 0; n < N_TILES; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = first_row(m) + i / 2 * 8, column = first_column(n) + i % 2;
          if (row < rows && column < outputs) body(row, column, m, n, i);
        }
      }
    }
  }
};

template <class Shape>
struct Gemm : Tiles<Shape> {
  typedef Tiles<Shape> T;
  static const int STRIDE = Shape::DEPTH + 8;  // padded: rows begin in different banks

  struct Shared {
    __align__(16) u16 x[2][T::ROWS * STRIDE];
    __align__(16) u16 w[T::OUTPUTS * STRIDE];
    float most[T::ROWS];
  };

  // x: this thread's row; w: the weights of each product, of which `outputs` rows from `first` on are wanted.
  __device__ __forceinline__ void run(
      const u8* x, const u8* const w[Shape::PRODUCTS], int first, int outputs, Shared& own) {
    this->clear();
    // Each thread brings half of a tile's row: of activations, and of weights.
    const int mine = threadIdx.x / 2, side = threadIdx.x % 2;
    const typename Shape::X input = {(const float*)x};
    float most = input.template most<Shape::COLUMNS>(side);
    most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
    if (side == 0) own.most[mine] = most;
    const float factor = most > 0.0f ? 1.0f / most : 0.0f;
    for (int start = 0; start < Shape::COLUMNS; start += Shape::DEPTH) {
      __syncthreads();
#pragma unroll
      for (int c = side * 16; c < Shape::DEPTH; c += 32) {
        u32 halves[8], rest[8];
        input.halves(start + c, factor, halves, rest);
        put(own.x[0] + mine * STRIDE + c, halves);
        put(own.x[1] + mine * STRIDE + c, rest);
        for (int n = mine; n < T::OUTPUTS; n += T::THREADS / 2) {
          const int product = n / Shape::WIDTH, row = n % Shape::WIDTH;
          Shape::weight(w, product, first + (row < outputs ? row : outputs - 1), start + c, halves);
          put(own.w + n * STRIDE + c, halves);
        }
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < Shape::DEPTH; k += 16) {
        u32 a[2][T::M_TILES][4];
#pragma unroll
        for (int part = 0; part < 2; part++) {
#pragma unroll
          for (int m = 0; m < T::M_TILES; m++) tile_left<STRIDE>(own.x[part], T::tile_row(m), k, a[part][m]);
        }
#pragma unroll
        for (int p = 0; p < Shape::PRODUCTS; p++) {
#pragma unroll
          for (int n = 0; n < T::N_TILES; n++) {
            u32 b[2];
            tile_right<STRIDE>(own.w, T::weight_row(p, n), k, b);
#pragma unroll
            for (int m = 0; m < T::M_TILES; m++) {
              mma_16_8_16(this->sums[p][m][n], a[0][m], b);
              mma_16_8_16(this->sums[p][m][n], a[1][m], b);
            }
          }
        }
      }
    }
  }

  // What a row's sums are to be multiplied with.
  static __device__ __forceinline__ float factor(int row, const Shared& own) { return own.most[row]; }

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
