// The activations of a cell: their names and parameters. Plain types only; the formulas are in
// kernels/activations.h.
#ifndef TIDEGATE_ACTIVATION_H_
#define TIDEGATE_ACTIVATION_H_

namespace tidegate {

// The activation functions of x, with parameters alpha and beta and their defaults. Names and
// formulas are those of the ONNX operators.
enum class ActivationKind {
  sigmoid,           // 1 / (1 + exp(-x))
  tanh,              //
  relu,              // max(0, x)
  hard_sigmoid,      // max(0, min(1, alpha * x + beta)); 0.2, 0.5
  affine,            // alpha * x + beta; 1, 0
  leaky_relu,        // x < 0 ? alpha * x : x; 0.01
  thresholded_relu,  // x > alpha ? x : 0; 1
  scaled_tanh,       // alpha * tanh(beta * x); 1, 1
  elu,               // x < 0 ? alpha * (exp(x) - 1) : x; 1
  softsign,          // x / (1 + |x|)
  softplus,          // log(1 + exp(x))
};

// A kind's name, the number of its parameters and their defaults.
struct ActivationInfo {
  ActivationKind kind;
  const char* name;
  int parameters;  // 0, 1 (alpha) or 2 (alpha, beta)
  double alpha;
  double beta;
};

constexpr ActivationInfo kActivations[] = {
    {ActivationKind::sigmoid, "sigmoid", 0, 0, 0},
    {ActivationKind::tanh, "tanh", 0, 0, 0},
    {ActivationKind::relu, "relu", 0, 0, 0},
    {ActivationKind::hard_sigmoid, "hard_sigmoid", 2, 0.2, 0.5},
    {ActivationKind::affine, "affine", 2, 1, 0},
    {ActivationKind::leaky_relu, "leaky_relu", 1, 0.01, 0},
    {ActivationKind::thresholded_relu, "thresholded_relu", 1, 1, 0},
    {ActivationKind::scaled_tanh, "scaled_tanh", 2, 1, 1},
    {ActivationKind::elu, "elu", 1, 1, 0},
    {ActivationKind::softsign, "softsign", 0, 0, 0},
    {ActivationKind::softplus, "softplus", 0, 0, 0},
};

constexpr const ActivationInfo& activation_info(ActivationKind kind) {
  return kActivations[static_cast<int>(kind)];
}

struct Activation {
  ActivationKind kind;
  double alpha;
  double beta;

  constexpr Activation(ActivationKind which)  // NOLINT: a kind is its activation
      : kind(which), alpha(activation_info(which).alpha), beta(activation_info(which).beta) {}
  constexpr Activation(ActivationKind which, double a, double b) : kind(which), alpha(a), beta(b) {}

  constexpr bool operator==(const Activation& other) const {
    return kind == other.kind && alpha == other.alpha && beta == other.beta;
  }
  constexpr bool operator!=(const Activation& other) const { return !(*this == other); }
};

// The activations of a cell. The gates are i f o (LSTM), r z (GRU) or f (MGU); the candidate is g
// (LSTM) or n (GRU, MGU).
struct CellActivations {
  Activation gate = ActivationKind::sigmoid;
  Activation candidate = ActivationKind::tanh;
  Activation output = ActivationKind::tanh;  // LSTM: h = o * output(c)
  double clip = 0;  // arguments of gates and candidate are clamped to [-clip, clip]; 0: no clamping
  bool input_forget = false;  // LSTM: f = 1 - i

  constexpr bool operator==(const CellActivations& other) const {
    return gate == other.gate && candidate == other.candidate && output == other.output &&
           clip == other.clip && input_forget == other.input_forget;
  }
  constexpr bool operator!=(const CellActivations& other) const { return !(*this == other); }
  // Whether these are PyTorch's activations, for which there are specialised, faster kernels.
  constexpr bool standard() const { return *this == CellActivations{}; }
};

}  // namespace tidegate

#endif  // TIDEGATE_ACTIVATION_H_
