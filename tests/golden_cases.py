# Loads tests/goldens as cases in tidegate's conventions: names, gate order, layouts. No comparing.
"""Expected values of other projects' test suites, translated once for every test that replays them.

Sources differ in gate order (ONNX i o f c and z r h, Keras i f c o and z r h; ours i f g o and
r z n), in weight layout (Keras (in, G*H)), in biases (one or two) and in the axes of y.
`covered_cases` gives what the layers can express, `left_out` the rest with the reason for each.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / "goldens"
EPS32 = float(np.finfo(np.float32).eps)

# Rows of stacked gates: the position, in the source's order, of each of our gates.
ONNX_LSTM = (0, 2, 3, 1)  # i o f c -> i f g o
ONNX_PEEPHOLE = (0, 2, 1)  # i o f -> i f o
ZRH_GRU = (1, 0, 2)  # z r h -> r z n, ONNX and Keras
UNCHANGED_LSTM = (0, 1, 2, 3)  # Keras i f c o and PyTorch
ONNX_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
ONNX_STANDARD = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}
# Our option for each of a node's activations f, g, h, and our name of an activation with the number
# of its parameters: it takes so many of activation_alpha and activation_beta, one of each at most.
ONNX_ACTIVATION_OPTIONS = ("recurrent_activation", "activation", "output_activation")
ONNX_ACTIVATIONS = {
    "sigmoid": ("sigmoid", 0),
    "tanh": ("tanh", 0),
    "relu": ("relu", 0),
    "hardsigmoid": ("hard_sigmoid", 2),
    "affine": ("affine", 2),
    "leakyrelu": ("leaky_relu", 1),
    "thresholdedrelu": ("thresholded_relu", 1),
    "scaledtanh": ("scaled_tanh", 2),
    "elu": ("elu", 1),
    "softsign": ("softsign", 0),
    "softplus": ("softplus", 0),
}
ONNX_NO_CLIP = 999.0  # "no clipping" in ONNX Runtime's tests: beyond all that could be clipped
# One value in two of ONNX Runtime's tests (Y[1, 1, 0, 0]) is wrong in the fifth decimal: their own
# kernel misses it by as much, and the tests' tolerance hides it.
ONNX_MISPRINTED = ("LSTMShorterSeqInMiddle", "LSTMZeroSeqInMiddle")
ONNX_MISPRINT = -0.0435018688
ONNX_MISPRINT_ERROR = 6.2e-5
# Half a unit of the last decimal, where outputs are printed to fewer digits than float32 holds.
PRINTED = {
    "pytorch": 0.5e-4,
    "candle": 0.5e-4,
    "onnx-21-LSTMTest.ONNXRuntime_TestLSTMBatchReallocation": 0.5e-5,
}


@dataclasses.dataclass(frozen=True)
class Expected:
    """`values` is what `output[index]` must be, to within `atol`.

    The output is "y" (T, N, D*H), "y_sum" (T, N, H), the sum over directions, "h" or "c" (D, N, H).
    """

    output: str
    index: Any
    values: np.ndarray
    atol: np.ndarray | float

    def of(self, y: np.ndarray, state: Any) -> np.ndarray:
        """That part of what a layer returned: y (T, N, D*H), state h or (h, c)."""
        if self.output == "y_sum":
            return sum(np.split(y, len(state[0]), axis=2))[self.index]
        if self.output == "y":
            return y[self.index]
        h, c = state if isinstance(state, tuple) else (state, None)
        return (h if self.output == "h" else c)[self.index]


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden: a one-layer network, what goes in and what must come out. All arrays float64."""

    name: str
    cell: str  # "LSTM" or "GRU"
    hidden_size: int
    options: dict[str, Any]  # keyword arguments of the class
    params: dict[str, np.ndarray]
    x: np.ndarray  # (T, N, I)
    h_0: np.ndarray | None
    c_0: np.ndarray | None
    lengths: np.ndarray | None
    expected: tuple[Expected, ...]

    @property
    def input_size(self) -> int:
        return self.x.shape[2]

    @property
    def standard(self) -> bool:
        """Whether it is the usual cell: neither other activations nor clip nor input_forget."""
        return not {*ONNX_ACTIVATION_OPTIONS, "clip", "input_forget"} & self.options.keys()

    @property
    def state(self) -> Any:
        """The state argument: None, h, or (h, c) with what is missing filled with zeros."""
        if self.h_0 is None and self.c_0 is None:
            return None
        if self.cell == "GRU":
            return self.h_0
        zeros = np.zeros_like(self.h_0 if self.h_0 is not None else self.c_0)
        return tuple(zeros if s is None else s for s in (self.h_0, self.c_0))


def covered_cases() -> list[Case]:
    return [case for case, _ in _load() if isinstance(case, Case)]


def left_out() -> dict[str, str]:
    """Name to reason, of the goldens that no option of the layers can express."""
    return {case: reason for case, reason in _load() if isinstance(case, str)}


def _load() -> Iterator[tuple[Case | str, str]]:
    for number, golden in enumerate(_read("golden_cases.json")):
        name = f"{golden['framework']}-{number}-{golden['test']}".replace(" ", "")
        if golden["framework"] == "onnx":
            inputs = dict(zip(ONNX_INPUTS, map(_onnx_array, golden["inputs"]), strict=False))
            outputs = {entry["name"]: _onnx_array(entry) for entry in golden["outputs"] if entry}
            for case in _onnx_cases(name, golden["op"], golden["attrs"], inputs, outputs):
                if case.standard != golden["standard_cell"]:
                    raise ValueError(f"{name}: standard_cell is {golden['standard_cell']}")
                yield case, ""
        else:
            translate = {"keras": _keras, "tflite": _tflite, "pytorch": _torch, "candle": _torch}
            yield translate[golden["framework"]](name, golden), ""
    for golden in _read("onnx_node_cases.json"):
        if golden["op"] not in ONNX_STANDARD:
            yield golden["name"], f"op {golden['op']}"
            continue
        inputs = {key: _onnx_array(entry) for key, entry in golden["inputs"].items()}
        outputs = {key: _onnx_array(entry) for key, entry in golden["outputs"].items()}
        for case in _onnx_cases(golden["name"], golden["op"], golden["attrs"], inputs, outputs):
            yield case, ""


def _read(file: str) -> list[dict[str, Any]]:
    return json.loads((GOLDENS / file).read_text(encoding="utf-8"))


def _float32(values: Any) -> np.ndarray:
    """What the source computed with: the printed decimals stand for float32 numbers."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def _regroup(stacked: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Gates along the first axis, put into our order."""
    gates = stacked.reshape(len(order), -1, *stacked.shape[1:])
    return gates[list(order)].reshape(stacked.shape)


def _tolerance(values: Any, x: np.ndarray, hidden_size: int) -> float:
    """How far a float32 evaluation may be from the float64 one.

    A pre-activation of K terms carries a relative rounding error of up to K*eps/2 (Higham 2002,
    section 3.1; no cancellation assumed), and |a|*tanh'(a) < 0.45, |a|*sigmoid'(a) < 0.23: below
    K*eps/2 per gate, whatever a is; relative to the gate if it is not bounded (leaky_relu). The
    cell's own few operations, and printing, add 8*eps/2. Over T steps: at most T-fold, as what is
    carried is damped; relative to values above 1 (cell states).
    """
    terms = x.shape[2] + hidden_size
    magnitude = max(1.0, float(np.abs(values).max(initial=0.0)))
    return x.shape[0] * (terms + 8) * EPS32 / 2 * magnitude


# ---- ONNX ----------------------------------------------------------------------------------------


def _onnx_array(entry: dict[str, Any] | None) -> np.ndarray | None:
    return None if entry is None else _float32(entry["data"]).reshape(entry["dims"])


def _onnx_tolerance(
    name: str, values: np.ndarray, x: np.ndarray, hidden_size: int
) -> np.ndarray | float:
    atol = _tolerance(values, x, hidden_size) + PRINTED.get(name, 0.0)
    if name.endswith(ONNX_MISPRINTED):
        return atol + np.where(values == np.float32(ONNX_MISPRINT), ONNX_MISPRINT_ERROR, 0.0)
    return atol


def _onnx_activations(op: str, attributes: dict[str, Any]) -> list[dict[str, Any]]:
    """By direction: the options that stand for its activations; none if they are the usual ones."""
    alphas = iter(attributes.get("activation_alpha", []))
    betas = iter(attributes.get("activation_beta", []))
    names = [name.lower() for name in attributes.get("activations", [])]
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    result = []
    for own in np.split(np.array(names), directions):
        activations = []
        for name, parameters in (ONNX_ACTIVATIONS[name] for name in own):
            numbers = [float(next(source)) for source in (alphas, betas)[:parameters]]
            activations.append((name, *numbers) if numbers else name)
        usual = activations in ([], ONNX_STANDARD[op])
        result.append({} if usual else dict(zip(ONNX_ACTIVATION_OPTIONS, activations)))
    return result


def _onnx_cases(
    name: str,
    op: str,
    attributes: dict[str, Any],
    inputs: Mapping[str, np.ndarray | None],
    outputs: Mapping[str, np.ndarray],
) -> Iterator[Case]:
    """One, or one for each direction if their activations differ, as those of our layers do not."""
    activations = _onnx_activations(op, attributes)
    if activations[0] == activations[-1]:
        yield _onnx(name, op, attributes, activations[0], inputs, outputs)
        return
    if attributes.get("layout", 0):
        raise NotImplementedError("no golden has layout=1 and two sets of activations")
    for d, direction in enumerate(("forward", "reverse")):
        own = {
            key: array if array is None or key in ("X", "sequence_lens") else array[d : d + 1]
            for key, array in inputs.items()
        }
        wanted = {
            key: array[:, d : d + 1] if key == "Y" else array[d : d + 1]
            for key, array in outputs.items()
        }
        one = {**attributes, "direction": direction}
        yield _onnx(f"{name}-{direction}", op, one, activations[d], own, wanted)


def _onnx(
    name: str,
    op: str,
    attributes: dict[str, Any],
    activations: dict[str, Any],
    inputs: Mapping[str, np.ndarray | None],
    outputs: Mapping[str, np.ndarray],
) -> Case:
    """W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H) = [Wb, Rb], P (D, 3*H)."""
    direction = attributes.get("direction", "forward")
    hidden_size = attributes["hidden_size"]
    order = ONNX_LSTM if op == "LSTM" else ZRH_GRU
    options: dict[str, Any] = {
        "bias": inputs.get("B") is not None,
        "bidirectional": direction == "bidirectional",
        "reverse": direction == "reverse",
        **activations,
    }
    if attributes.get("clip", ONNX_NO_CLIP) < ONNX_NO_CLIP:
        options["clip"] = float(np.float32(attributes["clip"]))
    if op == "LSTM":
        options["peephole"] = inputs.get("P") is not None
        if attributes.get("input_forget", 0):
            options["input_forget"] = True
    else:
        options["reset_after"] = bool(attributes.get("linear_before_reset", 0))
    params = {}
    for d in range(2 if options["bidirectional"] else 1):
        suffix = "_l0" + ("_reverse" if d else "")
        params["weight_ih" + suffix] = _regroup(inputs["W"][d], order)
        params["weight_hh" + suffix] = _regroup(inputs["R"][d], order)
        if options["bias"]:
            bias_ih, bias_hh = np.split(inputs["B"][d], 2)
            params["bias_ih" + suffix] = _regroup(bias_ih, order)
            params["bias_hh" + suffix] = _regroup(bias_hh, order)
        if options.get("peephole"):
            params["weight_peephole" + suffix] = _regroup(inputs["P"][d], ONNX_PEEPHOLE)
    x, h_0, c_0 = inputs["X"], inputs.get("initial_h"), inputs.get("initial_c")
    y, h_n, c_n = (outputs.get(key) for key in ("Y", "Y_h", "Y_c"))
    if attributes.get("layout", 0):  # batch first, everywhere
        if h_0 is not None or c_0 is not None:
            raise NotImplementedError("no golden has layout=1 and an initial state")
        x = x.transpose(1, 0, 2)
        y = None if y is None else y.transpose(1, 2, 0, 3)
        h_n, c_n = (s if s is None else s.transpose(1, 0, 2) for s in (h_n, c_n))
    if y is not None:  # (T, D, N, H) -> (T, N, D*H)
        y = y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
    expected = tuple(
        Expected(output, ..., values, _onnx_tolerance(name, values, x, hidden_size))
        for output, values in (("y", y), ("h", h_n), ("c", c_n))
        if values is not None
    )
    lengths = inputs.get("sequence_lens")
    lengths = None if lengths is None else lengths.astype(np.int64)
    return Case(name, op, hidden_size, options, params, x, h_0, c_0, lengths, expected)


# ---- Keras ---------------------------------------------------------------------------------------


def _keras(name: str, golden: dict[str, Any]) -> Case:
    """Batch-first layers, alone or as the two of a Bidirectional.

    A mask may have holes: the state passes over masked steps, so a row is its valid steps, moved
    together, and its length their number. What Keras shows at masked steps is its own convention
    and not compared. With go_backwards the last step is the first.
    """
    directions = [part for part in ("layer", "forward", "backward") if part in golden["config"]]
    config = golden["config"][directions[0]]
    cell, hidden_size = golden["op"], config["units"]
    options: dict[str, Any] = {
        "bias": config["use_bias"],
        "bidirectional": golden["bidirectional"],
        "reverse": config["go_backwards"],
    }
    if cell == "GRU":
        options["reset_after"] = config["reset_after"]
    order = UNCHANGED_LSTM if cell == "LSTM" else ZRH_GRU
    params = {}
    for direction in directions:
        suffix = "_l0" + ("_reverse" if direction == "backward" else "")
        weights = [_float32(array) for array in golden["weights"][direction]]
        params["weight_ih" + suffix] = _regroup(weights[0].T, order)
        params["weight_hh" + suffix] = _regroup(weights[1].T, order)
        if options["bias"]:  # one, or [input, recurrent]
            biases = weights[2] if weights[2].ndim == 2 else [weights[2], np.zeros_like(weights[2])]
            params["bias_ih" + suffix] = _regroup(biases[0], order)
            params["bias_hh" + suffix] = _regroup(biases[1], order)

    inputs = golden["inputs"]
    x = _float32(inputs["x"]).transpose(1, 0, 2)
    mask = np.ones(x.shape[:2], dtype=bool)
    if inputs["mask"] is not None:
        mask = np.asarray(inputs["mask"], dtype=bool).T
    moved = np.full_like(x, np.nan)
    for row in range(x.shape[1]):
        valid = x[mask[:, row], row]
        moved[: len(valid), row] = valid
    lengths = mask.sum(axis=0) if inputs["mask"] is not None else None

    state = inputs["initial_state"]
    if state is None and inputs["state_before_call"] is not None:
        state = inputs["state_before_call"]
    h_0 = c_0 = None
    if state is not None:
        states = _float32(state).reshape(-1, x.shape[1], hidden_size)  # by direction: h, and c
        h_0, c_0 = (states, None) if cell == "GRU" else (states[0::2], states[1::2])

    expected = _keras_expected(golden, config, x, mask)
    return Case(name, cell, hidden_size, options, params, moved, h_0, c_0, lengths, expected)


def _keras_expected(
    golden: dict[str, Any], config: dict[str, Any], x: np.ndarray, mask: np.ndarray
) -> tuple[Expected, ...]:
    """`which` is the output's number, and maybe a row of the batch."""
    number, _, row = golden["which"].removeprefix("output").partition("[batch ")
    hidden_size = config["units"]
    values = np.asarray(golden["expected"], dtype=np.float64)
    atol = _tolerance(values, x, hidden_size)
    if int(number) > 0:  # states: by direction, h and for an LSTM c
        states = 2 if golden["op"] == "LSTM" else 1
        direction, kind = divmod(int(number) - 1, states)
        return (Expected("hc"[kind], direction, values, atol),)
    if not config["return_sequences"]:  # each direction's last h, side by side
        parts = np.split(values, 2 if golden["bidirectional"] else 1, axis=1)
        return tuple(Expected("h", d, part, atol) for d, part in enumerate(parts))
    if golden["merge_mode"] == "sum":
        return (Expected("y_sum", ..., values.transpose(1, 0, 2), atol),)
    n = int(row.removesuffix("]"))
    valid = mask[:, n]
    return (Expected("y", (slice(0, int(valid.sum())), n), values[valid], atol),)


# ---- TFLite, PyTorch, candle ---------------------------------------------------------------------


def _tflite(name: str, golden: dict[str, Any]) -> Case:
    """Gates r and u over [x, h] in one matrix, the candidate over [x, r*h] in another; u is z."""
    inputs = {key: _float32(values) for key, values in golden["inputs"].items()}
    x, h_0 = inputs["x"], inputs["h0"][None]
    weight = np.concatenate([inputs["gate_weight"], inputs["candidate_weight"]])
    bias = np.concatenate([inputs["gate_bias"], inputs["candidate_bias"]])
    params = {
        "weight_ih_l0": weight[:, : x.shape[2]],
        "weight_hh_l0": weight[:, x.shape[2] :],
        "bias_ih_l0": bias,
        "bias_hh_l0": np.zeros_like(bias),
    }
    values, hidden_size = np.asarray(golden["expected"]), h_0.shape[2]
    expected = (Expected("y", ..., values, _tolerance(values, x, hidden_size)),)
    options = {"reset_after": False}
    return Case(name, "GRU", hidden_size, options, params, x, h_0, None, None, expected)


def _torch(name: str, golden: dict[str, Any]) -> Case:
    """PyTorch's own conventions, which are ours; expected values to four decimals."""
    params = {key: _float32(values) for key, values in golden["weights"].items()}
    x = _float32(golden["inputs"]["x"])
    hidden_size = params["weight_hh_l0"].shape[1]
    expected = []
    for key, printed in golden["expected"].items():
        values = np.asarray(printed)
        atol = _tolerance(values, x, hidden_size) + PRINTED[golden["framework"]]
        output, index = ("y", ...) if key == "out" else (key.removesuffix("n"), 0)
        expected.append(Expected(output, index, values, atol))
    return Case(name, "LSTM", hidden_size, {}, params, x, None, None, None, tuple(expected))
