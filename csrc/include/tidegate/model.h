// Running and training a network: Model (parameters), Tape (the record for backward), Stream (live
// input). float and double are instantiated in the library. For a wrong argument, every function
// throws a std::invalid_argument that names it, before anything is written; if memory does not
// suffice, std::length_error or std::bad_alloc (usually OutOfMemory).
#ifndef TIDEGATE_MODEL_H_
#define TIDEGATE_MODEL_H_

#include <functional>
#include <memory>
#include <string>

#include "tidegate/config.h"
#include "tidegate/export.h"
#include "tidegate/precision.h"
#include "tidegate/view.h"

namespace tidegate {

// The inputs of a call. T steps, N batch rows, I input_size, H hidden_size, S the size of h
// (hidden_size, or proj_size), L*D layers times directions, layer-major. The axes of sequences are
// always in time-major order; strides express the caller's layout.
template <class T>
struct Inputs {
  View<const T> x;                 // (T, N, I); packed if and only if y and their gradients are
  View<const T> h_0;               // (L*D, N, S); not given: zeros
  View<const T> c_0;               // (L*D, N, H), LSTM; not given: zeros
  const Index* lengths = nullptr;  // N valid lengths in 0..T; null: all T. Padding is never read.
  MaskView reset;  // (T, N): a boundary between t-1 and t; no state or gradient crosses it
  // Training with dropout: the factors of the outputs of all layers but the last, dense
  // (L-1, T, N, D*S). Null: no dropout.
  const T* dropout_scale = nullptr;
};

// The outputs of a call. No output may overlap another one or an input, except that h_n may be h_0
// and c_n may be c_0.
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

// Gradients of a scalar by the outputs of the call; absent ones are zero. Padded steps of y are not
// read.
template <class T>
struct OutputGradients {
  View<const T> y;    // (T, N, D*S)
  View<const T> h_n;  // (L*D, N, S)
  View<const T> c_n;  // (L*D, N, H)
};

// Destinations of the gradients by the inputs of the call, which are overwritten; absent gradients
// are not computed.
template <class T>
struct InputGradients {
  View<T> x;                // (T, N, I); zero at padded steps
  View<T> h_0;              // (L*D, N, S)
  View<T> c_0;              // (L*D, N, H)
  T* parameters = nullptr;  // laid out as Model::parameters()
};

// The record of a training call: activated gates, states, a copy of its inputs, and a snapshot of
// the weights. It is independent of later changes of the parameters and of every array that the
// caller passed, and may be used any number of times, from any thread.
template <class T>
class TIDEGATE_EXPORT Tape {
 public:
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  const Config& config() const;
  Index steps() const;  // T
  Index batch() const;  // N
  // Computes the gradients. They have the same bits, except for those of NaNs, for any num_threads
  // (0: the setting in force).
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

// The parameters of a network. They are immutable during a call: any number of threads may call one
// model concurrently, and a write takes effect for calls that begin after it.
template <class T>
class TIDEGATE_EXPORT Model {
 public:
  explicit Model(const Config& config);  // parameters are zero
  // A model in low precision, for inference; its parameters cannot be changed. Only for float.
  Model(const Config& config, QuantizedParameters parameters);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Config& config() const;
  Index parameter_count() const;
  // The flat vector, live; see tidegate::parameters() for its layout. Null in low precision.
  const T* parameters() const;
  // Copies the flat vector; in low precision, the dequantised parameters.
  void read_parameters(T* to) const;
  // Throws std::invalid_argument in low precision.
  void write_parameters(Index offset, const T* values, Index count);
  // update(parameters) changes the flat vector in place. Calls that begin meanwhile wait for it;
  // `update` must not use this object. Throws std::invalid_argument in low precision.
  void update_parameters(const std::function<void(T* parameters)>& update);

  Precision precision() const;
  // The parameters in low precision; null if the precision is exact.
  const QuantizedParameters* quantized() const;
  // A model with these parameters in low precision; see tidegate::quantize(). Throws
  // std::invalid_argument if this model is of double, or already in low precision (one with other
  // parameters, see have_same_parameters).
  std::unique_ptr<Model> quantize(Precision precision) const;

  // Throws std::invalid_argument if run() and record() do not take this precision of products: they
  // take exact, which is that of the parameters, and for exact parameters of float bfloat16 and
  // bfloat16_dot. Then the operands of all products, forward and backward, are rounded to bfloat16;
  // sums, states and gradients are float.
  void check_products(Precision products) const;
  // Inference: keeps no tape. num_threads 0: the setting in force.
  void run(const Inputs<T>& inputs, const Outputs<T>& outputs, int num_threads = 0,
           Precision products = Precision::exact) const;
  // Training: writes the same results, and returns the tape for backward. The tape of a model in
  // low precision only tells its gates and states: its backward() throws std::invalid_argument.
  std::unique_ptr<Tape<T>> record(const Inputs<T>& inputs, const Outputs<T>& outputs,
                                  int num_threads = 0, Precision products = Precision::exact) const;

  // An estimate of the nanoseconds that run() takes with one thread.
  double run_cost(Index steps, Index batch) const noexcept;

  struct TIDEGATE_HIDDEN Impl;

 private:
  template <class U>
  friend class Stream;
  std::unique_ptr<Impl> impl_;
};

// A batch of live sequences, whose states the stream holds. One thread may use a stream at a time;
// streams of one model are independent. The results of single steps equal those of Model::run on
// the whole sequence bit for bit, except for the bits of NaNs.
//
// A stream uses the parameters as they were at its construction, or at the last `renew`.
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

  // Adopts changed parameters and a change of the ISA, if any; only then it packs weights and
  // allocates.
  void renew();

  // One step of every row: x (batch, I) -> y (batch, S), which may not overlap x. Strides are the
  // distances between rows in elements. With one thread it allocates nothing, takes no lock and
  // makes no system call. With more threads allowed (0: the setting in force), it uses them if that
  // is faster.
  void step(const T* x, Index x_stride, T* y, Index y_stride, int num_threads = 1) noexcept;
  // One step of the rows rows[0], rows[1], ..., rows[count - 1] alone, which are distinct and below
  // batch(): x (count, I) -> y (count, S).
  void step(const T* x, Index x_stride, T* y, Index y_stride, const Index* rows, Index count,
            int num_threads = 1) noexcept;
  // x (T, batch, I) -> y (T, batch, S). If the call ends early (tidegate/interrupt.h), the state
  // before it is restored.
  void run(const View<const T>& x, const View<T>& y, int num_threads = 0);

  // The state of a row in a layer, initially zero: h has S elements, c (LSTM) has H.
  T* h(Index layer, Index row) noexcept;
  T* c(Index layer, Index row) noexcept;
  void reset() noexcept;           // sets the state of all rows to zero
  void reset(Index row) noexcept;  // sets the state of one row to zero
  // Adds rows at the end, with a state of zero, or removes rows at the end; the other rows keep
  // their state.
  void resize(Index batch);

  // An estimate of the nanoseconds that a step of `count` rows takes with one thread.
  double step_cost(Index count) const noexcept;

  struct TIDEGATE_HIDDEN Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidegate

#endif  // TIDEGATE_MODEL_H_
