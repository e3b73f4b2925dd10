// Tensor core instructions, for kernels that have them as inline PTX. g++ takes no PTX, so such a kernel reads
//
//   #ifdef BRIOLETTE_EMULATED
//     emulated_mma_f16(d, a, b, c);
//   #else
//     asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 ..." : ...);
//   #endif
//
// Registers hold the fragments that the PTX ISA gives for these shapes ("Matrix fragments for mma.m16n8k16" and
// "... m16n8k32"). All 32 lanes must come. Products are summed exactly and rounded once; a GPU's sums differ in last
// bits.
#pragma once

namespace emulator {

struct MmaOperands {
  void* d;
  const unsigned* a;  // 4 registers
  const unsigned* b;  // 2 registers
  const void* c;
};

// Element `i` of the registers of a lane: 32 / width elements in each.
template <class T>
inline T element(const unsigned* registers, int i) {
  constexpr int each = 4 / sizeof(T);
  const unsigned word = registers[i / each] >> (i % each * 8 * sizeof(T));
  T value;
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}

// The lane's row of four rows in a group, and its elements along k: `Run` neighbours, then the same 4 * Run further on.
// d[16 x 8] = a[16 x K] b[K x 8] + c, K = 8 * Run.
template <class T, class Sum, class Out, double (*value)(T), int Run>
inline void multiply(void* const* operands) {
  constexpr int K = 8 * Run;
  double a[16][K], b[K][8];
  for (int lane = 0; lane < 32; lane++) {
    const auto& mine = *static_cast<const MmaOperands*>(operands[lane]);
    const int group = lane / 4, within = lane % 4;
    for (int i = 0; i < 4 * Run; i++)
      a[group + (i / Run & 1 ? 8 : 0)][within * Run + i % Run + (i >= 2 * Run ? 4 * Run : 0)] =
          value(element<T>(mine.a, i));
    for (int i = 0; i < 2 * Run; i++)
      b[within * Run + i % Run + (i >= Run ? 4 * Run : 0)][group] = value(element<T>(mine.b, i));
  }
  Out d[32][4];
  for (int lane = 0; lane < 32; lane++) {
    const auto& mine = *static_cast<const MmaOperands*>(operands[lane]);
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + (i & 1);
      Sum sum = Sum(static_cast<const Out*>(mine.c)[i]);
      for (int k = 0; k < K; k++) sum += Sum(a[row][k] * b[k][column]);
      d[lane][i] = Out(sum);
    }
  }
  // c may be d: results are stored when all has been read.
  for (int lane = 0; lane < 32; lane++)
    __builtin_memcpy(static_cast<const MmaOperands*>(operands[lane])->d, d[lane], sizeof d[lane]);
}

inline double half_value(unsigned short x) {
  emulated_half h;
  __builtin_memcpy(&h, &x, sizeof h);
  return double(h);
}
inline double bfloat16_value(unsigned short x) { return double(__uint_as_float(unsigned(x) << 16)); }
inline double byte_value(signed char x) { return x; }

struct MatrixRow {
  const void* address;  // where this lane's row of 16 bytes starts
  unsigned* registers;
  int count;
  bool transposed;
};

inline void load_matrices(void* const* operands) {
  for (int lane = 0; lane < 32; lane++) {
    const auto& mine = *static_cast<const MatrixRow*>(operands[lane]);
    for (int j = 0; j < mine.count; j++) {
      unsigned short pair[2];
      for (int e = 0; e < 2; e++) {
        const int row = mine.transposed ? lane % 4 * 2 + e : lane / 4,
                  column = mine.transposed ? lane / 4 : lane % 4 * 2 + e;
        const auto& holder = *static_cast<const MatrixRow*>(operands[8 * j + row]);
        pair[e] = static_cast<const unsigned short*>(holder.address)[column];
      }
      mine.registers[j] = pair[0] | unsigned(pair[1]) << 16;
    }
  }
}

}  // namespace emulator

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
inline void emulated_mma_f16(float* d, const unsigned* a, const unsigned* b, const float* c, BRIOLETTE_SITE) {
  emulator::MmaOperands mine{d, a, b, c};
  emulator::emulator_collective(emulator::multiply<unsigned short, double, float, emulator::half_value, 2>, &mine,
                                BRIOLETTE_HERE);
}
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
inline void emulated_mma_bf16(float* d, const unsigned* a, const unsigned* b, const float* c, BRIOLETTE_SITE) {
  emulator::MmaOperands mine{d, a, b, c};
  emulator::emulator_collective(emulator::multiply<unsigned short, double, float, emulator::bfloat16_value, 2>, &mine,
                                BRIOLETTE_HERE);
}
// mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32
inline void emulated_mma_s8(int* d, const unsigned* a, const unsigned* b, const int* c, BRIOLETTE_SITE) {
  emulator::MmaOperands mine{d, a, b, c};
  emulator::emulator_collective(emulator::multiply<signed char, long long, int, emulator::byte_value, 4>, &mine,
                                BRIOLETTE_HERE);
}

// ldmatrix.sync.aligned.m8n8.x1, .x2, .x4 (and .trans): lane 8 * j + r holds the address of row r of matrix j.
inline void emulated_ldmatrix(unsigned* registers, int count, const void* row, bool transposed = false,
                              BRIOLETTE_SITE) {
  const bool used = int(emulator::emulator_thread->lane) < 8 * count;
  if (used && reinterpret_cast<emulator::Word>(row) % 16)
    emulator::emulator_fault("misaligned: ldmatrix needs rows at multiples of 16 bytes", BRIOLETTE_HERE);
  if (used) {  // by the lane that names it, for what watches over memory
    const uint4 touched = *static_cast<const uint4*>(row);
    asm volatile("" : : "m"(touched));
  }
  emulator::MatrixRow mine{row, registers, count, transposed};
  emulator::emulator_collective(emulator::load_matrices, &mine, BRIOLETTE_HERE);
}
