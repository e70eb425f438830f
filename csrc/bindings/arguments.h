// Checks and conversions of arguments that are not plain arrays of numbers: thread counts, states,
// lengths, resets.
#ifndef TIDEGATE_BINDINGS_ARGUMENTS_H_
#define TIDEGATE_BINDINGS_ARGUMENTS_H_

#include <string>
#include <vector>

#include "arrays.h"
#include "tidegate/config.h"

namespace tidegate::bindings {

// An integer in least..most. TypeError if `object` is not an integer (True is not), ValueError if
// it is out of range; an exception of its __index__ propagates.
Index read_index(const char* argument, py::handle object, Index least, Index most);

// TypeError unless True or False.
bool read_bool(const char* argument, py::handle object);

// 0, the setting in force, for None; else an integer of at least 1.
int read_num_threads(py::handle object);

// The largest size of a network, as "hidden_size: got 7".
std::string largest_size(const Config& config);

// The arrays of a state (or of its gradient), not yet checked; null where not given.
struct StateObjects {
  py::object h, c;
  const char* h_name = "";  // for messages
  const char* c_name = "";
};

// Accepts None, or h, or for an LSTM the pair (h, c), either member of which may be None.
// `argument` is "state" or "dstate".
StateObjects read_state(const Config& config, const std::string& argument, py::handle object);

// An input: the caller's object, the array that the core reads (the same, or a copy), and the view
// of that array.
template <class T>
struct Input {
  py::object given;
  py::object memory;
  View<const T> view;
};

// The input for `array`, whose dtype and shape have been checked.
template <class T>
Input<T> sequence_input(const py::array& array, Layout layout);

// A state or its gradient, of shape (L*D, N, features) in the layout, or null (then the result is
// empty). `steps` is the length of the x given with it, for messages; 0 without x.
template <class T>
Input<T> read_state_array(const char* argument, const py::object& object, Layout layout, Index rows,
                          Index batch, Index features, Index steps = 0);

// A sequence of known shape, or None (then the result is empty).
template <class T>
Input<T> read_sequence(const char* argument, py::handle object, Layout layout, Index steps,
                       Index batch, Index features);

// N integers in 0..steps, from an integer array of shape (N,), or unbatched from an integer; empty
// for None.
std::vector<Index> read_lengths(py::handle object, Layout layout, Index steps, Index batch);

// The positions of the steps of a packed sequence in its data, (rows, features).
struct Packing {
  Index steps = 0, batch = 0, rows = 0;
  std::vector<Index> lengths;    // (batch,), the longest first
  std::vector<Index> first_row;  // (steps,)

  // The packed view of contiguous rows (rows, 1, features).
  template <class T>
  View<T> sequence(View<T> data) const {
    data.shape[0] = steps;
    data.shape[1] = batch;
    data.stride[1] = data.stride[0];
    data.first_row = first_row.data();
    return data;
  }
};

// Accepts (T,) non-increasing integers of at least 1 whose sum is `rows`: the number of batch rows
// of each step.
Packing read_batch_sizes(py::handle object, Index rows);

// A packed sequence, or None (then the result is empty). The view points into the packing.
template <class T>
Input<T> read_packed(const char* argument, py::handle object, const Packing& packing,
                     Index features);

// 0, 1, ..., batch-1 for None; else distinct integers in 0..batch-1, from integers of shape (n,) of
// any kind that tidegate.checks.check_integers accepts.
std::vector<Index> read_rows(py::handle object, Index batch);

// Not given for None; else an array of bool in x's layout, without the features.
MaskView read_reset(py::handle object, Layout layout, Index steps, Index batch);

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_ARGUMENTS_H_
