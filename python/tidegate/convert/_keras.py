"""Keras: arrays, layer configurations and layer objects as layers. `_keras_files` reads files.

Keras itself is never imported here: a caller that passes a Keras object has already imported it.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tidegate.checks import Array, Precision, check_bool
from tidegate.convert._keras_files import LayerWeights, dtype_name, read_layer, select
from tidegate.convert._weights import (
    GATES,
    KERAS_LSTM,
    ZRH_GRU,
    Path,
    RecurrentLayer,
    as_path,
    as_weights,
    check_rank,
    check_shape,
    check_wanted_precision,
    in_precision,
    listed,
    make_layer,
    named_parameters,
    regroup,
)
from tidegate.layers import GRU, LSTM, Activation

_ORDERS = {"LSTM": KERAS_LSTM, "GRU": ZRH_GRU}
# Keras's names of its layers and cells.
_CELLS = {
    "LSTM": "LSTM",
    "GRU": "GRU",
    "LSTMCell": "LSTM",
    "GRUCell": "GRU",
    "CuDNNLSTM": "LSTM",
    "CuDNNGRU": "GRU",
}
_CONVERTIBLE = (*_CELLS, "RNN", "Bidirectional")
_MERGE_MODES = ("concat", "sum", "mul", "ave", None)
_FRAMEWORKS = ("keras", "tf_keras", "tensorflow")

# Options of Keras's layers and cells that a conversion takes into account. `num_constants` and
# `quantization_config` are refused unless they are empty.
_READ = frozenset(
    [
        *("units", "activation", "recurrent_activation", "use_bias", "reset_after", "dtype"),
        *("go_backwards", "time_major", "cell", "layer", "backward_layer", "merge_mode"),
        *("num_constants", "quantization_config"),
    ]
)
# Options that do not change the results of inference, and why.
_WITHOUT_EFFECT = {
    option: reason
    for reason, options in {
        "position of the layer in its model": (
            "name trainable batch_input_shape batch_shape input_shape input_dim input_length "
            "batch_size ragged sparse"
        ),
        "training": (
            "kernel_initializer recurrent_initializer bias_initializer unit_forget_bias "
            "kernel_regularizer recurrent_regularizer bias_regularizer activity_regularizer "
            "kernel_constraint recurrent_constraint bias_constraint dropout recurrent_dropout seed"
        ),
        "which of its results the layer returns; a layer here returns y and the state": (
            "return_sequences return_state"
        ),
        "how the results are computed": "implementation unroll use_cudnn autocast",
        "state that is kept between calls; a stream keeps it": "stateful",
        "output at padded steps; y is zero there": "zero_output_for_mask",
    }.items()
    for option in options.split()
}

# Keras's activations that layers have. The meaning of hard_sigmoid depends on Keras's version.
_ACTIVATIONS: dict[str, Activation] = {
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "relu",
    "elu": "elu",
    "softsign": "softsign",
    "softplus": "softplus",
    "linear": "affine",
    "leaky_relu": ("leaky_relu", 0.2),
}
_HARD_SIGMOID: Activation = "hard_sigmoid"  # 0.2 x + 0.5, up to Keras 2
_HARD_SIGMOID_3: Activation = ("hard_sigmoid", 1 / 6, 0.5)  # relu6(x + 3)/6, from Keras 3 on


class Merged(NamedTuple):
    """A Keras `Bidirectional` that does not concatenate.

    Attributes:
        layer: bidirectional; its y is concatenated, forward first.
        merge_mode: how Keras merges the halves instead, `forward, backward = numpy.split(y, 2,
            axis=-1)`: "sum" adds, "mul" multiplies, "ave" takes their mean, None keeps both.
    """

    layer: RecurrentLayer
    merge_mode: str | None


# ---- From arrays ---------------------------------------------------------------------------------


def keras_lstm(
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    backward: Sequence[Array] | None = None,
    recurrent_activation: Activation = "sigmoid",
    activation: Activation = "tanh",
    go_backwards: bool = False,
    time_major: bool = False,
) -> LSTM:
    """An LSTM from the arrays of Keras's LSTM or CuDNNLSTM, as `get_weights()` gives them.

    As in Keras, the layer is batch first. With `go_backwards` it becomes a `reverse` layer, whose y
    is in the order of x, whereas Keras's is in the order of its steps, which is the opposite.

    Args:
        kernel: (I, 4*H); gates in the order i, f, c, o.
        recurrent_kernel: (H, 4*H).
        bias: (4*H,); or (8*H,), which means that all three have CuDNNLSTM's layout; None: no bias.
        backward: the arrays of a Bidirectional's backward layer.
        recurrent_activation: the gates' activation, by its name in tidegate: "hard_sigmoid" is that
            of Keras 1 and 2, ("hard_sigmoid", 1/6, 0.5) that of Keras 3.
        activation: the activation of the candidate and of c'.
        go_backwards: whether the layer runs from the last step to the first.
        time_major: whether x and y are (T, N, ...) instead of (N, T, ...).

    Raises:
        TypeError: an array is not a float32, float64, float16 or bfloat16 ndarray.
        ValueError: a shape does not fit, or a layer does not have an option's value.
    """
    options = {"recurrent_activation": recurrent_activation, "activation": activation}
    arrays = _given_arrays((kernel, recurrent_kernel, bias), backward)
    layer = _from_arrays("LSTM", arrays, go_backwards, time_major, options)
    assert isinstance(layer, LSTM)
    return layer


def keras_gru(
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    backward: Sequence[Array] | None = None,
    reset_after: bool | None = None,
    recurrent_activation: Activation = "sigmoid",
    activation: Activation = "tanh",
    go_backwards: bool = False,
    time_major: bool = False,
) -> GRU:
    """A GRU from the arrays of Keras's GRU or CuDNNGRU, as `get_weights()` gives them.

    Args:
        kernel: (I, 3*H); gates in the order z, r, h.
        recurrent_kernel: (H, 3*H).
        bias: (2, 3*H) with reset_after, (3*H,) without; or (6*H,), which means that all three have
            CuDNNGRU's layout; None: no bias.
        backward: as for `keras_lstm`.
        reset_after: None takes it from the bias's shape, and True if there is no bias, as in Keras
            2 and 3.
        recurrent_activation: as for `keras_lstm`.
        activation: the candidate's activation.
        go_backwards: as for `keras_lstm`.
        time_major: as for `keras_lstm`.

    Raises:
        TypeError, ValueError: as for `keras_lstm`.
        ValueError: reset_after contradicts the bias's shape.
    """
    options: dict[str, Any]
    options = {"recurrent_activation": recurrent_activation, "activation": activation}
    options["reset_after"] = reset_after
    arrays = _given_arrays((kernel, recurrent_kernel, bias), backward)
    layer = _from_arrays("GRU", arrays, go_backwards, time_major, options)
    assert isinstance(layer, GRU)
    return layer


def _given_arrays(forward: Sequence[Any], backward: Sequence[Any] | None) -> list[Sequence[Any]]:
    if backward is None:
        return [forward]
    if not isinstance(backward, (list, tuple)) or len(backward) not in (2, 3):
        raise TypeError(
            "backward: wanted a sequence of kernel, recurrent_kernel and optionally bias"
        )
    return [forward, backward]


def _from_arrays(
    cell: str,
    directions: Sequence[Sequence[Any]],
    go_backwards: bool,
    time_major: bool,
    options: dict[str, Any],
) -> RecurrentLayer:
    """`directions`: for each direction kernel, recurrent_kernel and optionally bias."""
    names = ("kernel", "recurrent_kernel", "bias")
    prefixes = ("", "backward ")
    arrays = as_weights(
        {
            prefix + name: array
            for prefix, parts in zip(prefixes, directions)
            for name, array in zip(names, parts)
        }
    )
    if check_bool("go_backwards", go_backwards) and len(directions) > 1:
        raise ValueError("go_backwards: got True in a Bidirectional, wanted False")
    parameters = []
    reset_after = set()
    for prefix, _ in zip(prefixes, directions):
        own = {name: arrays[prefix + name] for name in names if prefix + name in arrays}
        for name in names[:2]:
            if name not in own:
                raise TypeError(f"{prefix}{name}: got None, wanted an ndarray")
        converted, after = _direction_parameters(cell, prefix, own)
        parameters.append(converted)
        reset_after.add(after)
    bias = "bias_ih" in parameters[0]
    if any(("bias_ih" in converted) != bias or len(reset_after) > 1 for converted in parameters):
        raise ValueError("backward bias: has another form than the forward layer's")
    options = {key: value for key, value in options.items() if value is not None}
    if cell == "GRU" and None not in reset_after:
        (found,) = reset_after
        if options.setdefault("reset_after", found) != found:
            raise ValueError(
                f"reset_after: got {options['reset_after']!r}, but the bias has the shape of "
                f"reset_after={found}"
            )
    usual = {"recurrent_activation": "sigmoid", "activation": "tanh", "reset_after": True}
    return make_layer(
        cell,
        named_parameters(parameters),
        input_size=parameters[0]["weight_ih"].shape[1],
        hidden_size=parameters[0]["weight_hh"].shape[1],
        bias=bias,
        batch_first=not check_bool("time_major", time_major),
        bidirectional=len(directions) > 1,
        reverse=go_backwards,
        **{key: value for key, value in options.items() if value != usual[key]},
    )


def _direction_parameters(
    cell: str, prefix: str, arrays: Mapping[str, Array]
) -> tuple[dict[str, Array], bool | None]:
    """One direction's parameters in Tidegate's gate order, and the bias shape's reset_after."""
    gates, order = GATES[cell], _ORDERS[cell]
    kernel, recurrent = arrays["kernel"], arrays["recurrent_kernel"]
    check_rank(f"{prefix}kernel", kernel, 2, "two axes, none of them empty")
    check_rank(f"{prefix}recurrent_kernel", recurrent, 2, "two axes, none of them empty")
    hidden_size = recurrent.shape[0]
    width = gates * hidden_size
    meaning = f"for the {gates} gates of {hidden_size} units of a {cell}"
    check_shape(f"{prefix}recurrent_kernel", recurrent, (hidden_size, width), meaning)
    check_shape(f"{prefix}kernel", kernel, (kernel.shape[0], width), meaning)

    bias = arrays.get("bias")
    cudnn = bias is not None and bias.shape == (2 * width,)
    weight_ih, weight_hh = (
        _cudnn_weight(array, gates) if cudnn else array.T for array in (kernel, recurrent)
    )
    result = {"weight_ih": regroup(weight_ih, order), "weight_hh": regroup(weight_hh, order)}
    if bias is None:
        return result, None
    if cudnn or (cell == "GRU" and bias.shape == (2, width)):
        bias_ih, bias_hh = bias.reshape(2, width)
        reset_after = True
    else:
        check_shape(f"{prefix}bias", bias, (width,), f"or two of them, {meaning}")
        bias_ih, bias_hh = bias, np.zeros_like(bias)
        reset_after = False
    result["bias_ih"], result["bias_hh"] = regroup(bias_ih, order), regroup(bias_hh, order)
    return result, reset_after


def _cudnn_weight(kernel: Array, gates: int) -> Array:
    """(G*H, in) of a CuDNN layer's (in, G*H).

    The columns of one gate, in row-major order, hold cuDNN's own matrix (H, in) in row-major order.
    """
    inputs = kernel.shape[0]
    blocks = [np.ascontiguousarray(block) for block in np.split(kernel, gates, axis=1)]
    return np.concatenate([block.reshape(-1, inputs) for block in blocks])


def keras_lengths(mask: Array) -> Array:
    """The `lengths` (N,) of a layer's call for a Keras mask (N, T), bool, True at valid steps.

    A layer's y is zero at padded steps; Keras's depends on its `zero_output_for_mask`.

    Raises:
        TypeError: mask is not an ndarray of bool.
        ValueError: it is not (N, T), or a row is not right-padded: valid steps follow masked ones.
    """
    dtype = getattr(mask, "dtype", type(mask).__name__)
    if dtype != np.bool_:
        raise TypeError(f"mask: got {dtype}, wanted an ndarray of bool")
    if mask.ndim != 2:
        raise ValueError(f"mask: got shape {mask.shape}, wanted (N, T)")
    wrong = np.flatnonzero((mask[:, 1:] & ~mask[:, :-1]).any(axis=1))
    if wrong.size:
        raise ValueError(f"mask: row {wrong[0]} has valid steps after masked ones; wanted padding")
    lengths: Array = mask.sum(axis=1, dtype=np.int64)
    return lengths


# ---- From layers and files -----------------------------------------------------------------------


def from_keras(
    layer_or_path: Any | Path,
    name: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    precision: Precision | None = None,
) -> RecurrentLayer | Merged:
    """An LSTM or a GRU with the weights and options of a Keras layer; see `keras_lstm`.

    LSTM, GRU, CuDNNLSTM, CuDNNGRU, `RNN` of an LSTMCell or a GRUCell, and `Bidirectional` of any of
    them can be converted, also inside `TimeDistributed`, which applies them to each element of its
    second axis. Options that do not change the output are ignored (dropout, initialisers,
    `return_sequences`, `stateful`: a stream keeps its state), and so is the precision of a mixed
    dtype policy: the layer computes in the dtype of the weights. A layer takes `lengths`, not
    masks: `keras_lengths` converts masks where it can. No content of a file is executed, no link in
    it is followed, and the time and memory for reading it are bounded by its size.

    A file with nothing but weights (`.weights.h5`, a file of `save_weights`, or a subclassed model)
    does not record a layer's activations or direction, so it needs `config`.

    Args:
        layer_or_path: a layer or a model of Keras 2 or 3; or a file: `.keras`, `.weights.h5`, or
            the `.h5` (`.hdf5`) of Keras 2 and TensorFlow 1, with or without the architecture.
        name: the layer's name, at any depth of the model; None if there is just one layer. If
            several have the name, the path with the names of the models, as in "encoder/lstm_1",
            where "lstm_1" alone is a layer of the outermost model. For a `.weights.h5` also the
            group of the weights, as in "layers/lstm_1"; some layers have no names.
        config: for a file with nothing but weights: `layer.get_config()`, or those of its entries
            that differ from the defaults of the Keras that wrote the file, {} if none does.
            Activations may be tidegate's, such as ("hard_sigmoid", 0.2, 0.5).
        precision: the low precision of the layer, as by `quantize`, for example "int8"; None:
            that of the weights.

    Returns:
        layer: batch first, unless it is time-major; a `Merged` for a Bidirectional whose merge_mode
        is not "concat".

    Raises:
        TypeError: neither a layer, a model nor a path; weights of another dtype.
        OSError: the file cannot be opened.
        ValueError: there is no such layer, or several and no name (the message lists them); an
            option that a layer does not have; weights that do not fit the options; nothing but
            weights and no config; a file that is damaged, of another format, or not a regular file;
            a precision for weights of float64.

    Warns:
        UserWarning: the configuration has an unknown option, which is ignored.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name: got {type(name).__name__}, wanted a str or None")
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config: got {type(config).__name__}, wanted a mapping or None")
    precision = check_wanted_precision(precision)
    path = as_path(layer_or_path)
    if path is None:
        where = type(layer_or_path).__name__
        layers = _object_layers(layer_or_path)
        if not layers:
            raise ValueError(f"{where}: no LSTM or GRU")
        layer = select(layers, name, where)
    else:
        where = str(path)
        layer = read_layer(path, name, _CONVERTIBLE)
    if config is not None and layer.config is not None:
        raise ValueError(f"config: {where} has one of its own")
    try:
        made = _convert(layer if layer.config is not None else _with_config(layer, config))
        if isinstance(made, Merged):
            return made._replace(layer=in_precision(made.layer, precision))
        return in_precision(made, precision)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: layer {layer.name!r}: {error}") from error


def _framework_class(given: Any) -> tuple[str, str] | None:
    """The name of an object's nearest Keras class, and Keras's version; None without one."""
    for kind in type(given).__mro__:
        root = kind.__module__.partition(".")[0]
        if root in _FRAMEWORKS:
            if root == "tensorflow":  # its own copy of Keras, up to TensorFlow 2.5
                return kind.__name__, "2.4"
            return kind.__name__, str(getattr(sys.modules.get(root), "__version__", "2.6"))
    return None


def _object_layers(given: Any) -> list[LayerWeights]:
    if _framework_class(given) is None:
        raise TypeError(
            f"layer_or_path: got {type(given).__name__}, wanted a Keras layer or model, or a path"
        )
    found = {id(layer): (layer, models) for layer, models in _walk_objects(given, (), True)}
    return [_layer_weights(layer, models) for layer, models in found.values()]


def _walk_objects(
    given: Any, models: tuple[str, ...], outermost: bool
) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The convertible layers in an object, and the names of the models that contain each."""
    class_name, _ = _framework_class(given) or ("", "")
    if class_name in _CONVERTIBLE:
        yield given, models
        return
    wrapped = class_name == "TimeDistributed"
    for child in [given.layer] if wrapped else getattr(given, "layers", None) or ():
        inner = models if outermost and not wrapped else (*models, given.name)
        yield from _walk_objects(child, inner, False)


def _layer_weights(given: Any, models: tuple[str, ...]) -> LayerWeights:
    class_name, version = _framework_class(given) or ("", "")
    parts = [given]
    if class_name == "Bidirectional":
        parts = [given.forward_layer, given.backward_layer]
    return LayerWeights(
        given.name,
        "/".join((*models, given.name)),
        "",
        class_name,
        given.get_config(),
        version=version,
        numbered=False,
        # The layer's own weights would include the states of a stateful layer.
        weights=[list(getattr(part, "cell", part).get_weights()) for part in parts],
    )


# ---- Defaults of options -------------------------------------------------------------------------


class _Defaults(NamedTuple):
    """Keras's defaults of omitted options; None if they depend on an unknown version."""

    recurrent_activation: str | None
    reset_after: bool | None


def _release(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d{1,4})\.(\d{1,4})", version)
    return None if match is None else (int(match[1]), int(match[2]))


def _defaults(layer: LayerWeights) -> _Defaults:
    """The defaults in the signatures of LSTM and GRU of the Keras that wrote a layer.

    | keras_version | recurrent_activation | reset_after |
    | --- | --- | --- |
    | 2.0 to 2.2.5; tf.keras to 2.1.6-tf (TensorFlow 1.4 to 1.12) | hard_sigmoid | False |
    | 2.2.4-tf, by TensorFlow 1.13 to 1.15 | hard_sigmoid | False |
    | 2.2.4-tf, by TensorFlow 2.0 and 2.1 | sigmoid | True |
    | 2.3.0, 2.3.1 | sigmoid | False |
    | 2.3.0-tf (TensorFlow 2.2), and 2.4 and later | sigmoid | True |

    The newer layout is younger than all of these changes, even if a file has no version. CuDNN's
    layers have no such options. The layers of `tf.compat.v1` kept the older defaults, but their
    files cannot be distinguished from the others.
    """
    if layer.class_name.startswith("CuDNN") or (layer.numbered and not layer.version):
        return _Defaults("sigmoid", True)
    release = _release(layer.version)
    if release is None or layer.version == "2.2.4-tf":
        return _Defaults(None, None)
    if release < (2, 3):
        return _Defaults("hard_sigmoid", False)
    return _Defaults("sigmoid", release >= (2, 4) or layer.version.endswith("-tf"))


def _with_config(layer: LayerWeights, config: Mapping[str, Any] | None) -> LayerWeights:
    """A layer of a file with nothing but weights, with `config` as its configuration."""
    if config is None:
        gates = _defaults(layer).recurrent_activation
        merge = ", merge_mode='concat'" if len(layer.weights) > 1 else ""
        known = (
            "config={} if all of them are the defaults of the Keras that wrote it "
            f"(recurrent_activation={gates!r}, activation='tanh', go_backwards=False{merge})"
            if gates is not None
            else f"config={{'recurrent_activation': ...}} if the others are defaults; {_UNTOLD}"
        )
        raise ValueError(
            "config: got None, but the file has only weights, without activation, "
            f"recurrent_activation and go_backwards: pass layer.get_config(), or {known}"
        )
    unknown = _unknown(config)
    if unknown:
        whole = isinstance(config.get("config"), Mapping)  # as keras.layers.serialize writes it
        advice = ": got a serialised layer, pass only its 'config'" if whole else ""
        raise ValueError(
            f"config: got {listed(unknown)}, which no recurrent layer of Keras has{advice}"
        )
    both = len(layer.weights) > 1
    class_name = "RNN" if "cell" in config else layer.class_name
    if both and "layer" not in config:
        config = {
            "layer": {"class_name": class_name, "config": config},
            "merge_mode": config.get("merge_mode", "concat"),
        }
    return replace(layer, class_name="Bidirectional" if both else class_name, config=config)


_UNTOLD = (
    "its default was 'hard_sigmoid' before Keras 2.3 and in TensorFlow 1, and is 'sigmoid' since "
    "then and in TensorFlow 2"
)


# ---- Configurations ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    """The options in a layer's configuration that determine its outputs."""

    cell: str
    units: int | None
    use_bias: bool | None
    go_backwards: bool
    time_major: bool
    reset_after: bool | None
    recurrent_activation: Activation
    activation: Activation


def _convert(layer: LayerWeights) -> RecurrentLayer | Merged:
    config = {} if layer.config is None else layer.config
    if layer.class_name != "Bidirectional":
        return _build(_read_options(layer, layer.class_name, config), layer.weights, 1)

    _check_options("Bidirectional", config)
    merge_mode = config.get("merge_mode", "concat")
    if merge_mode not in _MERGE_MODES:
        raise ValueError(f"merge_mode: got {merge_mode!r}, wanted one of {_MERGE_MODES}")
    forward = _read_child("layer", layer, config)
    if forward.go_backwards:
        raise ValueError("go_backwards: got True in a Bidirectional's forward layer, wanted False")
    if config.get("backward_layer") is not None:
        backward = _read_child("backward_layer", layer, config)
        if not backward.go_backwards:
            raise ValueError("go_backwards: got False in a Bidirectional's backward layer")
        for option, value in vars(forward).items():
            if option != "go_backwards" and getattr(backward, option) != value:
                raise ValueError(
                    f"{option}: got {getattr(backward, option)!r} in the backward layer and "
                    f"{value!r} in the forward one, wanted the same: convert each by keras_lstm or "
                    "keras_gru"
                )
    converted = _build(forward, layer.weights, 2)
    return converted if merge_mode == "concat" else Merged(converted, merge_mode)


def _read_child(key: str, layer: LayerWeights, config: Mapping[str, Any]) -> _Options:
    child = config.get(key)
    if not isinstance(child, Mapping) or not isinstance(child.get("config"), Mapping):
        raise ValueError(f"{key}: got {child!r}, wanted a class_name and a config")
    return _read_options(layer, child.get("class_name"), child["config"])


def _check_options(class_name: object, config: Mapping[str, Any]) -> None:
    """Refuses options that no layer here has; warns about unknown ones."""
    if {"inner_activation", "output_dim"} & config.keys():
        raise ValueError(
            "was written by Keras 1, whose layers have other arrays: load it with Keras 2.2, and "
            "save it again"
        )
    if config.get("num_constants"):
        raise ValueError(
            f"num_constants: got {config['num_constants']!r}, wanted none: a layer's cell depends "
            "only on x and its state"
        )
    dtype = dtype_name(config)
    if config.get("quantization_config") is not None or re.search(r"int\d|float8", dtype):
        raise ValueError(
            f"dtype: got {dtype!r}, which is quantised: wanted the layer before Keras's quantize()"
        )
    unknown = _unknown(config)
    if unknown:
        warnings.warn(
            f"{class_name}: its options {listed(unknown)} are not known and are ignored: compare "
            "the outputs of the converted layer with Keras's",
            stacklevel=5,  # from_keras's caller
        )


def _unknown(config: Mapping[str, Any]) -> list[str]:
    return [str(key) for key in config if key not in _READ and key not in _WITHOUT_EFFECT]


def _read_options(layer: LayerWeights, class_name: Any, config: Mapping[str, Any]) -> _Options:
    outer = config
    _check_options(class_name, outer)
    if class_name == "RNN":
        class_name, config = _read_cell(config.get("cell"))
        _check_options(class_name, config)
    if not isinstance(class_name, str) or class_name not in _CELLS:
        raise ValueError(f"got a {class_name}, wanted one of {listed(_CELLS)}")

    def flag(name: str, source: Mapping[str, Any]) -> bool | None:
        return None if source.get(name) is None else check_bool(name, source[name])

    cell = _CELLS[class_name]
    defaults = _defaults(replace(layer, class_name=class_name))
    if "recurrent_activation" in config:
        gates = config["recurrent_activation"]
    elif defaults.recurrent_activation is None:
        raise ValueError(f"recurrent_activation: unknown for this file: give it, as {_UNTOLD}")
    else:
        gates = defaults.recurrent_activation
    reset_after = flag("reset_after", config)
    if reset_after is None and cell == "GRU" and any(len(arrays) == 2 for arrays in layer.weights):
        if defaults.reset_after is None:
            raise ValueError("reset_after: unknown without a bias: give it in config")
        reset_after = defaults.reset_after  # otherwise taken from the bias's shape
    return _Options(
        cell=cell,
        units=config.get("units"),
        use_bias=flag("use_bias", config),
        go_backwards=bool(flag("go_backwards", outer)),
        time_major=bool(flag("time_major", outer)),
        reset_after=reset_after if cell == "GRU" else None,
        recurrent_activation=_read_activation("recurrent_activation", gates, layer.version),
        activation=_read_activation("activation", config.get("activation", "tanh"), layer.version),
    )


def _read_cell(cell: object) -> tuple[str, Mapping[str, Any]]:
    """The class and the configuration of an RNN's cell."""
    cell = cell if isinstance(cell, Mapping) else {}
    class_name, config = cell.get("class_name"), cell.get("config")
    if class_name in ("LSTMCell", "GRUCell") and isinstance(config, Mapping):
        return class_name, config
    advice = ""
    if class_name == "StackedRNNCells":
        advice = (
            ": convert each of its cells by keras_lstm or keras_gru from cell.get_weights(), and "
            "run the layers one after the other"
        )
    elif isinstance(class_name, str) and class_name.endswith("Wrapper"):
        advice = ": convert the cell that it wraps by keras_lstm or keras_gru"
    raise ValueError(f"cell: got a {class_name}, wanted an LSTMCell or a GRUCell{advice}")


def _read_activation(option: str, value: Any, version: str) -> Activation:
    if value is None:
        value = "linear"
    if isinstance(value, tuple):  # tidegate's own, in a config that a user wrote
        return value
    if value == "hard_sigmoid":
        release = _release(version)
        if release is None:
            raise ValueError(
                f"{option}: got 'hard_sigmoid', but the file does not have Keras's version: wanted "
                "('hard_sigmoid', 0.2, 0.5) for Keras 1 and 2, or ('hard_sigmoid', 1/6, 0.5)"
            )
        return _HARD_SIGMOID if release < (3, 0) else _HARD_SIGMOID_3
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise ValueError(
            f"{option}: got {_activation_text(value)}, which no layer has: wanted one of "
            f"{listed((*_ACTIVATIONS, 'hard_sigmoid'))}; a layer with another must stay in Keras, "
            "or be trained again with one of these"
        )
    return _ACTIVATIONS[value]


def _activation_text(activation: object) -> str:
    """A description of an activation: its name, or an object's class and options."""
    if not isinstance(activation, Mapping):
        return repr(activation)
    class_name, config = activation.get("class_name"), activation.get("config", activation)
    # Functions are written as class_name="function" and their own name as config.
    return repr(config) if class_name in (None, "function") else f"{class_name} with {config!r}"


def _build(
    options: _Options, weights: Sequence[Sequence[Array]], directions: int
) -> RecurrentLayer:
    if len(weights) != directions:
        hint = "" if weights else ": the file does not hold them, or not under the layer's name"
        raise ValueError(f"got weights of {len(weights)} directions, wanted {directions}{hint}")
    for arrays in weights:
        wanted = (2, 3) if options.use_bias is None else (2 + options.use_bias,)
        if len(arrays) not in wanted:
            raise ValueError(
                f"got {len(arrays)} arrays for a direction, wanted {' or '.join(map(str, wanted))}"
                ": kernel, recurrent_kernel and maybe bias (a layer has none before it is built)"
            )
    layer = _from_arrays(
        options.cell,
        weights,
        options.go_backwards,
        options.time_major,
        {
            "recurrent_activation": options.recurrent_activation,
            "activation": options.activation,
            "reset_after": options.reset_after,
        },
    )
    if options.units not in (None, layer.hidden_size):
        raise ValueError(f"units: got {options.units!r}, but the weights have {layer.hidden_size}")
    return layer
