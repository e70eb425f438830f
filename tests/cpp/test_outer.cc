// Weight gradients and sums of rows against plain loops, bit for bit.
#include "kernels/outer.h"

#include <algorithm>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "matrix.h"

namespace tidegate {
namespace {

template <class T>
void check_outer(Random& random, Index depth, Index left_columns, Index right_columns) {
  Matrix<T> left = Matrix<T>::random(random, depth, left_columns);
  Matrix<T> right = Matrix<T>::random(random, depth, right_columns);
  if (depth > 0 && left_columns > 2) left(depth / 2, 1) = nan<T>;  // affects row 1 of the result
  const std::vector<T> before = random.numbers<T>(left_columns * right_columns);

  for (const bool resume : {false, true}) {
    std::vector<T> wanted;
    for (Index m = 0; m < left_columns; ++m) {
      for (Index n = 0; n < right_columns; ++n) {
        T sum = resume ? before[wanted.size()] : T(0);
        for (Index begin = 0; begin < depth; begin += kOuterSumBlock) {
          T block = T(0);
          for (Index r = begin; r < std::min(begin + kOuterSumBlock, depth); ++r)
            block = multiply_add(left(r, m), right(r, n), block);
          sum += block;
        }
        wanted.push_back(sum);
      }
    }
    // In one call; with the rows of the result in two parts; and with the depth in two calls,
    // divided between blocks.
    enum Cut { none, columns, depths };
    for (const Cut cut : {none, columns, depths}) {
      Matrix<T> result(left_columns, right_columns, before);
      std::vector<T> scratch(static_cast<std::size_t>(OuterShape<T>::kScratch) + 3, nan<T>);
      std::fill(scratch.end() - 3, scratch.end(), canary<T>);
      const auto run = [&](Index k0, Index k1, Index m0, Index m1) {
        OuterCall<T> call;
        call.depth = k1 - k0;
        call.left = left.strided(k0);
        call.left.base += m0;
        call.left_columns = m1 - m0;
        call.right = cut == none ? right.scattered(k0) : right.strided(k0);
        call.right_columns = right_columns;
        call.result = result.strided(m0);
        call.resume = resume || k0 > 0;
        call.scratch = scratch.data();
        outer<T>(call);
      };
      const Index third = left_columns / 3, half = depth / 2 / kOuterSumBlock * kOuterSumBlock;
      if (cut == none) run(0, depth, 0, left_columns);
      if (cut == columns) {
        run(0, depth, 0, third);
        run(0, depth, third, left_columns);
      }
      if (cut == depths) {
        run(0, half, 0, left_columns);
        if (half > 0) run(half, depth, 0, left_columns);
        if (half == 0 && depth > 0) continue;  // cannot be divided
      }
      CHECK(result.equals(wanted));
      for (int i = 1; i <= 3; ++i) CHECK(scratch[scratch.size() - i] == canary<T>);
    }
  }
}

template <class T>
void check_outer() {
  Random random(10);
  for (const Index depth : {0, 1, 5}) {
    for (const Index left_columns : {1, 2, 3, 4, 5, 6, 7, 8, 13, 33}) {
      for (const Index right_columns : {1, 3, 15, 16, 17, 33, 100}) {
        check_outer<T>(random, depth, left_columns, right_columns);
      }
    }
  }
  // More columns than are packed at a time.
  for (const Index depth :
       {kOuterSumBlock - 1, kOuterSumBlock, kOuterSumBlock + 1, 2 * kOuterSumBlock + 44}) {
    check_outer<T>(random, depth, 7, 17);
  }
  for (const Index more : {0, 1, 2, 17}) check_outer<T>(random, 5, kOuterLeft + more, 17);
  check_outer<T>(random, kOuterSumBlock + 5, 2 * kOuterLeft + 1, 3);
}

// ---- Sums of rows

template <class T>
void check_sums() {
  Random random(20);
  for (const Index rows : {Index{0}, Index{1}, Index{2}, Index{13}, 2 * kOuterSumBlock + 1}) {
    for (const Index columns : {0, 1, 3, 15, 16, 17, 33, 100}) {
      Matrix<T> from = Matrix<T>::random(random, rows, columns);
      const std::vector<T> before = random.numbers<T>(columns);
      for (const bool resume : {false, true}) {
        for (const bool table : {false, true}) {
          Matrix<T> sum(1, columns, 3, canary<T>);
          std::copy(before.begin(), before.end(), sum.row(0));
          sum_rows<T>(table ? from.scattered() : from.strided(), rows, columns, sum.row(0), resume);
          for (Index j = 0; j < columns; ++j) {
            T wanted = resume ? before[static_cast<std::size_t>(j)] : T(0);
            for (Index begin = 0; begin < rows; begin += kOuterSumBlock) {
              T block = T(0);
              for (Index r = begin; r < std::min(begin + kOuterSumBlock, rows); ++r)
                block += from(r, j);
              wanted += block;
            }
            CHECK(same(sum(0, j), wanted));
          }
          CHECK(sum.gaps_are(canary<T>));
        }
      }
      for (const bool table : {false, true}) {
        Matrix<T> to(rows, columns, 3, canary<T>);
        for (Index r = 0; r < rows; ++r) {
          for (Index j = 0; j < columns; ++j) to(r, j) = T(0.1) * static_cast<T>(r + j);
        }
        Matrix<T> wanted = to;
        add_rows<T>(table ? from.scattered() : from.strided(), to.strided(), rows, columns);
        for (Index r = 0; r < rows; ++r) {
          for (Index j = 0; j < columns; ++j) CHECK(same(to(r, j), wanted(r, j) + from(r, j)));
        }
        CHECK(to.gaps_are(canary<T>));
      }
    }
  }
}

}  // namespace

TEST(weight_gradients) {
  check_outer<float>();
  check_outer<double>();
}

TEST(sums_of_rows) {
  check_sums<float>();
  check_sums<double>();
}

}  // namespace tidegate
