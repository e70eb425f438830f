// A linear layer, y = x W^T + b: run, and trained, on the tiles of the recurrent kernels. float and
// double are instantiated in the library. Errors are those of model.h.
//
// A row of y has the same bits whatever the number of rows and of threads; gradients have the same
// bits whatever the number of threads.
#ifndef TIDEGATE_LINEAR_H_
#define TIDEGATE_LINEAR_H_

#include <functional>
#include <memory>

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

template <class T>
class Linear;

// What a training call kept: a copy of x, and the weights' snapshot. It outlives changes of the
// parameters and of x, and may be used any number of times, from any thread.
template <class T>
class TIDEGATE_EXPORT LinearTape {
 public:
  ~LinearTape();
  LinearTape(const LinearTape&) = delete;
  LinearTape& operator=(const LinearTape&) = delete;

  Index rows() const;
  Index in_features() const;
  Index out_features() const;
  bool has_bias() const;

  // Gradients of a scalar, given dy (rows, out_features) by y: dx (rows, in_features) = dy W, and
  // dparameters as Linear::parameters(): dW = dy^T x, db = the sum of the rows of dy. Strides are
  // the distances of rows in elements. Null: that gradient is not computed. Outputs may overlap
  // neither dy nor each other.
  void backward(const T* dy, Index dy_stride, T* dx, Index dx_stride, T* dparameters,
                int num_threads = 0) const;

  // An estimate of the nanoseconds that backward() takes for both gradients with one thread.
  double backward_cost() const noexcept;

  struct TIDEGATE_HIDDEN Impl;

 private:
  friend class Linear<T>;
  explicit LinearTape(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Any number of threads may call one layer at once; a write takes effect for the calls that begin
// after it.
template <class T>
class TIDEGATE_EXPORT Linear {
 public:
  Linear(Index in_features, Index out_features, bool bias = true);  // parameters are zero
  ~Linear();
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;

  Index in_features() const;
  Index out_features() const;
  bool has_bias() const;
  // The flat vector, live: weight (out_features, in_features), then bias (out_features).
  Index parameter_count() const;
  const T* parameters() const;
  void write_parameters(Index offset, const T* values, Index count);
  // update(parameters): changes the flat vector in place. Calls that begin meanwhile wait for it;
  // `update` must not use this object.
  void update_parameters(const std::function<void(T* parameters)>& update);

  // x (rows, in_features) -> y (rows, out_features), which may not overlap x. Strides are the
  // distances of rows in elements. num_threads 0: the setting in force. The first call after a
  // write packs the weights. The calls after it allocate nothing; with one thread they make no
  // system call, and their one mutex is contended only while another thread writes or packs.
  void run(const T* x, Index x_stride, T* y, Index y_stride, Index rows, int num_threads = 0) const;
  // Training: the same y, and the tape that backward needs.
  std::unique_ptr<LinearTape<T>> record(const T* x, Index x_stride, T* y, Index y_stride,
                                        Index rows, int num_threads = 0) const;

  // An estimate of the nanoseconds that run() takes with one thread.
  double run_cost(Index rows) const noexcept;

  struct TIDEGATE_HIDDEN Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidegate

#endif  // TIDEGATE_LINEAR_H_
