// A linear layer, y = x W^T + b, run and trained by the recurrent kernels' tiles. float and double
// are instantiated in the library. Errors are as in model.h.
//
// A row of y has the same bits for any number of rows and threads; gradients have the same bits for
// any number of threads.
#ifndef TIDEGATE_LINEAR_H_
#define TIDEGATE_LINEAR_H_

#include <functional>
#include <memory>

#include "tidegate/config.h"
#include "tidegate/export.h"
#include "tidegate/precision.h"

namespace tidegate {

template <class T>
class Linear;

// The layout of its parameters: weight (out_features, in_features), bias (out_features).
TIDEGATE_EXPORT std::vector<Parameter> linear_parameters(Index in_features, Index out_features,
                                                         bool bias);

// The record of a training call: a copy of x and a snapshot of the weights. It is independent of
// later changes of the parameters and of x, and may be used any number of times, from any thread.
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

  // Computes gradients of a scalar from dy (rows, out_features), its gradient by y:
  // dx (rows, in_features) = dy W; dparameters, laid out as Linear::parameters(), holds dW = dy^T x
  // and db = the sum of the rows of dy. Strides are the distances between rows in elements. A
  // gradient whose pointer is null is not computed. Outputs may overlap neither dy nor each other.
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

// Any number of threads may call one layer concurrently; a write takes effect for calls that begin
// after it.
template <class T>
class TIDEGATE_EXPORT Linear {
 public:
  Linear(Index in_features, Index out_features, bool bias = true);  // parameters are zero
  // A layer in low precision, for inference; its parameters cannot be changed. Only for float.
  Linear(Index in_features, Index out_features, bool bias, QuantizedParameters parameters);
  ~Linear();
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;

  Index in_features() const;
  Index out_features() const;
  bool has_bias() const;
  // The flat vector, live: weight (out_features, in_features), then bias (out_features). Null in
  // low precision.
  Index parameter_count() const;
  const T* parameters() const;
  // Copies the flat vector; in low precision, the dequantised parameters.
  void read_parameters(T* to) const;
  // Throws std::invalid_argument in low precision.
  void write_parameters(Index offset, const T* values, Index count);
  // update(parameters) changes the flat vector in place. Calls that begin meanwhile wait for it;
  // `update` must not use this object. Throws std::invalid_argument in low precision.
  void update_parameters(const std::function<void(T* parameters)>& update);

  // As in Model.
  Precision precision() const;
  const QuantizedParameters* quantized() const;
  std::unique_ptr<Linear> quantize(Precision precision) const;

  // x (rows, in_features) -> y (rows, out_features), which may not overlap x. Strides are the
  // distances between rows in elements. num_threads 0: the setting in force. The first call after a
  // write packs the weights. Later calls allocate nothing, except in low precision; with one thread
  // they make no system call, and their one mutex is contended only while another thread writes or
  // packs.
  void run(const T* x, Index x_stride, T* y, Index y_stride, Index rows, int num_threads = 0) const;
  // Training: writes the same y, and returns the tape for backward. Throws std::invalid_argument in
  // low precision.
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
