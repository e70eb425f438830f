// Running and training a network: Model (parameters), Tape (what backward needs), Stream (live
// input). float and double are instantiated in the library. Every function throws
// std::invalid_argument, naming the argument, before anything is written; std::length_error or
// std::bad_alloc (mostly OutOfMemory) when memory cannot hold it.
#ifndef TIDEGATE_MODEL_H_
#define TIDEGATE_MODEL_H_

#include <functional>
#include <memory>
#include <string>

#include "tidegate/config.h"
#include "tidegate/export.h"
#include "tidegate/view.h"

namespace tidegate {

// What a call reads. S is the size of h (hidden_size, or proj_size), H hidden_size, L*D layers
// times directions, layer-major. Sequences are time-major whatever the caller's layout: strides
// express it.
template <class T>
struct Inputs {
  View<const T> x;                 // (T, N, I); packed or not, as y and their gradients
  View<const T> h_0;               // (L*D, N, S); not given: zeros
  View<const T> c_0;               // (L*D, N, H), LSTM; not given: zeros
  const Index* lengths = nullptr;  // N valid lengths in 0..T; null: all T. Padding is never read.
  MaskView reset;  // (T, N): a boundary between t-1 and t; no state or gradient crosses it
  // Training with dropout: what each layer's output but the last's is multiplied by, dense
  // (L-1, T, N, D*S). Null: none.
  const T* dropout_scale = nullptr;
};

// What a call writes. None may overlap another or an input, except that h_n may be h_0 and c_n c_0.
template <class T>
struct Outputs {
  View<T> y;    // (T, N, D*S); padded steps are zero
  View<T> h_n;  // (L*D, N, S); may be absent
  View<T> c_n;  // (L*D, N, H), LSTM; may be absent
};

template <class T>
class Model;
template <class T>
class Tape;

// Gradients of a scalar by what the call returned; absent ones are zero. Padded steps of y are not
// read.
template <class T>
struct OutputGradients {
  View<const T> y;    // (T, N, D*S)
  View<const T> h_n;  // (L*D, N, S)
  View<const T> c_n;  // (L*D, N, H)
};

// Where the gradients by what the call read go; absent ones are not computed. All are overwritten.
template <class T>
struct InputGradients {
  View<T> x;                // (T, N, I); zero at padded steps
  View<T> h_0;              // (L*D, N, S)
  View<T> c_0;              // (L*D, N, H)
  T* parameters = nullptr;  // as Model::parameters()
};

// What a training call kept: activated gates, states, its inputs (copied), and the weights'
// snapshot. It outlives changes of the parameters and of every array that the caller passed, and
// may be used any number of times, from any thread.
template <class T>
class TIDEGATE_EXPORT Tape {
 public:
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  const Config& config() const;
  Index steps() const;  // T
  Index batch() const;  // N
  // The same bits, except for those of NaNs, whatever num_threads (0: the setting in force).
  void backward(const OutputGradients<T>& outputs, const InputGradients<T>& inputs,
                int num_threads = 0) const;
  // Copies one saved quantity of a layer's direction to (T, N, H), zero at padded steps: "i" "f"
  // "g" "o" "c" (LSTM), "r" "z" "n" (GRU), "f" "n" (MGU), or "h" ((T, N, S)).
  void saved(Index layer, bool reverse, const std::string& name, const View<T>& destination) const;

  // An estimate of the nanoseconds that backward() takes with one thread.
  double backward_cost() const noexcept;

  struct TIDEGATE_HIDDEN Impl;

 private:
  friend class Model<T>;
  explicit Tape(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The parameters of a network. Immutable while running: any number of threads may call one model at
// once, and a write takes effect for the calls that begin after it.
template <class T>
class TIDEGATE_EXPORT Model {
 public:
  explicit Model(const Config& config);  // parameters are zero
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Config& config() const;
  Index parameter_count() const;
  const T* parameters() const;  // the flat vector, live; see tidegate::parameters() for its layout
  void write_parameters(Index offset, const T* values, Index count);
  // update(parameters): changes the flat vector in place. Calls that begin meanwhile wait for it;
  // `update` must not use this object.
  void update_parameters(const std::function<void(T* parameters)>& update);

  // Inference: keeps nothing. num_threads 0: the setting in force.
  void run(const Inputs<T>& inputs, const Outputs<T>& outputs, int num_threads = 0) const;
  // Training: the same results, and the tape that backward needs.
  std::unique_ptr<Tape<T>> record(const Inputs<T>& inputs, const Outputs<T>& outputs,
                                  int num_threads = 0) const;

  // An estimate of the nanoseconds that run() takes with one thread.
  double run_cost(Index steps, Index batch) const noexcept;

  struct TIDEGATE_HIDDEN Impl;

 private:
  template <class U>
  friend class Stream;
  std::unique_ptr<Impl> impl_;
};

// A batch of live sequences whose states stay inside. One thread at a time; streams of one model
// are independent. Steps equal a whole call bit for bit, except for the bits of NaNs.
//
// A stream works on the parameters as they were when it was made, or at its last `renew`.
template <class T>
class TIDEGATE_EXPORT Stream {
 public:
  // Refuses two-directional and reverse models.
  Stream(std::shared_ptr<const Model<T>> model, Index batch);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  const Config& config() const;
  Index batch() const;

  // Takes new parameters, or the kernels of another ISA, if there are any: then it packs weights
  // and allocates.
  void renew();

  // One step of every row: x (batch, I) -> y (batch, S), distances of rows in elements; y may not
  // overlap x. With one thread it allocates nothing, takes no lock and makes no system call; with
  // more asked for (0: the setting in force), it uses them where that pays.
  void step(const T* x, Index x_stride, T* y, Index y_stride, int num_threads = 1) noexcept;
  // The same for rows[0], rows[1], ..., rows[count - 1] alone, all different and below batch():
  // x (count, I) -> y (count, S).
  void step(const T* x, Index x_stride, T* y, Index y_stride, const Index* rows, Index count,
            int num_threads = 1) noexcept;
  // x (T, batch, I) -> y (T, batch, S). If it ends early (tidegate/interrupt.h) the state is what
  // it was before.
  void run(const View<const T>& x, const View<T>& y, int num_threads = 0);

  // The state of a row, zero at first: h of layer l has S elements, c (LSTM) has H.
  T* h(Index layer, Index row) noexcept;
  T* c(Index layer, Index row) noexcept;
  void reset() noexcept;           // all rows become zero
  void reset(Index row) noexcept;  // this one does
  // Rows at the end come, zero, or go; those that stay keep their state.
  void resize(Index batch);

  // An estimate of the nanoseconds that a step of `count` rows takes with one thread.
  double step_cost(Index count) const noexcept;

  struct TIDEGATE_HIDDEN Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidegate

#endif  // TIDEGATE_MODEL_H_
