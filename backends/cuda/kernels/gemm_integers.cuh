// Products of many rows of activations in integers with stored blocks, as the file has them: tensor cores multiply the
// small integers of both exactly. Blocks of 16 or 32 columns share a scale, so sums of so many are made at a time, and
// added up in f32 with scales and offsets, as for one row (`Product`).

// Sixteen elements of a stored row from a multiple of sixteen on: integers, four to a word, and what they stand for is
// scale * q + offset.
template <class Fmt>
__device__ __forceinline__ void sixteen(const u8* row, int column, u32 q[4], float& scale, float& offset) {
  typedef Blocks<Fmt> B;
  const u8* block = row + column / Fmt::elements * Fmt::bytes;
  const int element = column % Fmt::elements, many = Fmt::low_run * B::PARTS;
  // With runs of one byte (whole bytes only), a part is the slice itself.
  const int part = Fmt::whole ? 0 : element % many / Fmt::low_run;
  const int slice = Fmt::whole ? element / 16 : (element / many * Fmt::low_run + element % Fmt::low_run) / 16;
  u32 low[4];
  B::load(block, slice, low);
  B::integers(block, slice, part, low, q);
  scale = B::scale(block, element);
  offset = B::offset(block, element) - scale * (float)Fmt::bias;
}

// `Shape` as for `Tiles`, with RUN columns that share a scale, and OFFSETS, whether there are such.
template <class Shape>
struct GemmIntegers : Tiles<Shape> {
  typedef Tiles<Shape> T;
  typedef typename Shape::X X;
  static const int STRIDE = Shape::DEPTH + 16;  // padded: rows begin in different banks
  static const int PARTS = X::BYTES, RUNS = Shape::DEPTH / Shape::RUN, TOTALS = Shape::OFFSETS ? RUNS : 1;

  struct Shared {
    __align__(16) u8 x[PARTS][T::ROWS * STRIDE];  // low bytes, then high ones
    __align__(16) u8 w[T::OUTPUTS * STRIDE];
    float steps[Shape::DEPTH / 32][T::ROWS];  // scales of activations
    float totals[TOTALS][T::ROWS];            // sums of activations of a run, before their scale
    __align__(8) float scales[RUNS][T::OUTPUTS];
    __align__(8) float offsets[TOTALS][T::OUTPUTS];
  };

  // See `Gemm`.
  __device__ __forceinline__ void run(
      const u8* x, const u8* const w[Shape::PRODUCTS], int first, int outputs, Shared& own) {
    this->clear();
    const int mine = threadIdx.x / 2, side = threadIdx.x % 2;
    const X input = {x};
    for (int start = 0; start < Shape::COLUMNS; start += Shape::DEPTH) {
      __syncthreads();
#pragma unroll
      for (int c = side * 16; c < Shape::DEPTH; c += 32) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
          *(uint4*)(own.x[part] + mine * STRIDE + c) = *(const uint4*)(x + part * Shape::COLUMNS + start + c);
        }
        // What 32 columns share, the first of two threads brings.
        if (side == 0) own.steps[c / 32][mine] = input.scale(start + c);
        if (Shape::OFFSETS && (Shape::RUN == 16 || side == 0)) {
          own.totals[c / Shape::RUN][mine] = (float)input.template total<Shape::RUN>(start + c);
        }
        for (int n = mine; n < T::OUTPUTS; n += T::THREADS / 2) {
          const int product = n / Shape::WIDTH, row = n % Shape::WIDTH;
          u32 q[4];
          float scale, offset;
          Shape::weight(w, product, first + (row < outputs ? row : outputs - 1), start + c, q, scale, offset);
          *(uint4*)(own.w + n * STRIDE + c) = make_uint4(q[0], q[1], q[2], q[3]);
          if (Shape::RUN == 32 && side != 0) continue;
          own.scales[c / Shape::RUN][n] = scale;
          if (Shape::OFFSETS) own.offsets[c / Shape::RUN][n] = offset;
        }
      }
      __syncthreads();
#pragma unroll 1  // more would take more registers than there are
      for (int k = 0; k < Shape::DEPTH; k += 32) add(k, own);
    }
  }

  // The products of 32 columns.
  __device__ __forceinline__ void add(int k, const Shared& own) {
    u32 a[PARTS][T::M_TILES][4];
    float step[T::M_TILES][2];
#pragma unroll
    for (int m = 0; m < T::M_TILES; m++) {
#pragma unroll
      for (int part = 0; part < PARTS; part++) tile_left<STRIDE>(own.x[part], T::tile_row(m), k, a[part][m]);
#pragma unroll
      for (int i = 0; i < 2; i++) step[m][i] = own.steps[k / 32][T::first_row(m) + 8 * i];
    }
#pragma unroll
    for (int r = 0; r < 32 / Shape::RUN; r++) {
      const int run = k / Shape::RUN + r;
#pragma unroll
      for (int p = 0; p < Shape::PRODUCTS; p++) {
#pragma unroll
        for (int n = 0; n < T::N_TILES; n++) {
          u32 b[2];
          tile_right<STRIDE>(own.w, T::weight_row(p, n), k, b);
          const int column = p * Shape::WIDTH + T::first_column(n);
          const float2 scale = *(const float2*)(own.scales[run] + column);
          float2 offset = make_float2(0.0f, 0.0f);
          if (Shape::OFFSETS) offset = *(const float2*)(own.offsets[run] + column);
#pragma unroll
          for (int m = 0; m < T::M_TILES; m++) {
            int c[PARTS][4];
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
              c[part][0] = c[part][1] = c[part][2] = c[part][3] = 0;
              if (Shape::RUN == 32) mma_16_8_32(c[part], a[part][m], b);
              else mma_16_8_half(c[part], a[part][m][2 * r], a[part][m][2 * r + 1], b[r]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
              const int whole = PARTS == 2 ? c[0][i] + 128 * c[PARTS - 1][i] : c[0][i];
              float sum = (i % 2 ? scale.y : scale.x) * (float)whole;
              if (Shape::OFFSETS) {
                sum = fmaf(i % 2 ? offset.y : offset.x, own.totals[run][T::first_row(m) + i / 2 * 8], sum);
              }
              this->sums[p][m][n][i] = fmaf(step[m][i / 2], sum, this->sums[p][m][n][i]);
            }
          }
        }
      }
    }
  }

  static __device__ __forceinline__ float factor(int row, const Shared& own) { return 1.0f; }
};
