// The kinds of cells. Their gates and options are in the table kernels/spec.h.
#ifndef TIDEGATE_CELL_H_
#define TIDEGATE_CELL_H_

namespace tidegate {

enum class CellKind {
  lstm,  // torch.nn.LSTM, gates in the order i, f, g, o
  gru,   // torch.nn.GRU, gates in the order r, z, n
  // Minimal gated unit (Zhou et al. 2016), gates in the order f, n:
  //   f = sigmoid(W_f x + U_f h + b_f)   n = tanh(W_n x + U_n (f*h) + b_n)   h' = (1-f)*h + f*n
  // W is weight_ih, U weight_hh, b the sum of both biases.
  mgu,
};

// The state that an update gate z multiplies.
enum class UpdateGate {
  carry,  // h' = z*h + (1-z)*n  (PyTorch, cuDNN, Keras, ONNX)
  write,  // h' = (1-z)*h + z*n  (Chung et al. 2014)
};

}  // namespace tidegate

#endif  // TIDEGATE_CELL_H_
