// Arguments that are not plain arrays of numbers: thread counts, states, lengths, resets. Checked
// here, used elsewhere.
#ifndef TIDEGATE_BINDINGS_ARGUMENTS_H_
#define TIDEGATE_BINDINGS_ARGUMENTS_H_

#include <string>
#include <vector>

#include "arrays.h"
#include "tidegate/config.h"

namespace tidegate::bindings {

// An integer in least..most. TypeError if `object` is no integer (True is none), ValueError if it
// is another one; what its __index__ raises is passed on.
Index read_index(const char* argument, py::handle object, Index least, Index most);

// TypeError unless True or False.
bool read_bool(const char* argument, py::handle object);

// None: 0, the setting in force. Else an integer of at least 1.
int read_num_threads(py::handle object);

// The size that makes a network as large as it is, as "hidden_size: got 7".
std::string largest_size(const Config& config);

// The arrays of a state (or of its gradient) before they are looked at; null where not given.
struct StateObjects {
  py::object h, c;
  const char* h_name = "";  // for messages
  const char* c_name = "";
};

// None, or: h; of an LSTM the pair (h, c), either member of which may be None. `argument` is
// "state" or "dstate".
StateObjects read_state(const Config& config, const std::string& argument, py::handle object);

// An input: what the caller passed, the memory that the core reads (the same, or a copy), and the
// view of it.
template <class T>
struct Input {
  py::object given;
  py::object memory;
  View<const T> view;
};

// `array`, whose dtype and shape are good, as the core reads it.
template <class T>
Input<T> sequence_input(const py::array& array, Layout layout);

// A state or gradient of shape (L*D, N, features) in the layout, or null (then all is empty).
// `steps` is the length of the x given with it, for messages; 0 where no x is given.
template <class T>
Input<T> read_state_array(const char* argument, const py::object& object, Layout layout, Index rows,
                          Index batch, Index features, Index steps = 0);

// A sequence of known shape, or None (then all is empty).
template <class T>
Input<T> read_sequence(const char* argument, py::handle object, Layout layout, Index steps,
                       Index batch, Index features);

// None: empty. Else N integers in 0..steps, from an integer array of shape (N,), or unbatched from
// an integer.
std::vector<Index> read_lengths(py::handle object, Layout layout, Index steps, Index batch);

// Where the rows of a packed sequence stand in its data, (rows, features).
struct Packing {
  Index steps = 0, batch = 0, rows = 0;
  std::vector<Index> lengths;    // (batch,), the longest first
  std::vector<Index> first_row;  // (steps,)

  // Of contiguous rows (rows, 1, features) the packed view.
  template <class T>
  View<T> sequence(View<T> data) const {
    data.shape[0] = steps;
    data.shape[1] = batch;
    data.stride[1] = data.stride[0];
    data.first_row = first_row.data();
    return data;
  }
};

// (T,) integers of at least 1, none larger than the one before: the rows of each step of `rows`.
Packing read_batch_sizes(py::handle object, Index rows);

// A packed sequence, or None (then all is empty). The view points into the packing.
template <class T>
Input<T> read_packed(const char* argument, py::handle object, const Packing& packing,
                     Index features);

// None: all of them, 0, 1, ... Else different integers in 0..batch-1, from integers of shape
// (n,) of any kind that tidegate.checks.check_integers takes.
std::vector<Index> read_rows(py::handle object, Index batch);

// None: not given. Else an array of bool in x's layout without features.
MaskView read_reset(py::handle object, Layout layout, Index steps, Index batch);

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_ARGUMENTS_H_
