"""LSTM, GRU and MGU: their names, defaults and documentation.

This module has no mathematics: the bindings check arrays, and C++ does all the work.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tidegate import _core
from tidegate.checks import (
    Array,
    Precision,
    check_bool,
    check_dtype,
    check_exact,
    check_integer,
    check_integers,
    check_low,
    check_number,
    check_precision,
    check_probability,
    check_seed,
    is_exact,
)
from tidegate.comparison import Comparison, compare
from tidegate.linear import dropout_scale
from tidegate.params import Gradients, Params
from tidegate.streams import Stream

# The state that a call returns, h_n or (h_n, c_n), and the state that it takes, None for zeros.
State = TypeVar("State")
GivenState = TypeVar("GivenState")
Layer = TypeVar("Layer", bound="RecurrentLayer[Any, Any]")

# An activation: its name, with its parameters unless they are the usual ones.
Activation: TypeAlias = str | tuple[str, float] | tuple[str, float, float]


@dataclass(frozen=True, eq=False)
class Grads(Generic[State]):
    """What `backward` returns: gradients with respect to what `forward` read.

    Attributes:
        x: the gradient for x, shaped like it; zero at padded steps.
        state: the gradient for the initial state: like h_0, or for an LSTM a pair like h_0 and c_0.
        params: the gradients for the parameters: `params[name]`, `params.flat`.
    """

    x: Array
    state: State
    params: Gradients

    def __repr__(self) -> str:
        state: tuple[Any, ...] = self.state if isinstance(self.state, tuple) else (self.state,)
        shapes = [part.shape for part in state]
        return (
            f"Grads(x: {self.x.shape}, state: {', '.join(map(str, shapes))}, "
            f"params: {self.params.flat.size} x {self.params.dtype})"
        )


class RecurrentLayer(Generic[State, GivenState]):
    """Abstract base class of the layers: everything but the options of each cell.

    A pickled copy, a copy (also by `copy.copy`) and the results of `astype`, `quantize` and
    `dequantize` are layers with parameters of their own.
    """

    # The fields of _core.Config, in the order in which repr shows them.
    _OPTIONS = (
        "cell",
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "bidirectional",
        "proj_size",
        "peephole",
        "reset_after",
        "update_gate",
        "reverse",
        "recurrent_activation",
        "activation",
        "output_activation",
        "clip",
        "input_forget",
    )

    def __init__(
        self,
        config: _core.Config,
        batch_first: bool,
        dropout: float,
        dtype: DTypeLike,
        seed: int | np.random.Generator | None,
    ) -> None:
        dropout = check_probability("dropout", dropout)
        rng = check_seed("seed", seed)
        self._build(config, check_bool("batch_first", batch_first), dropout, check_dtype(dtype))
        if dropout > 0 and config.num_layers == 1:
            warnings.warn(
                "dropout: acts between layers, and num_layers=1 has nothing between",
                UserWarning,
                stacklevel=3,
            )
        bound = 1 / math.sqrt(config.hidden_size)
        # Drawn in double, so that the same seed gives the same layer in each dtype, rounded. Drawn
        # in blocks, so that a large layer needs no second copy of its parameters.
        size, piece = self._model.flat.size, 1 << 20
        for begin in range(0, size, piece):
            values = rng.uniform(-bound, bound, min(piece, size - begin))
            self._model.write(begin, values.astype(self.dtype))

    def _build(
        self,
        config: _core.Config,
        batch_first: bool,
        dropout: float,
        dtype: np.dtype[Any],
        quantized: dict[str, Any] | None = None,
    ) -> None:
        """Makes the layer with these parameters in low precision; None: with zeros in `dtype`."""
        self._config = config
        self._dropout = dropout
        self._model = _core.Model(config, dtype, batch_first, quantized)
        self._specs = self._model.specs
        self._params = Params(self._specs, self._model)

    # ---- Options ----

    @property
    def input_size(self) -> int:
        """I, the size of a step of x."""
        return self._config.input_size

    @property
    def hidden_size(self) -> int:
        """H, the number of units of one direction of one layer."""
        return self._config.hidden_size

    @property
    def num_layers(self) -> int:
        """L, the number of stacked layers."""
        return self._config.num_layers

    @property
    def bias(self) -> bool:
        """Whether there are bias_ih and bias_hh."""
        return self._config.bias

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (N, T, ...) instead of (T, N, ...)."""
        return self._model.batch_first

    @property
    def dropout(self) -> float:
        """The probability that an element between two layers is dropped in training."""
        return self._dropout

    @property
    def bidirectional(self) -> bool:
        """Whether every layer also runs from the last valid step to the first."""
        return self._config.bidirectional

    @property
    def reverse(self) -> bool:
        """Whether the one direction runs from the last valid step to the first."""
        return self._config.reverse

    @property
    def recurrent_activation(self) -> Activation:
        """The gates' activation: its name, or a tuple if its parameters are not the usual ones."""
        return self._config.recurrent_activation

    @property
    def activation(self) -> Activation:
        """The candidate's activation (g or n): a name or a tuple, like `recurrent_activation`."""
        return self._config.activation

    @property
    def clip(self) -> float | None:
        """The limit to which the arguments of gates and candidate are clamped, or None."""
        return self._config.clip

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: the dtype of the parameters, the inputs and the results."""
        return self._model.dtype

    @property
    def precision(self) -> str:
        """The type of weights in products: a low precision (see `quantize`), or the dtype."""
        return self._model.precision

    @property
    def params(self) -> Params:
        """The parameters: `params[name]` and `params.flat`, to read and to assign to.

        Assigning copies the values. The next call uses them; running calls keep the old ones. In
        low precision they are dequantised at each access, and assigning raises a ValueError.
        """
        return self._params

    # ---- Running ----

    def __call__(
        self,
        x: Array,
        state: GivenState | None = None,
        *,
        lengths: ArrayLike | None = None,
        reset: Array | None = None,
        out: Array | None = None,
        num_threads: int | None = None,
    ) -> tuple[Array, State]:
        """Inference: runs the whole of x and keeps no state. Dropout is not applied.

        T steps, N rows, I input_size, H hidden_size, L num_layers, D 2 if bidirectional else 1, S
        the size of h (H, or proj_size). Arrays have the layer's dtype and may have any strides.
        The results do not depend on the threads, the batch and its other rows, except for the sign
        and payload of a NaN.

        Args:
            x: (T, N, I), or (N, T, I) with `batch_first`, or (T, I) unbatched. T and N may be 0.
            state: the initial state; None is zeros. h_0 (L*D, N, S); LSTM: a pair (h_0, c_0),
                c_0 (L*D, N, H), either of which may be None. Layers come first and forward before
                reverse, in any layout; unbatched without N.
            lengths: (N,) integers in 0..T, in any order: the number of valid steps of each row. An
                array, a sequence of int, a pandas Series or a tensor; unbatched an int. Padding is
                never read, its y is zero, and the reverse direction starts at the last valid step.
                A row of length 0 keeps its initial state.
            reset: bool, x's layout without I. True at t is a boundary between t-1 and t, which no
                state crosses in either direction; at t = 0 the forward initial state is dropped.
            out: an array like y to write and return: writable, its last axis contiguous,
                overlapping neither itself nor an input.
            num_threads: the most threads that the call may use; None is the setting in force
                (`get_num_threads`).

        Returns:
            y, h_n, or y, (h_n, c_n) for an LSTM. y (T, N, D*S) in x's layout: the last
            layer's h at every step. h_n and c_n like h_0 and c_0: after the last valid step of each
            direction.

        Raises:
            TypeError: an argument is not an array, or has another dtype (nothing is converted
                silently).
            ValueError: a wrong shape or value, or an `out` that cannot be written to. Nothing has
                been written.
            MemoryError: the results do not fit into memory.
            KeyboardInterrupt: Ctrl-C, which ends the call; an exception raised by any other signal
                handler ends it too. The content of `out` is then undefined.
        """
        lengths = check_integers("lengths", lengths)
        y, state_n = self._model.run(x, state, lengths, reset, out, num_threads)
        return y, state_n

    def forward(
        self,
        x: Array,
        state: GivenState | None = None,
        lengths: ArrayLike | None = None,
        reset: Array | None = None,
        rng: np.random.Generator | None = None,
        num_threads: int | None = None,
        precision: str | None = None,
    ) -> tuple[Array, State, _core.Tape]:
        """Training: returns what a call returns, and the tape that `backward` needs.

        Args:
            x: as in a call. The same holds for state, lengths, reset and num_threads.
            rng: the source of dropout: elements between two layers are zero with probability
                `dropout` and otherwise multiplied by 1/(1 - dropout); all are zero if it is 1. One
                number is drawn for each element of (L-1, T, N, D*S), the same in every dtype and
                layout, after the arguments have been checked. Needed only if dropout > 0.
            precision: None, or "bfloat16" or "bfloat16-dot" (see `quantize`) for a float32 layer:
                the operands of all products, forward and backward, are rounded to bfloat16 (to
                nearest even). Parameters, sums, activations, states and gradients are float32.

        Returns:
            y, state, tape. The tape is not affected by changes of the parameters or of any array,
            and may be used any number of times; `tape.gates()` returns its gates.

        Raises:
            TypeError, ValueError, MemoryError, KeyboardInterrupt: as in a call.
            TypeError: rng is not a `numpy.random.Generator`.
            ValueError: dropout > 0 and rng is None; the layer is in low precision (`quantize`);
                `precision` is given for a float64 layer.
        """
        check_exact("forward", self)
        draw = self._dropout_drawer(rng)
        lengths = check_integers("lengths", lengths)
        y, state_n, tape = self._model.record(
            x, state, lengths, reset, draw, num_threads, precision=precision
        )
        return y, state_n, tape

    def _dropout_drawer(
        self, rng: np.random.Generator | None
    ) -> Callable[[tuple[int, ...]], Array] | None:
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"rng: got {type(rng).__name__}, wanted a numpy.random.Generator or None"
            )
        if self._dropout == 0:
            return None
        if rng is None:
            raise ValueError(
                f"rng: got None, wanted a numpy.random.Generator for dropout={self._dropout:g}"
            )
        if self.num_layers == 1:
            return None
        generator = rng
        return lambda shape: dropout_scale(generator, shape, self._dropout, self.dtype)

    def backward(
        self,
        tape: _core.Tape,
        dy: Array | None = None,
        dstate: GivenState | None = None,
        num_threads: int | None = None,
    ) -> Grads[State]:
        """Gradients of a scalar, given its gradients with respect to the results of `forward`.

        They have the same bits for any num_threads, except for the sign and payload of a NaN. The
        weights are those of the forward call.

        Args:
            tape: from `forward` of a layer with these options and this dtype.
            dy: the gradient for y, like y; None is zeros. Padded steps are not read.
            dstate: the gradient for the returned state, like it; None is zeros, and so is either
                member of an LSTM's pair. At least one gradient must be given.
            num_threads: the most threads that the call may use; None is the setting in force.

        Returns:
            grads: `grads.x` like x, `grads.state` like the initial state, `grads.params[name]` and
            `grads.params.flat` like the parameters.

        Raises:
            TypeError: tape is not a Tape or has another dtype; dy or dstate is not such an array.
            ValueError: tape is from a layer with other options; a wrong shape; no gradient is
                given; the layer is in low precision (`quantize`).
            MemoryError, KeyboardInterrupt: as in a call.
        """
        check_exact("backward", self)
        if not isinstance(tape, _core.Tape):
            raise TypeError(f"tape: got {type(tape).__name__}, wanted what forward returned")
        if tape.config != self._config:
            raise ValueError(
                f"tape: got one from {_name(tape.config)}, wanted {_name(self._config)}"
            )
        dx, dstate_0, flat = self._model.backward(tape, dy, dstate, num_threads)
        return Grads(dx, dstate_0, Gradients(self._specs, flat))

    def stream(self, batch: int = 1) -> Stream:
        """A stream: live input, with the state kept inside, in C++; see `Stream`.

        Args:
            batch: the number of sequences that it feeds at once.

        Raises:
            TypeError: batch is not an integer.
            ValueError: the layer is bidirectional or reverse, or batch is negative.
        """
        return Stream(self, batch)

    # ---- Saving and converting ----

    def state_dict(self) -> dict[str, Array]:
        """Names -> copies of the parameters."""
        return self._params.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Replaces all parameters; strict, all or nothing: see `Params.load_state_dict`."""
        self._params.load_state_dict(state_dict)

    def save(self, path: str | bytes | PathLike[str] | PathLike[bytes]) -> None:
        """Writes the layer to a safetensors file, for `tidegate.load`; see `tidegate.save`."""
        from tidegate import files

        files.save(path, cast(Any, self))

    def to_torch(self) -> Any:
        """The `torch.nn.LSTM` or `torch.nn.GRU` with these weights; see `convert.to_torch`.

        Raises:
            TypeError: the layer is an MGU, which PyTorch does not have.
            ValueError: the layer is in low precision: `dequantize` it first.
        """
        from tidegate import convert

        return convert.to_torch(cast(Any, self))

    def to_onnx(self, path: str | PathLike[str], **options: Any) -> None:
        """Writes an ONNX model of this layer; see `convert.to_onnx` for the options.

        Raises:
            TypeError: the layer is an MGU, which ONNX does not have.
            ValueError: the layer is in low precision: `dequantize` it first.
        """
        from tidegate import convert

        convert.to_onnx(cast(Any, self), path, **options)

    def astype(self: Layer, dtype: DTypeLike) -> Layer:
        """A new layer with these options, and with these parameters in another dtype.

        Raises:
            TypeError: dtype is neither float32 nor float64.
            ValueError: the layer is in low precision: `dequantize` it first.
        """
        check_exact("astype", self)
        return self._with(flat=self._model.flat.astype(check_dtype(dtype)))

    def quantize(self: Layer, precision: Precision) -> Layer:
        """A new layer for inference, with these weights in fewer bits.

        It is called as this layer is, with float32 arrays, and streams as it does; sums,
        activations, states and results remain float32. Weights, and x and h where they enter a
        product, are rounded to nearest, ties to even:

        - "bfloat16", "bfloat16-dot": to 8 significant bits, with float32's range. The two differ in
          the order of sums alone: that of AMX's matrix unit, and that of AVX512-BF16's dot
          products. Every processor has both; `tidegate.fastest_bfloat16()` tells which is faster.
        - "int8": to integers in -127..127 times a scale. A row of weights (of one unit and gate)
          has the scale max|w| / 127; a row of x, at each step, max|x| / 127; h has the scale
          1 / 127 if the activations bound it by 1 (and there is no projection), or max|h| / 127
          where |h| exceeds 1 or is not bounded. Sums of integers are exact. A row of x or h that
          has a NaN or an infinity at some step gives NaN in that step, and no other row.

        Biases and peepholes stay float32. Results have the same bits for any threads, batches and
        chunks, as those of float32 have; the formulas are in `tidegate.reference`.

        In int8, elements of x below max|x| / 254 of their row and step become 0. Inputs of a large
        dynamic range within a step, as the power of a spectrum, lose what their small elements
        carry: a published network on mel power keeps a signal-to-noise ratio of 9 dB in int8, 45 dB
        in bfloat16, and 32 dB with only its first layer in bfloat16 and the others in int8. Give
        such a layer bfloat16, or the logarithm of x if you train it; `compare` shows on your own
        data whether it is one.

        Args:
            precision: "bfloat16", "bfloat16-dot" or "int8".

        Returns:
            The layer. Its parameters cannot be changed, and `forward`, `backward`, `astype`,
            `to_torch` and `to_onnx` raise a ValueError; `dequantize` makes a float32 layer.

        Raises:
            TypeError: precision is not a str.
            ValueError: precision has another value; this layer is of float64 (`astype` converts
                it), or already in low precision (but bfloat16 becomes bfloat16-dot, and back);
                "int8" of a weight that is not finite, or of an
                input or hidden size above 131072.
        """
        return self._with(quantized=self._model.quantize(check_precision(precision)))

    def dequantize(self: Layer) -> Layer:
        """A new float32 layer with the parameters of this layer in low precision.

        Raises:
            ValueError: the layer is not in low precision.
        """
        check_low("dequantize", self)
        return self._with(flat=self._model.flat)

    def compare(
        self,
        layer: RecurrentLayer[State, GivenState],
        x: Array,
        state: GivenState | None = None,
        *,
        lengths: ArrayLike | None = None,
        reset: Array | None = None,
    ) -> Comparison:
        """What quantising has changed, on your own data: this layer against the exact one.

        Both layers run the whole network, each with its own states, and the results, gates and cell
        states of every layer and direction are compared: the greatest difference, its root mean
        square, and the signal-to-noise ratio.

        Args:
            layer: the layer from which this one was made, of the same options, in float32.
            x, state, lengths, reset: as in a call. All values of the gates are kept meanwhile.

        Returns:
            The differences by name: `comparison["y"].snr`, `comparison["l0.i"].max`.

        Raises:
            TypeError: layer is not a recurrent layer, or not of float32.
            ValueError: this layer is not in low precision, or the other one is; the options differ;
                the layer cannot be trained (as one with a clip), so that its gates are not known.
            TypeError, ValueError, MemoryError, KeyboardInterrupt: as in a call.
        """
        check_low("compare", self)
        if not isinstance(layer, RecurrentLayer):
            raise TypeError(f"layer: got {type(layer).__name__}, wanted an LSTM, a GRU or an MGU")
        check_exact("layer", layer)
        if layer.dtype != self.dtype:
            raise TypeError(f"layer: got one in {layer.dtype}, wanted float32")
        if layer._config != self._config or layer.batch_first != self.batch_first:
            raise ValueError(f"layer: got {layer!r}, wanted the options of {self!r}")
        return compare(self, layer, x, state, check_integers("lengths", lengths), reset)

    def _with(self: Layer, **parameters: Any) -> Layer:
        """A layer with other parameters: `flat`, or `quantized`, as in a pickled state."""
        layer = type(self).__new__(type(self))
        layer.__setstate__({**self._options(), **parameters})
        return layer

    def _options(self) -> dict[str, Any]:
        """The pickled state, but for the parameters."""
        internal = ("_config", "_dropout", "_model", "_specs", "_params")
        return {
            "options": {name: getattr(self._config, name) for name in self._OPTIONS},
            "batch_first": self.batch_first,
            "dropout": self._dropout,
            "attributes": {k: v for k, v in self.__dict__.items() if k not in internal},
        }

    def __getstate__(self) -> dict[str, Any]:
        quantized = self._model.quantized
        if quantized is not None:
            return {**self._options(), "quantized": quantized}
        return {**self._options(), "flat": self._model.flat.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        flat = state.get("flat")
        options = state["options"]
        # Pickles of versions that had no MGU say "lstm" or "gru".
        config = _core.Config(**{**options, "cell": options["cell"].upper()})
        dtype = np.dtype(np.float32) if flat is None else flat.dtype
        self._build(config, state["batch_first"], state["dropout"], dtype, state.get("quantized"))
        if flat is not None:
            self._model.write(0, flat)
        self.__dict__.update(state["attributes"])

    def __repr__(self) -> str:
        extra_options = {}
        if self.batch_first:
            extra_options["batch_first"] = "True"
        if self._dropout > 0:
            extra_options["dropout"] = f"{self._dropout:g}"
        if self.dtype != np.float32:
            extra_options["dtype"] = str(self.dtype)
        shown = _name(self._config, type(self).__name__, extra_options)
        return shown if is_exact(self) else f"{shown}.quantize({self.precision!r})"


def _name(
    config: _core.Config, name: str | None = None, more: Mapping[str, str] | None = None
) -> str:
    """A layer as a constructor call, with the options that differ from the defaults."""
    default = _core.Config(
        cell=config.cell, input_size=config.input_size, hidden_size=config.hidden_size
    )
    arguments = [str(config.input_size), str(config.hidden_size)]
    for option in RecurrentLayer._OPTIONS:
        value = getattr(config, option)
        if value != getattr(default, option):
            arguments.append(f"{option}={value!r}")
    arguments += [f"{option}={value}" for option, value in (more or {}).items()]
    return f"{name or config.cell}({', '.join(arguments)})"


def _check_clip(clip: float | None) -> float | None:
    return None if clip is None else check_number("clip", clip)


class LSTM(RecurrentLayer[tuple[Array, Array], tuple[Array | None, Array | None]]):
    """Long short-term memory, as `torch.nn.LSTM`, and optionally with peepholes.

    At every step, from x and the previous h and c, with * elementwise (Hochreiter and Schmidhuber
    1997; the forget gate is from Gers, Schmidhuber and Cummins 2000):

        i  = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
        f  = sigmoid(W_if x + b_if + W_hf h + b_hf)
        g  = tanh   (W_ig x + b_ig + W_hg h + b_hg)
        o  = sigmoid(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    With `peephole`, p_i * c and p_f * c are added inside i and f, and p_o * c' inside o (Gers and
    Schmidhuber 2000). With `proj_size`, h' = W_hr (o * tanh(c')) (Sak, Senior and Beaufays 2014).

    Parameters of layer k, with `_reverse` appended for the second direction; S is proj_size, or H
    without a projection; In is input_size in layer 0, D*S above:

        weight_ih_lk (4*H, In), weight_hh_lk (4*H, S): gates in the order i, f, g, o
        bias_ih_lk, bias_hh_lk (4*H,)
        weight_hr_lk (S, H): with proj_size
        weight_peephole_lk (3*H,): with peephole, in the order i, f, o

    They are drawn from U(-1/sqrt(H), 1/sqrt(H)), in this order.

    Args:
        input_size: I, the size of a step of x.
        hidden_size: H, the number of units of one direction of one layer.
        num_layers: the number of stacked layers, each running over the y of the one below.
        bias: whether there are biases.
        batch_first: whether x and y are (N, T, ...) instead of (T, N, ...). States never are.
        dropout: 0 <= dropout <= 1: the probability that `forward` drops an element between two
            layers (calls never do). With num_layers=1 there is none, and a UserWarning says so.
        bidirectional: whether every layer also runs from the last valid step to the first, with
            parameters of its own; y is then (..., 2*S), forward first.
        proj_size: 0, or the size of h, less than hidden_size.
        peephole: whether the gates see the cell state.
        reverse: run from the last valid step to the first only. Excludes bidirectional.
        recurrent_activation: the gates' activation: a name, or (name, alpha), or (name, alpha,
            beta). With the usual parameters, by the formulas of the ONNX operators: "sigmoid",
            "tanh", "relu", "hard_sigmoid" (0.2, 0.5), "affine" (1, 0), "leaky_relu" (0.01),
            "thresholded_relu" (1), "scaled_tanh" (1, 1), "elu" (1), "softsign", "softplus".
        activation: the candidate's activation (g), in the same form.
        output_activation: the activation of c' in h', in the same form; None: as `activation`.
        clip: clamps the arguments of gates and candidate to [-clip, clip] (ONNX); None: no clip.
            Such a layer cannot be trained.
        input_forget: f = 1 - i (ONNX); the parameters of f have no effect.
        dtype: float32 or float64, the dtype of the parameters, the inputs and the results.
        seed: an argument of `numpy.random.default_rng`: None for another draw each time, an int, or
            a Generator.

    Raises:
        TypeError: an option or the seed is of another type, or dtype is neither float32 nor
            float64.
        ValueError: an option or the seed is out of range, or an option is excluded by another.
        MemoryError: the parameters do not fit into memory.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        peephole: bool = False,
        reverse: bool = False,
        recurrent_activation: Activation = "sigmoid",
        activation: Activation = "tanh",
        output_activation: Activation | None = None,
        clip: float | None = None,
        input_forget: bool = False,
        dtype: DTypeLike = np.float32,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        config = _core.Config(
            cell="LSTM",
            input_size=check_integer("input_size", input_size),
            hidden_size=check_integer("hidden_size", hidden_size),
            num_layers=check_integer("num_layers", num_layers),
            bias=check_bool("bias", bias),
            bidirectional=check_bool("bidirectional", bidirectional),
            proj_size=check_integer("proj_size", proj_size),
            peephole=check_bool("peephole", peephole),
            reverse=check_bool("reverse", reverse),
            recurrent_activation=recurrent_activation,
            activation=activation,
            output_activation=output_activation,
            clip=_check_clip(clip),
            input_forget=check_bool("input_forget", input_forget),
        )
        super().__init__(config, batch_first, dropout, dtype, seed)

    @property
    def proj_size(self) -> int:
        """The size of h if there is a projection, else 0."""
        return self._config.proj_size

    @property
    def peephole(self) -> bool:
        """Whether the gates see the cell state."""
        return self._config.peephole

    @property
    def output_activation(self) -> Activation | None:
        """The activation of c' in h', like `recurrent_activation`; None: as `activation`."""
        return self._config.output_activation

    @property
    def input_forget(self) -> bool:
        """Whether f = 1 - i."""
        return self._config.input_forget


class GRU(RecurrentLayer[Array, Array]):
    """Gated recurrent unit, as `torch.nn.GRU`, and in its other forms.

    At every step, from x and the previous h, with * elementwise:

        r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh   (W_in x + b_in + r * (W_hn h + b_hn))   reset_after=True
        n  = tanh   (W_in x + b_in + W_hn (r * h) + b_hn)   reset_after=False
        h' = z * h + (1 - z) * n                            update_gate="carry"
        h' = (1 - z) * h + z * n                            update_gate="write"

    reset_after=False with "carry" is Cho et al. 2014, with "write" Chung et al. 2014; True with
    "carry" is the form of PyTorch, cuDNN and Keras.

    Parameters of layer k, with `_reverse` appended for the second direction; In is input_size in
    layer 0, D*H above:

        weight_ih_lk (3*H, In), weight_hh_lk (3*H, H): gates in the order r, z, n
        bias_ih_lk, bias_hh_lk (3*H,)

    They are drawn from U(-1/sqrt(H), 1/sqrt(H)), in this order.

    Args:
        input_size: I, the size of a step of x.
        hidden_size: H, the number of units of one direction of one layer.
        num_layers: the number of stacked layers, each running over the y of the one below.
        bias: whether there are biases.
        batch_first: whether x and y are (N, T, ...) instead of (T, N, ...). States never are.
        dropout: 0 <= dropout <= 1: the probability that `forward` drops an element between two
            layers (calls never do). With num_layers=1 there is none, and a UserWarning says so.
        bidirectional: whether every layer also runs from the last valid step to the first, with
            parameters of its own; y is then (..., 2*H), forward first.
        reset_after: whether r is applied after the product with h (True) or before it.
        update_gate: "carry" if z multiplies the old state, "write" if it multiplies the new one.
        reverse: run from the last valid step to the first only. Excludes bidirectional.
        recurrent_activation: the gates' activation: a name, or (name, alpha), or (name, alpha,
            beta). With the usual parameters, by the formulas of the ONNX operators: "sigmoid",
            "tanh", "relu", "hard_sigmoid" (0.2, 0.5), "affine" (1, 0), "leaky_relu" (0.01),
            "thresholded_relu" (1), "scaled_tanh" (1, 1), "elu" (1), "softsign", "softplus".
        activation: the candidate's activation (n), in the same form.
        clip: clamps the arguments of gates and candidate to [-clip, clip] (ONNX); None: no clip.
            Such a layer cannot be trained.
        dtype: float32 or float64, the dtype of the parameters, the inputs and the results.
        seed: an argument of `numpy.random.default_rng`: None for another draw each time, an int, or
            a Generator.

    Raises:
        TypeError: an option or the seed is of another type, or dtype is neither float32 nor
            float64.
        ValueError: an option or the seed is out of range, or an option is excluded by another.
        MemoryError: the parameters do not fit into memory.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reset_after: bool = True,
        update_gate: Literal["carry", "write"] = "carry",
        reverse: bool = False,
        recurrent_activation: Activation = "sigmoid",
        activation: Activation = "tanh",
        clip: float | None = None,
        dtype: DTypeLike = np.float32,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        if not isinstance(update_gate, str):
            raise TypeError(f"update_gate: got {update_gate!r}, wanted 'carry' or 'write'")
        config = _core.Config(
            cell="GRU",
            input_size=check_integer("input_size", input_size),
            hidden_size=check_integer("hidden_size", hidden_size),
            num_layers=check_integer("num_layers", num_layers),
            bias=check_bool("bias", bias),
            bidirectional=check_bool("bidirectional", bidirectional),
            reset_after=check_bool("reset_after", reset_after),
            update_gate=update_gate,
            reverse=check_bool("reverse", reverse),
            recurrent_activation=recurrent_activation,
            activation=activation,
            clip=_check_clip(clip),
        )
        super().__init__(config, batch_first, dropout, dtype, seed)

    @property
    def reset_after(self) -> bool:
        """Whether r is applied after the product with h, or before it."""
        return self._config.reset_after

    @property
    def update_gate(self) -> str:
        """Whether z multiplies the old state ("carry") or the new one ("write")."""
        return self._config.update_gate


class MGU(RecurrentLayer[Array, Array]):
    """Minimal gated unit (Zhou, Wu, Zhang and Zhou 2016): a GRU with one gate instead of two.

    At every step, from x and the previous h, with * elementwise:

        f  = sigmoid(W_if x + b_if + W_hf h + b_hf)
        n  = tanh   (W_in x + b_in + W_hn (f * h) + b_hn)
        h' = (1 - f) * h + f * n

    Parameters of layer k, with `_reverse` appended for the second direction; In is input_size in
    layer 0, D*H above:

        weight_ih_lk (2*H, In), weight_hh_lk (2*H, H): gates in the order f, n
        bias_ih_lk, bias_hh_lk (2*H,)

    They are drawn from U(-1/sqrt(H), 1/sqrt(H)), in this order. PyTorch, Keras and ONNX have no
    such cell: `to_torch` and `to_onnx` raise a TypeError. `save` and `tidegate.load` keep a layer.

    Args:
        input_size: I, the size of a step of x.
        hidden_size: H, the number of units of one direction of one layer.
        num_layers: the number of stacked layers, each running over the y of the one below.
        bias: whether there are biases.
        batch_first: whether x and y are (N, T, ...) instead of (T, N, ...). States never are.
        dropout: 0 <= dropout <= 1: the probability that `forward` drops an element between two
            layers (calls never do). With num_layers=1 there is none, and a UserWarning says so.
        bidirectional: whether every layer also runs from the last valid step to the first, with
            parameters of its own; y is then (..., 2*H), forward first.
        reverse: run from the last valid step to the first only. Excludes bidirectional.
        recurrent_activation: the activation of the gate f: a name, or (name, alpha), or (name,
            alpha, beta), as for `GRU`.
        activation: the candidate's activation (n), in the same form.
        clip: clamps the arguments of gate and candidate to [-clip, clip]; None: no clip. Such a
            layer cannot be trained.
        dtype: float32 or float64, the dtype of the parameters, the inputs and the results.
        seed: an argument of `numpy.random.default_rng`: None for another draw each time, an int, or
            a Generator.

    Raises:
        TypeError: an option or the seed is of another type, or dtype is neither float32 nor
            float64.
        ValueError: an option or the seed is out of range, or an option is excluded by another.
        MemoryError: the parameters do not fit into memory.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        recurrent_activation: Activation = "sigmoid",
        activation: Activation = "tanh",
        clip: float | None = None,
        dtype: DTypeLike = np.float32,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        config = _core.Config(
            cell="MGU",
            input_size=check_integer("input_size", input_size),
            hidden_size=check_integer("hidden_size", hidden_size),
            num_layers=check_integer("num_layers", num_layers),
            bias=check_bool("bias", bias),
            bidirectional=check_bool("bidirectional", bidirectional),
            reverse=check_bool("reverse", reverse),
            recurrent_activation=recurrent_activation,
            activation=activation,
            clip=_check_clip(clip),
        )
        super().__init__(config, batch_first, dropout, dtype, seed)


# The classes of layers, by the names of their cells.
CELLS: dict[str, type[LSTM] | type[GRU] | type[MGU]] = {"LSTM": LSTM, "GRU": GRU, "MGU": MGU}
