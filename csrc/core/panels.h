// Packing: weights from rows and columns of a matrix into the panels that kernels read.
#ifndef TIDEGATE_CORE_PANELS_H_
#define TIDEGATE_CORE_PANELS_H_

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "core/share.h"
#include "core/threads.h"
#include "kernels/table.h"

namespace tidegate {

// A column of weights: element u is sign * base[u * stride]. The `run` columns that begin with it
// stand side by side.
template <class T>
struct Column {
  const T* base;
  Index stride;
  Index run;
  T sign = 1;
};

// The column over k of a packed panel: what it holds for one gate of one of its `units`.
template <class T>
Column<T> panel_column(const T* panel, Index width, Index units, Index depth, Index gates,
                       Index gate, Index unit) {
  const Index lane = unit % width;
  return {panel + (unit / width * depth * gates + gate) * width + lane, gates * width,
          std::min(width - lane, units - unit)};
}

// Columns packed at a time: what a unit has of them, some lines of the cache, is read at once, and
// not again when the other units' lines, which may all fall into one set, have taken its place.
constexpr Index kPackedColumns = 64;

// Threads share the packing of panels of at least this size, which takes one thread some 100 us.
constexpr Index kSharedBytes = 256 * 1024;

// The panels of a layout: places first, contents when all have their places.
template <class T>
class Panels {
 public:
  explicit Panels(const Kernels<T>& kernels) : kernels_(kernels) {}

  // A place for panel[slice][k][gate][lane] = element `unit` of column_of(k, gate), zero beyond the
  // units. Null while the arena counts.
  const T* take(Arena& arena, Index units, Index depth, Index gates,
                std::function<Column<T>(Index k, Index gate)> column_of) {
    const Index width = kernels_.width;
    T* const panel = arena.take<T>(slice_count(units, width), depth, gates, width);
    if (arena.counting()) return nullptr;
    all_.push_back({panel, units, depth, gates, std::move(column_of)});
    elements_ += slice_count(units, width) * depth * gates * width;
    return panel;
  }

  // Packs them all, by at most `threads` threads.
  void pack(int threads) const {
    const bool shared = elements_ * static_cast<Index>(sizeof(T)) >= kSharedBytes;
    ThreadLease lease(shared ? threads : 1);
    lease.run([&](int thread) {
      for (const Panel& panel : all_)
        pack(panel, part_of(slice_count(panel.units, kernels_.width), thread, lease.size()));
    });
  }

 private:
  struct Panel {
    T* to;
    Index units, depth, gates;
    std::function<Column<T>(Index k, Index gate)> column_of;
  };

  void pack(const Panel& panel, Range slices) const {
    const Index width = kernels_.width;
    const Index step = panel.gates * width;  // from k to k + 1
    for (Index slice = slices.begin; slice < slices.end; ++slice) {
      const Index first = slice * width;
      const Index lanes = std::min(width, panel.units - first);
      T* const to = panel.to + slice * panel.depth * step;
      if (lanes < width) std::fill(to, to + panel.depth * step, T(0));
      for (Index k_begin = 0; k_begin < panel.depth; k_begin += kPackedColumns) {
        const Index k_end = std::min(k_begin + kPackedColumns, panel.depth);
        for (Index gate = 0; gate < panel.gates; ++gate) {
          for (Index k = k_begin; k < k_end;) {
            const Column<T> from = panel.column_of(k, gate);
            PackCall<T> call;
            call.from = from.base + first * from.stride;
            call.from_stride = from.stride;
            call.to = to + k * step + gate * width;
            call.to_stride = step;
            call.lanes = lanes;
            call.columns = std::min(from.run, k_end - k);
            call.sign = from.sign;
            kernels_.pack(call);
            k += call.columns;
          }
        }
      }
    }
  }

  const Kernels<T>& kernels_;
  std::vector<Panel> all_;
  Index elements_ = 0;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PANELS_H_
