// Packing of blocks of parameters into the panels that kernels read. Only the storage knows the
// layout of its panels; nothing here computes an address inside a panel.
#ifndef TIDEGATE_CORE_PANELS_H_
#define TIDEGATE_CORE_PANELS_H_

#include <algorithm>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "core/slices.h"
#include "core/thread_setup.h"
#include "core/threads/threads.h"
#include "kernels/table.h"

namespace tidegate {

// Panels of at least this size are packed by several threads; one thread takes about 100 us.
constexpr Index kSharedBytes = 256 * 1024;

// The panels of a layout. All panels are first taken from an arena, and then packed.
template <class T>
class Panels {
 public:
  Panels(const Kernels<T>& kernels, const StorageKernels<T>& storage)
      : kernels_(kernels), storage_(storage) {}

  // Memory for a panel to be packed from the blocks, and zero beyond the units. Null while the
  // arena counts.
  Panel take(Arena& arena, const PanelShape& shape, std::vector<WeightBlock<T>> blocks) {
    return take(arena, storage_, shape, std::move(blocks));
  }

  // The same for vectors that the cell reads: [slice][gate][width], a vector of units for each
  // block, which is sign * base[unit]. `blocks` give only gate, base and sign.
  const T* take_vectors(Arena& arena, Index units, std::vector<WeightBlock<T>> blocks) {
    for (WeightBlock<T>& block : blocks) {
      block.k_begin = 0;
      block.k_end = 1;
      block.unit_stride = 1;
    }
    const PanelShape shape = {units, 1, static_cast<Index>(blocks.size())};
    return static_cast<const T*>(take(arena, kernels_.exact(), shape, std::move(blocks)));
  }

  // Packs all panels with at most `threads` threads.
  void pack(int threads) const {
    const ThreadSetup setup;
    ThreadLease lease(bytes_ >= kSharedBytes ? threads : 1);
    lease.run([&](int thread) {
      for (const Contents& panel : all_)
        pack(panel, part_of(slice_count(panel.shape.units, kernels_.width), thread, lease.size()));
    });
  }

 private:
  struct Contents {
    const StorageKernels<T>* storage;
    void* panel;
    PanelShape shape;
    std::vector<WeightBlock<T>> blocks;
  };

  Panel take(Arena& arena, const StorageKernels<T>& storage, const PanelShape& shape,
             std::vector<WeightBlock<T>> blocks) {
    // Throws if the bytes of the panel overflow.
    checked_size(slice_count(shape.units, kernels_.width), kernels_.width,
                 checked_sum(shape.depth, kPackedDepth), shape.gates, Index{sizeof(double)});
    const Index bytes = storage.panel_bytes(shape);
    void* const panel = arena.take<char>(bytes);
    if (arena.counting()) return nullptr;
    all_.push_back({&storage, panel, shape, std::move(blocks)});
    bytes_ += bytes;
    return panel;
  }

  void pack(const Contents& contents, Range slices) const {
    PackCall<T> call;
    call.panel = contents.panel;
    call.shape = contents.shape;
    for (call.slice = slices.begin; call.slice < slices.end; ++call.slice) {
      for (Index begin = 0; begin < call.shape.depth; begin += kPackedDepth) {
        const Index end = std::min(begin + kPackedDepth, call.shape.depth);
        for (const WeightBlock<T>& block : contents.blocks) {
          call.k_begin = std::max(begin, block.k_begin);
          call.k_end = std::min(end, block.k_end);
          call.block = block;
          if (call.k_begin < call.k_end) contents.storage->pack(call);
        }
      }
    }
  }

  const Kernels<T>& kernels_;
  const StorageKernels<T>& storage_;
  std::vector<Contents> all_;
  Index bytes_ = 0;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PANELS_H_
