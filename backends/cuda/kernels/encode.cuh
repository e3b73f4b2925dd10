// Heads to codes of a coded plane: a block for each token and head, a scale for each WIDTH values.
//
// What numpy's codecs do (`compiler/codecs`), but for the order in which squares are summed up: codes can differ where
// a value lies on a threshold.

// Sums of each WIDTH neighbours of SIZE values in shared memory, in place of the first of them. In doubles: the scale
// is to be the same whatever the order.
template <int SIZE, int WIDTH>
__device__ __forceinline__ void block_sums(double* values) {
  for (int apart = 1; apart < WIDTH; apart *= 2) {
    __syncthreads();
    for (int i = threadIdx.x; i < SIZE / (2 * apart); i += blockDim.x) {
      values[2 * apart * i] += values[2 * apart * i + apart];
    }
  }
  __syncthreads();
}

// Bits SHIFT to SHIFT + BITS of codes, to the words of a bit plane.
template <int BITS, int SHIFT>
__device__ __forceinline__ void pack(const u8* codes, u32* words, int count) {
  for (int w = threadIdx.x; w < count; w += blockDim.x) {
    u32 word = 0;
    for (int i = 0; i < 32 / BITS; i++) {
      const u32 bits = codes[32 / BITS * w + i] >> SHIFT & ((1 << BITS) - 1);
      word |= bits << (i % 4 * 8 + i / 4 * BITS);
    }
    words[w] = word;
  }
}

template <class Codec, int SIZE>
struct EncodeShared {
  double sums[SIZE];
  double lengths[SIZE / Codec::WIDTH];
  float factors[SIZE / Codec::WIDTH];
  u8 codes[(SIZE + 31) / 32 * 32];
};

template <class Codec, int SIZE, int HEADS>
__device__ __forceinline__ void encode(
    const float* x, const int* positions, const int* slots, u8* plane, const i64* capacity, EncodeShared<Codec, SIZE>& own) {
  typedef CodedPlane<Codec, SIZE> Plane;
  const int WIDTH = Codec::WIDTH, SCALES = SIZE / WIDTH;
  const int token = blockIdx.x / HEADS, head = blockIdx.x % HEADS;
  const i64 held = *capacity, place = positions[token] % held;
  u8* ring = plane + ((i64)slots[token] * HEADS + head) * Plane::bytes(held);
  u16* scales = (u16*)Plane::scales(ring, held) + place * SCALES;
  const float* values = x + (i64)blockIdx.x * SIZE;
  for (int i = threadIdx.x + SIZE; i < (SIZE + 31) / 32 * 32; i += blockDim.x) own.codes[i] = 0;

  if (Codec::ABSMAX) {
    for (int b = threadIdx.x; b < SCALES; b += blockDim.x) {
      float most = 0.0f;
      for (int i = 0; i < WIDTH; i++) {
        const float v = values[b * WIDTH + i];
        if (fabsf(v) > fabsf(most)) most = v;
      }
      const float scale = Codec::absmax_scale(most);
      own.factors[b] = scale == 0.0f ? 0.0f : 1.0f / scale;
      scales[b] = f16_bits(scale);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < SIZE; i += blockDim.x) own.codes[i] = Codec::absmax_code(values[i] * own.factors[i / WIDTH]);
  } else {
    for (int i = threadIdx.x; i < SIZE; i += blockDim.x) own.sums[i] = (double)values[i] * values[i];
    block_sums<SIZE, WIDTH>(own.sums);
    for (int b = threadIdx.x; b < SCALES; b += blockDim.x) {
      const double length = sqrt(own.sums[b * WIDTH]);
      own.lengths[b] = length;
      own.factors[b] = length == 0.0 ? 0.0f : (float)(Codec::root_width() / length);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < SIZE; i += blockDim.x) {
      const u8 code = Codec::nearest(values[i] * own.factors[i / WIDTH]);
      own.codes[i] = code;
      const double level = Codec::level(code);
      own.sums[i] = Codec::EDEN ? values[i] * level : level * level;
    }
    block_sums<SIZE, WIDTH>(own.sums);
    for (int b = threadIdx.x; b < SCALES; b += blockDim.x) {
      const double length = own.lengths[b], sum = own.sums[b * WIDTH];
      const double scale = length == 0.0 ? 0.0 : Codec::EDEN ? length * length / sum : length / sqrt(sum);
      scales[b] = f16_bits((float)scale);
    }
  }
  __syncthreads();
  pack<Plane::HIGH, Plane::LOW>(own.codes, (u32*)ring + place * Plane::HIGH_WORDS, Plane::HIGH_WORDS);
  if (Plane::LOW > 0) {
    pack<Plane::LOW ? Plane::LOW : 1, 0>(own.codes, (u32*)Plane::low_plane(ring, held) + place * Plane::LOW_WORDS, Plane::LOW_WORDS);
  }
}

// A row to integers with a scale for each BLOCK, as `Integers` (products) reads them: a warp for each BLOCK values.
template <int COLUMNS, int BITS, int BLOCK, int THREADS>
__device__ __forceinline__ void quantize(const float* x, u8* row) {
  const float LEVELS = BITS == 16 ? 127.0f * 128.0f : 127.0f;
  const int lane = threadIdx.x % 32;
  float* scales = (float*)(row + COLUMNS * (BITS / 8));
  int* sums = (int*)(scales + COLUMNS / BLOCK);
  for (int b = threadIdx.x / 32; b < COLUMNS / BLOCK; b += THREADS / 32) {
    const float* values = x + b * BLOCK;
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < BLOCK; i += 32) most = fmaxf(most, fabsf(values[i + lane]));
    const float scale = lanes_max(most) / LEVELS;
    const float inverse = scale > 1.17549435e-38f ? 1.0f / scale : 0.0f;
#pragma unroll
    for (int i = 0; i < BLOCK; i += 32) {
      const int q = __float2int_rn(values[i + lane] * inverse), column = b * BLOCK + i + lane;
      if (BITS == 16) {
        const int high = (q + 64) >> 7;
        row[column] = (u8)(q - 128 * high);
        row[COLUMNS + column] = (u8)high;
      } else {
        row[column] = (u8)q;
      }
      int sum = q;
#pragma unroll
      for (int apart = 8; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
      if (lane % 16 == 0) sums[column / 16] = sum;
    }
    if (lane == 0) scales[b] = scale;
  }
}
