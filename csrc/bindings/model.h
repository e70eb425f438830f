// Model, Tape and Stream as Python sees them: one class each, for both dtypes. They take and return
// Python objects; every argument is checked before anything is written.
#ifndef TIDEGATE_BINDINGS_MODEL_H_
#define TIDEGATE_BINDINGS_MODEL_H_

#include <memory>

#include "arrays.h"
#include "parameters.h"
#include "tidegate/model.h"

namespace tidegate::bindings {

class Tape {
 public:
  virtual ~Tape() = default;
  virtual const Config& config() const = 0;
  virtual py::dtype dtype() const = 0;
  virtual Index steps() const = 0;
  virtual Index batch() const = 0;
  virtual py::dict gates(py::handle layer, py::handle reverse) const = 0;
};

class Stream {
 public:
  virtual ~Stream() = default;
  virtual Index batch() const = 0;
  virtual py::object step(py::handle x, py::handle out, py::handle rows) = 0;
  virtual py::object run(py::handle x, py::handle out, py::handle num_threads) = 0;
  virtual void reset(py::handle rows) = 0;
  virtual py::object get_state(py::handle rows) = 0;
  virtual void set_state(py::handle state, py::handle rows) = 0;
  virtual void grow(py::handle count) = 0;
  virtual void shrink(py::handle count) = 0;
};

class Model : public Parameters {
 public:
  virtual const Config& config() const = 0;
  virtual bool batch_first() const = 0;

  // Returns (y, state), where the state is h_n or (h_n, c_n). `empty`, here and below, is that of
  // ResultMemory.
  virtual py::tuple run(py::handle x, py::handle state, py::handle lengths, py::handle reset,
                        py::handle out, py::handle num_threads, py::handle empty,
                        py::handle precision) const = 0;
  // Returns (y, state, tape). `draw_dropout_scale` is None, or is called with the shape of
  // Inputs::dropout_scale after all other arguments have been checked, so that a wrong call draws
  // no random numbers.
  virtual py::tuple record(py::handle x, py::handle state, py::handle lengths, py::handle reset,
                           py::handle draw_dropout_scale, py::handle num_threads, py::handle empty,
                           py::handle precision) const = 0;
  // The same for a packed sequence: x is (rows, I), and y, dy and dx have the same layout.
  virtual py::tuple run_packed(py::handle x, py::handle batch_sizes, py::handle state,
                               py::handle num_threads, py::handle empty,
                               py::handle precision) const = 0;
  virtual py::tuple record_packed(py::handle x, py::handle batch_sizes, py::handle state,
                                  py::handle draw_dropout_scale, py::handle num_threads,
                                  py::handle empty, py::handle precision) const = 0;
  // Returns (dx, dstate, dparameters), where dstate is dh_0 or (dh_0, dc_0), and dx or dparameters
  // is None if it is not wanted. dparameters is flat, or with `empty` a list of one array per
  // parameter.
  virtual py::tuple backward(const Tape& tape, py::handle dy, py::handle dstate,
                             py::handle num_threads, bool want_x, bool want_parameters,
                             py::handle empty) const = 0;
  virtual std::unique_ptr<Stream> stream(Index batch) const = 0;
};

template <class T>
std::unique_ptr<Stream> make_stream(std::shared_ptr<const tidegate::Model<T>> model, Index batch);

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_MODEL_H_
