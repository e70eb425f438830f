// The matrix unit of x86-64 (AMX): eight registers, each a tile of 16 rows of 64 bytes. Included by
// storages that are compiled with TIDEGATE_AMX.
//
// The emulation has rows of four bytes for each lane of a vector, so that it can be tested on any
// instruction set; on AVX-512 that is the unit's size.
#ifndef TIDEGATE_KERNELS_MATRIX_UNIT_H_
#define TIDEGATE_KERNELS_MATRIX_UNIT_H_

#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

constexpr Index kTileRows = 16;

#ifndef TIDEGATE_EMULATE_EXTENSIONS

// While it lives, the thread may use the unit. Released afterwards, the unit's state is not saved
// when the operating system changes threads.
class MatrixUnit {
 public:
  MatrixUnit() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.row_bytes[tile] = 64;
      shapes.rows[tile] = kTileRows;
    }
    // GCC 12's intrinsic declares that it reads less memory than it does.
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  }
  ~MatrixUnit() { __asm__ volatile("tilerelease" ::: "memory"); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

  // Rows in memory are `stride` bytes apart.
  template <int tile>
  TIDEGATE_INLINE void load(const void* rows, Index stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "n"(tile)
                     : "memory");
  }
  // A tile of rounded rows; the emulation tells it from a tile of vectors.
  template <int tile>
  TIDEGATE_INLINE void load_rows(const void* rows, Index stride) {
    load<tile>(rows, stride);
  }
  template <int tile>
  TIDEGATE_INLINE void store(void* rows, Index stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "n"(tile)
                     : "memory");
  }
  template <int tile>
  TIDEGATE_INLINE void clear() {
    __asm__ volatile("tilezero %%tmm%c0" ::"n"(tile));
  }

  // Adds to row m and lane n of tile `sums` the products of row m of `rows` by lane n of all rows
  // of `weights`: of pairs of bfloat16, in the order that bf16_weights.cc states; or of four signed
  // by four unsigned bytes, modulo 2^32.
  template <int sums, int rows, int weights>
  TIDEGATE_INLINE void add_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(sums), "n"(rows), "n"(weights));
  }
  template <int sums, int rows, int weights>
  TIDEGATE_INLINE void add_int8() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(sums), "n"(rows), "n"(weights));
  }
};

#else

class MatrixUnit {
 public:
  template <int tile>
  void load(const void* rows, Index stride) {
    for (Index row = 0; row < kTileRows; ++row)
      __builtin_memcpy(tiles_[tile][row], static_cast<const char*>(rows) + row * stride, kBytes);
  }
  template <int tile>
  void store(void* rows, Index stride) {
    for (Index row = 0; row < kTileRows; ++row)
      __builtin_memcpy(static_cast<char*>(rows) + row * stride, tiles_[tile][row], kBytes);
  }
  // A tile of rounded rows: rows of 64 bytes.
  template <int tile>
  void load_rows(const void* rows, Index stride) {
    for (Index row = 0; row < kTileRows; ++row)
      __builtin_memcpy(rows_[tile][row], static_cast<const char*>(rows) + row * stride, 64);
  }
  template <int tile>
  void clear() {
    __builtin_memset(tiles_[tile], 0, sizeof tiles_[tile]);
  }

  template <int sums, int rows, int weights>
  void add_bf16() {
    for (int row = 0; row < kTileRows; ++row) {
      Vec<float> even = zero<float>(), odd = zero<float>();
      for (int pair = 0; pair < 16; ++pair) {
        const Words a = rows_[rows][row][pair] - Words{};
        const Words w = vector(weights, pair);
        even = fma_of_halves(as_floats(a << 16), as_floats(w << 16), even);
        odd = fma_of_halves(as_floats(a & kUpper), as_floats(w & kUpper), odd);
      }
      const Vec<float> sum = as_floats(vector(sums, row)) + (even + odd);
      __builtin_memcpy(tiles_[sums][row], &sum.v, kBytes);
    }
  }
  template <int sums, int rows, int weights>
  void add_int8() {
    for (int row = 0; row < kTileRows; ++row) {
      Lanes<float>::Bits sum = (Lanes<float>::Bits)vector(sums, row);
      for (int quad = 0; quad < 16; ++quad) {
        const Words a = rows_[rows][row][quad] - Words{};
        sum = sums_of_quads(sum, (Lanes<float>::Bits)vector(weights, quad), (Lanes<float>::Bits)a);
      }
      __builtin_memcpy(tiles_[sums][row], &sum, kBytes);
    }
  }

 private:
  typedef std::uint32_t Words __attribute__((vector_size(vector_bytes)));
  static constexpr int kBytes = vector_bytes;
  static constexpr std::uint32_t kUpper = 0xffff0000;

  static Vec<float> as_floats(Words words) { return {(Vec<float>::Native)words}; }
  Words vector(int tile, int row) const {
    Words words;
    __builtin_memcpy(&words, tiles_[tile][row], kBytes);
    return words;
  }

  std::uint32_t tiles_[8][kTileRows][kBytes / 4];
  std::uint32_t rows_[8][kTileRows][16];
};

#endif

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_MATRIX_UNIT_H_
