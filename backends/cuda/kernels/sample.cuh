// Choosing a token from logits, by one block: what `engine/sampling.py` does, but for the order in which candidates are
// drawn from, which is here that of their ids.

#define SAMPLE_THREADS 1024

// As the host writes it: see `choosing.Wish`.
struct Wish {
  float temperature, top_p, least, penalty, random;  // least: log of min_p
  int top_k, recent;
  int ids[1];  // of tokens that the penalty is for, `recent` of them
};

__device__ __forceinline__ float of_key(u32 key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

struct SampleShared {
  float weights[256];
  int counts[256];
  float partial[32];
  u32 key;
  int place, chosen;
  float left;
  float sums[SAMPLE_THREADS];
};

template <int VOCABULARY>
struct Sampler {
  float* logits;
  float top;
  SampleShared& own;

  // The least key of those that are kept when the largest are taken until `enough` of their measures are reached: of
  // counts, or of weights. Digits of eight bits from above, each by a histogram.
  template <bool WEIGHTS>
  __device__ __forceinline__ u32 bound(float enough, u32 lowest) {
    u32 prefix = 0;
    float left = enough;
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (int i = threadIdx.x; i < 256; i += SAMPLE_THREADS) own.weights[i] = 0.0f, own.counts[i] = 0;
      __syncthreads();
      for (int i = threadIdx.x; i < VOCABULARY; i += SAMPLE_THREADS) {
        const u32 key = sort_key(logits[i]);
        if (key < lowest || (shift < 24 && key >> (shift + 8) != prefix >> (shift + 8))) continue;
        if (WEIGHTS) atomicAdd(&own.weights[key >> shift & 255u], expf(logits[i] - top));
        else atomicAdd(&own.counts[key >> shift & 255u], 1);
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        int digit = 255;
        // The last digit that has anything is taken where rounding leaves a rest.
        int last = 0;
        for (; digit >= 0; digit--) {
          const float here = WEIGHTS ? own.weights[digit] : (float)own.counts[digit];
          if (here > 0.0f) last = digit;
          if (here > 0.0f && here >= left) break;
          left -= here;
        }
        if (digit < 0) {
          digit = last;
          left = 3.0e38f;
        }
        own.key = prefix | (u32)digit << shift;
        own.left = left;
      }
      __syncthreads();
      prefix = own.key, left = own.left;
      __syncthreads();
    }
    return prefix;
  }

  // The largest logit, and the first place of it.
  __device__ __forceinline__ void largest() {
    float best = LOWEST;
    u32 best_key = 0;
    int place = VOCABULARY;
    for (int i = threadIdx.x; i < VOCABULARY; i += SAMPLE_THREADS) {
      const u32 key = sort_key(logits[i]);
      if (key > best_key) best_key = key, place = i;
    }
    if (threadIdx.x == 0) own.key = 0, own.place = VOCABULARY;
    __syncthreads();
    atomicMax(&own.key, best_key);
    __syncthreads();
    if (best_key == own.key) atomicMin(&own.place, place);
    __syncthreads();
    best = own.key == 0xffffffffu ? __int_as_float(0x7fffffff) : of_key(own.key);
    top = best;
  }

  // Draws from the tokens of a key of at least `lowest`, by weights at a temperature.
  __device__ __forceinline__ int drawn(u32 lowest, float temperature, float random) {
    const int each = (VOCABULARY + SAMPLE_THREADS - 1) / SAMPLE_THREADS, first = threadIdx.x * each;
    float sum = 0.0f;
    for (int i = first; i < first + each && i < VOCABULARY; i++) {
      if (sort_key(logits[i]) >= lowest) sum += expf((logits[i] - top) / temperature);
    }
    own.sums[threadIdx.x] = sum;
    if (threadIdx.x == 0) own.chosen = -1;
    __syncthreads();
    if (threadIdx.x == 0) {
      double total = 0.0;
      for (int t = 0; t < SAMPLE_THREADS; t++) total += own.sums[t];
      double wanted = total * random;
      int t = 0, last = 0;
      for (; t < SAMPLE_THREADS; t++) {
        if (own.sums[t] > 0.0f) last = t;
        if (wanted < own.sums[t]) break;
        wanted -= own.sums[t];
      }
      if (t == SAMPLE_THREADS) t = last, wanted = own.sums[last];
      for (int i = t * each; i < t * each + each && i < VOCABULARY; i++) {
        if (sort_key(logits[i]) < lowest) continue;
        own.chosen = i;
        const float weight = expf((logits[i] - top) / temperature);
        if (wanted < weight) break;
        wanted -= weight;
      }
    }
    __syncthreads();
    return own.chosen;
  }
};

template <int VOCABULARY>
__device__ __forceinline__ void sample(float* logits, const Wish* wish, int* token, SampleShared& own) {
  Sampler<VOCABULARY> sampler = {logits, 0.0f, own};
  for (int i = threadIdx.x; i < wish->recent; i += SAMPLE_THREADS) {
    const float value = logits[wish->ids[i]];
    logits[wish->ids[i]] = value > 0.0f ? value / wish->penalty : value * wish->penalty;
  }
  __syncthreads();
  sampler.largest();
  int chosen = own.place;
  if (!(fabsf(sampler.top) <= 3.4e38f)) {
    chosen = -1;  // no number
  } else if (wish->temperature > 0.0f) {
    u32 lowest = 0;
    if (wish->top_k > 0 && wish->top_k < VOCABULARY) lowest = sampler.template bound<false>((float)wish->top_k, 0);
    if (wish->top_p < 1.0f) {
      float sum = 0.0f;
      for (int i = threadIdx.x; i < VOCABULARY; i += SAMPLE_THREADS) {
        if (sort_key(logits[i]) >= lowest) sum += expf(logits[i] - sampler.top);
      }
      sum = block_reduce<Sum, SAMPLE_THREADS>(sum, own.partial);
      const u32 nucleus = sampler.template bound<true>(wish->top_p * sum, lowest);
      lowest = nucleus > lowest ? nucleus : lowest;
    }
    const u32 probable = sort_key(sampler.top + wish->least);
    lowest = probable > lowest ? probable : lowest;
    chosen = sampler.drawn(lowest, wish->temperature, wish->random);
  }
  if (threadIdx.x == 0) *token = chosen;
}
