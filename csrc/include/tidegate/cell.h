// The kinds of cells. What each of them is, is in one table: kernels/spec.h.
#ifndef TIDEGATE_CELL_H_
#define TIDEGATE_CELL_H_

namespace tidegate {

enum class CellKind { lstm, gru, mgu };

// Which state an update gate z multiplies.
enum class UpdateGate {
  carry,  // h' = z*h + (1-z)*n  (PyTorch, cuDNN, Keras, ONNX)
  write,  // h' = (1-z)*h + z*n  (Chung et al. 2014)
};

}  // namespace tidegate

#endif  // TIDEGATE_CELL_H_
