// Storages of weights: the sizes and costs that the core reads from their tables. Their products
// are tested in test_phase.cc and test_rounded_phase.cc.
#include <algorithm>

#include "check.h"
#include "core/isa.h"
#include "kernels/table.h"
#include "variants.h"

namespace {

using namespace tidegate;

// The bytes of a scale for each unit and gate.
Index scale_bytes(const StorageKernels<float>& storage, const PanelShape& shape) {
  return storage.kind == kInt8Weights ? shape.units * shape.gates * Index{sizeof(float)} : 0;
}

}  // namespace

TEST(storages_tell_what_they_cost) {
  test::for_each_isa([] {
    for (int kind = 0; kind < kStorageKinds; ++kind) {
      const StorageKernels<float>& storage = *kernels<float>().storages[kind];
      CHECK(storage.kind == kind);
      CHECK(storage.grain == kWholeDepth || (storage.grain >= 1 && kSumBlock % storage.grain == 0));
      CHECK(storage.cost.product_flops > 0 && storage.cost.cell_flops > 0);
      // Whole slices and blocks, without padding.
      const PanelShape shape = {3 * kernels<float>().width, 128, 4};
      CHECK(static_cast<double>(storage.panel_bytes(shape) - scale_bytes(storage, shape)) ==
            static_cast<double>(shape.units * shape.depth * shape.gates) *
                storage.cost.weight_bytes);
    }
    CHECK(kernels<float>().exact().cost.product_flops == 1);
    CHECK(kernels<double>().exact().cost.weight_bytes == 8);
    CHECK(kernels<double>().storages[kBf16Weights] == nullptr);
    CHECK(kernels<double>().storages[kInt8Weights] == nullptr);
  });
}

// A panel grows with each of its sides, and so do rounded rows: the core takes memory for the
// greatest shape and uses it for all.
TEST(memory_grows_with_shapes) {
  test::for_each_isa([] {
    const Index width = kernels<float>().width;
    for (const StorageKernels<float>* const storage : kernels<float>().storages) {
      const bool rounds = storage->kind != kExactWeights;
      for (Index depth = 0; depth <= 300; ++depth) {
        const Index panel = storage->panel_bytes({width, depth, 3});
        CHECK(panel >= storage->panel_bytes({width, std::max<Index>(depth - 1, 0), 3}));
        CHECK(storage->panel_bytes({1, depth, 3}) == panel);
        CHECK(storage->panel_bytes({width + 1, depth, 3}) == 2 * panel);
        CHECK(storage->panel_bytes({width, depth, 1}) == panel / 3);
        // A rounded row is padded to whole blocks, and has a scale.
        const Index row = storage->rounded_bytes(1, depth);
        CHECK(row >= storage->rounded_bytes(1, std::max<Index>(depth - 1, 0)));
        CHECK(rounds ? row >= depth + Index{sizeof(float)} : row == 0);
        CHECK(rounds ? storage->rounded_bytes(7, depth) > row
                     : storage->rounded_bytes(7, depth) == 0);
        const Index rows = storage->max_rows(depth);
        CHECK(rows >= 16 && rows <= storage->max_rows(std::max<Index>(depth - 1, 0)));
      }
    }
  });
}
