"""Evaluates constants of ONNX graphs: stored tensors and operators on them, within bounds.

The reference implementation of the onnx package runs the operators. The size of each result is
computed from the operator's inputs before it runs, so that a small file cannot make gigabytes.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tidegate.checks import Array
from tidegate.convert._onnx_graph import DOMAINS, Model, Scope, node_title
from tidegate.convert._paths import check_regular_file
from tidegate.convert._quantized import QuantizedWeight
from tidegate.convert._weights import import_extra

if TYPE_CHECKING:
    import onnx

# The most elements that operators and layers may make for one model: a constant, and a multiple of
# the elements that the model stores.
_MADE_ELEMENTS = 1 << 22
_MADE_PER_STORED = 16
# The fixed cost of running an operator, one or two milliseconds, as a number of elements.
_ELEMENTS_PER_NODE = 1024
# The number of multiply-adds of a MatMul that takes as long as making one element.
_PRODUCTS_PER_ELEMENT = 64
# The search for zeros is recursive and gives up on longer chains, which no exporter writes.
_LONGEST_CHAIN = 200

# Bits of the elements that share bytes.
_PACKED_BITS = {
    **dict.fromkeys(("INT2", "UINT2"), 2),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
}
# Operators with a tensor as an attribute. They are evaluated here, as the onnx package would look
# for the tensor's external data in the current folder.
_HOLDS_TENSOR = ("Constant", "ConstantOfShape")
# The typed fields of a stored tensor; elements of all other types are in raw_data.
_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
# NumPy's kinds of arrays of strings.
_TEXT = "OSU"

_Key: TypeAlias = tuple[Scope, str]


# ---- Operators -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """A node with the values of its inputs.

    Attributes:
        inputs: the values; None for an omitted input.
        attributes: the attributes that are not tensors.
        outputs: the number of outputs of the node.
    """

    inputs: Sequence[Array | None]
    attributes: Mapping[str, Any]
    outputs: int

    @property
    def given(self) -> list[Array]:
        """The inputs that are not omitted."""
        return [array for array in self.inputs if array is not None]


@dataclass(frozen=True)
class _Operator:
    """An operator that makes constants from constants.

    Attributes:
        made: returns the number of elements that it makes; raises where the reference
            implementation would ignore a contradiction.
        since: the first opset whose rules the reference implementation follows.
        keeps_zeros: whether it makes zeros if its first input is zero, for any other inputs.
    """

    made: Callable[[_Call], int]
    since: int = 1
    keeps_zeros: bool = False


def _elements_of_first(call: _Call) -> int:
    return call.given[0].size


def _elements_of_all(call: _Call) -> int:
    return sum(array.size for array in call.given)


def _elements_of_broadcast(call: _Call) -> int:
    return math.prod(np.broadcast_shapes(*(array.shape for array in call.given)))


def _elements_of_division(call: _Call) -> int:
    made = _elements_of_broadcast(call)
    divisor = call.given[1]
    if divisor.dtype.kind in "iu" and not np.all(divisor):
        raise ValueError("got a 0 in the divisor of integers")
    return made


def _elements_of_rank(call: _Call) -> int:
    return call.given[0].ndim


def _elements_of_expand(call: _Call) -> int:
    data, shape = call.given
    return math.prod(np.broadcast_shapes(data.shape, _sizes(shape)))


def _elements_of_fill(call: _Call) -> int:
    return math.prod(_sizes(call.given[0]))


def _elements_of_tile(call: _Call) -> int:
    data, repeats = call.given
    if repeats.shape != (data.ndim,):
        raise ValueError(f"repeats: got shape {repeats.shape}, wanted one for each of {data.shape}")
    return data.size * math.prod(_sizes(repeats))


def _elements_of_gather(call: _Call) -> int:
    data, indices = call.given
    length: int = data.shape[call.attributes.get("axis", 0)]
    return data.size // max(1, length) * indices.size


def _elements_of_range(call: _Call) -> int:
    start, limit, delta = (array.item() for array in call.given)
    steps: int = math.ceil((limit - start) / delta)
    return max(0, steps)


def _elements_of_matmul(call: _Call) -> int:
    a, b = call.given
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"got shapes {a.shape} and {b.shape}, wanted at least one axis")
    rows = a.shape[-2] if a.ndim > 1 else 1
    columns = b.shape[-1] if b.ndim > 1 else 1
    batches = math.prod(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    elements: int = batches * rows * columns
    products: int = elements * a.shape[-1]
    return max(elements, products // _PRODUCTS_PER_ELEMENT)


def _elements_of_split(call: _Call) -> int:
    data = call.given[0]
    length = data.shape[call.attributes.get("axis", 0)]
    parts = call.attributes.get("split", call.given[1] if len(call.given) > 1 else None)
    wanted = call.attributes.get("num_outputs")
    if parts is not None:
        wanted = len(parts)
        lengths = [int(part) for part in parts]
        if min(lengths, default=0) < 0 or sum(lengths) != length:
            raise ValueError(f"split: got {lengths} for an axis of {length}")
    if wanted not in (None, call.outputs):
        raise ValueError(f"it has {call.outputs} outputs, but is asked for {wanted}")
    return data.size


def _elements_of_slice(call: _Call) -> int:
    bounds = [*call.inputs[1:], *(call.attributes.get(name) for name in ("starts", "ends", "axes"))]
    lengths = {np.size(bound) for bound in bounds if bound is not None}
    if len(lengths) > 1:
        raise ValueError(f"starts, ends, axes and steps differ in length: {sorted(lengths)}")
    return call.given[0].size


def _elements_of_quantised(call: _Call) -> int:
    data, scale = call.given[:2]
    axis, block = call.attributes.get("axis", 1), call.attributes.get("block_size", 0)
    if scale.size != 1:
        wanted = list(data.shape)
        length: int = wanted[axis]
        if block > 0:
            wanted[axis] = -(-length // block)
        if scale.shape != (tuple(wanted) if block > 0 else (length,)) or block > length:
            raise ValueError(
                f"scale: got shape {scale.shape} for data of shape {data.shape}, axis {axis} and "
                f"block_size {block}"
            )
    if any(zero_point.shape != scale.shape for zero_point in call.given[2:]):
        raise ValueError(f"zero point: got {call.given[2].shape}, wanted {scale.shape} of scale")
    return data.size


def _sizes(shape: Array) -> tuple[int, ...]:
    sizes = tuple(map(int, shape.reshape(-1)))
    if min(sizes, default=0) < 0:
        raise ValueError(f"got {list(sizes)} as sizes, wanted none below 0")
    return sizes


def _named(names: str, operator: _Operator) -> dict[str, _Operator]:
    return dict.fromkeys(names.split(), operator)


_FOLDED: dict[str, _Operator] = {
    **_named(
        "Cast CastLike Flatten Identity Reshape Squeeze Transpose Unsqueeze",
        _Operator(_elements_of_first, keeps_zeros=True),
    ),
    "Expand": _Operator(_elements_of_expand, keeps_zeros=True),
    "Gather": _Operator(_elements_of_gather, keeps_zeros=True),
    "Slice": _Operator(_elements_of_slice, keeps_zeros=True),
    "Split": _Operator(_elements_of_split, keeps_zeros=True),
    "Tile": _Operator(_elements_of_tile, keeps_zeros=True),
    "Concat": _Operator(_elements_of_all),
    "Constant": _Operator(_elements_of_all),
    "ConstantOfShape": _Operator(_elements_of_fill),
    "MatMul": _Operator(_elements_of_matmul),
    "Range": _Operator(_elements_of_range),
    "Shape": _Operator(_elements_of_rank),
    "Size": _Operator(_elements_of_rank),
    # Up to opset 6 attributes of these operators aligned the axes of their inputs.
    **_named(
        "Add Sub Mul Pow And Or Equal Greater Less", _Operator(_elements_of_broadcast, since=7)
    ),
    "Div": _Operator(_elements_of_division, since=7),
    **_named(
        "Clip GreaterOrEqual LessOrEqual Max Mean Min Sum Where", _Operator(_elements_of_broadcast)
    ),
    **_named("DequantizeLinear QuantizeLinear", _Operator(_elements_of_quantised)),
    **_named(
        "Abs Ceil Exp Floor Log Neg Not Reciprocal Relu Round Sigmoid Sign Softplus Sqrt Tanh",
        _Operator(_elements_of_first),
    ),
    **_named(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare",
        _Operator(_elements_of_first),
    ),
}


# ---- Quantised constants -------------------------------------------------------------------------

# Operators that only move, select or repeat elements of their first input (Concat: of all).
_MOVES = (
    *("Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape"),
    *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class _Quantized:
    """Integers, with a scale and a zero point for each of them: arrays of one shape."""

    values: Array
    scales: Array
    zero_points: Array


def _read_quantized(call: _Call, made: Array) -> _Quantized | None:
    """The inputs of a DequantizeLinear; None unless they are of 8 bits and make float32."""
    values, scale, *rest = call.inputs
    assert values is not None
    assert scale is not None
    if values.dtype not in (np.int8, np.uint8) or {scale.dtype, made.dtype} != {_FLOAT32}:
        return None
    zero_point = rest[0] if rest and rest[0] is not None else np.zeros((), values.dtype)
    axis, block = call.attributes.get("axis", 1), call.attributes.get("block_size", 0)

    def spread(parameter: Array) -> Array:
        if parameter.size == 1:
            parameter = parameter.reshape([1] * values.ndim)
        elif block > 0:
            repeated = np.repeat(parameter, block, axis)
            parameter = np.take(repeated, range(values.shape[axis]), axis)
        else:
            sizes = [1] * values.ndim
            sizes[axis] = parameter.size
            parameter = parameter.reshape(sizes)
        return np.broadcast_to(parameter, values.shape)

    return _Quantized(values, spread(scale), spread(zero_point))


# ---- Names ---------------------------------------------------------------------------------------


class Constants:
    """The constants of a model's graphs, each evaluated once.

    Args:
        model: the model that the scopes of all names belong to.
    """

    def __init__(self, model: Model) -> None:
        self._tensors = _Tensors(model)
        self._opset = model.opset
        self._endings: dict[_Key, str | None] = {}
        self._values: dict[_Key, Array] = {}
        self._zeros: dict[_Key, bool] = {}
        self._quantized: dict[_Key, _Quantized | None] = {}

    def count(self, elements: int, what: str) -> None:
        """Adds to the number of elements that have been made for this model.

        Raises:
            ValueError: they are too many for what the model stores; the message begins with `what`.
        """
        self._tensors.count_elements(elements, what)

    def ending(self, scope: Scope, name: str) -> str | None:
        """Why a name is not a constant, as the end of a sentence; None if it is one.

        An initialiser that a caller may replace counts as a constant.

        Raises:
            ValueError: the name is not defined, or depends on itself.
        """
        for key in _in_order(scope, name, self._inputs_of, self._endings):
            own = self._ending_of_node(*key)
            inputs = (self._endings[needed] for needed in self._inputs_of(*key))
            self._endings[key] = own or next((ending for ending in inputs if ending), None)
        return self._endings[_key(scope, name)]

    def value(self, scope: Scope, name: str) -> Array | None:
        """The value of a name, if it is the same whenever the graph runs; else None.

        Raises:
            ValueError: it is damaged, cannot be evaluated, or is implausibly large.
        """
        if self.ending(scope, name) is not None:
            return None
        for key in _in_order(scope, name, self._inputs_of, self._values):
            if key not in self._values:  # unless another output of the same node has been evaluated
                self._evaluate_name(*key)
        return self._values[_key(scope, name)]

    def _ending_of_node(self, scope: Scope, name: str) -> str | None:
        """Why a name is not a constant even if everything that it depends on is one."""
        if name in scope.tensors:
            return None
        if name not in scope.makers:
            where = f" of the graph in {'/'.join(scope.path)}" if scope.path else ""
            return f"it depends on the input {name!r}{where}"
        node, _ = scope.makers[name]
        operator = _FOLDED.get(node.op_type) if node.domain in DOMAINS else None
        if operator is None:
            return (
                f"it comes from the {node_title(node)}, an operator that is not folded here: fold "
                "constants first, with onnxsim or a session of ONNX Runtime that writes its "
                "optimized_model_filepath, or pass the arrays to onnx_lstm or onnx_gru"
            )
        if self._opset < operator.since:
            return (
                f"it comes from the {node_title(node)}, which is not folded for opsets before "
                f"{operator.since}: convert the model with onnx.version_converter"
            )
        return None

    def _inputs_of(self, scope: Scope, name: str) -> list[_Key]:
        """The names that a name depends on directly; none for stored tensors and non-constants."""
        if name in scope.tensors or self._ending_of_node(scope, name) is not None:
            return []
        node, _ = scope.makers[name]
        return [_key(scope, needed) for needed in node.input if needed]

    def _evaluate_name(self, scope: Scope, name: str) -> None:
        """Evaluates a name whose dependencies have been evaluated, and stores the value."""
        if name in scope.tensors:
            self._values[scope, name] = self._tensors.read(scope.tensors[name], name)
            return
        node, _ = scope.makers[name]
        inputs = [self._values[_key(scope, needed)] if needed else None for needed in node.input]
        for output, value in zip(node.output, self._tensors.run(node, inputs), strict=True):
            if output:
                self._values[scope, output] = value

    # Constants that DequantizeLinear makes, as they were before.

    def quantized(self, scope: Scope, name: str) -> QuantizedWeight | None:
        """A constant as integers with a scale and a zero point for each row (along the last axis).

        None if it does not come from DequantizeLinear of int8 or uint8 to float32, directly or
        through operators that move elements, or if a row has several scales or zero points.

        Raises:
            ValueError: as `value`.
        """
        if self.value(scope, name) is None:
            return None
        found = self._find_quantized(*_key(scope, name), 0)
        if found is None or found.values.ndim < 2 or found.values.size == 0:
            return None
        bits = found.scales.view(np.uint32)
        for parameter in (bits, found.zero_points):
            if np.any(parameter != parameter[..., :1]):
                return None
        scales, zero_points = found.scales[..., 0], found.zero_points[..., 0]
        return QuantizedWeight(found.values, scales, zero_points)

    def _find_quantized(self, scope: Scope, name: str, depth: int) -> _Quantized | None:
        """A constant's integers; the names that it depends on have been evaluated."""
        key = scope, name
        if key not in self._quantized:
            found = None
            if depth <= _LONGEST_CHAIN and name in scope.makers:
                found = self._quantized_by(*scope.makers[name], scope, depth)
            self._quantized[key] = found
        return self._quantized[key]

    def _quantized_by(
        self, node: onnx.NodeProto, output: int, scope: Scope, depth: int
    ) -> _Quantized | None:
        inputs = [self._values[_key(scope, needed)] if needed else None for needed in node.input]
        if node.op_type == "DequantizeLinear":
            made = self._values[scope, node.output[output]]
            return _read_quantized(self._tensors.call(node, inputs), made)
        if node.op_type not in _MOVES:
            return None
        count = len(node.input) if node.op_type == "Concat" else 1
        moved = [
            self._find_quantized(*_key(scope, needed), depth + 1) for needed in node.input[:count]
        ]
        parts = [part for part in moved if part is not None]
        if len(parts) < count or len({part.values.dtype for part in parts}) > 1:
            return None

        def run(arrays: list[Array]) -> Array:
            return self._tensors.run_again(node, [*arrays, *inputs[count:]])[output]

        return _Quantized(
            run([part.values for part in parts]),
            run([part.scales for part in parts]),
            run([part.zero_points for part in parts]),
        )

    # Zeros whose shape is known only when the graph runs, which exporters write as default states.

    def is_zero(self, scope: Scope, name: str, depth: int = 0) -> bool:
        """Whether all elements of a name are always zero when the graph runs."""
        key = _key(scope, name)
        if depth > _LONGEST_CHAIN or key[0].is_input(name):
            return False
        if key not in self._zeros:
            self._zeros[key] = self._find_zero(*key, depth + 1)
        return self._zeros[key]

    def _find_zero(self, scope: Scope, name: str, depth: int) -> bool:
        value = self.value(scope, name)
        if value is not None:
            return not np.any(value)
        if self._ending_of_node(scope, name) is not None:
            return False
        node, _ = scope.makers[name]
        if node.op_type == "ConstantOfShape":
            return not np.any(self._tensors.fill(node))
        if node.op_type == "Concat":
            return all(self.is_zero(scope, key, depth) for key in node.input)
        return _FOLDED[node.op_type].keeps_zeros and self.is_zero(scope, node.input[0], depth)

    def sizes(self, scope: Scope, name: str, rank: int) -> tuple[int | None, ...] | None:
        """The known sizes of a name that should have this rank, or None.

        These are the shape of a constant, the shape that the main graph declares for an input, and
        the constant sizes of zeros whose shape is assembled when the graph runs.
        """
        scope = _key(scope, name)[0]
        while (maker := scope.makers.get(name)) and self.ending(scope, name) is not None:
            node = maker[0]
            if self._ending_of_node(scope, name) is not None:
                return None
            if node.op_type == "ConstantOfShape":
                return self._listed_sizes(scope, node.input[0], rank)
            if node.op_type == "Expand":
                least = self.value(scope, node.input[0])
                sizes = self._listed_sizes(scope, node.input[1], rank)
                if least is None or sizes is None or least.ndim > rank:
                    return None
                padded = (1,) * (rank - least.ndim) + least.shape
                return tuple(size if own == 1 else own for size, own in zip(sizes, padded))
            if node.op_type not in ("Identity", "Cast"):
                return None
            scope, name = _key(scope, node.input[0])
        value = self.value(scope, name)
        return scope.declared(name) if value is None else value.shape

    def _listed_sizes(self, scope: Scope, name: str, rank: int) -> tuple[int | None, ...] | None:
        """The sizes in a shape of this rank, None for those that are not constant."""
        scope = _key(scope, name)[0]
        maker = scope.makers.get(name)
        parts = maker[0].input if maker and maker[0].op_type == "Concat" else [name]
        values = [self.value(scope, part) for part in parts]
        first: list[int] = []
        last: list[int] = []
        for value in values:
            if value is None:
                break
            first += map(int, value.reshape(-1))
        else:
            return tuple(first)
        for value in reversed(values):
            if value is None:
                break
            last[:0] = map(int, value.reshape(-1))
        unknown = rank - len(first) - len(last)
        return (*first, *[None] * unknown, *last) if unknown > 0 else None


def _key(scope: Scope, name: str) -> _Key:
    """The name with the scope that defines it."""
    owner = scope.owner(name)
    if owner is None:
        raise ValueError(f"{name!r}: nothing in the graph has this name")
    return owner, name


def _in_order(
    scope: Scope,
    name: str,
    inputs_of: Callable[[Scope, str], list[_Key]],
    done: Mapping[_Key, object],
) -> Iterator[_Key]:
    """The names that a name depends on and that are not done, each after its own dependencies."""
    stack = [(_key(scope, name), False)]
    open_keys: set[_Key] = set()
    while stack:
        key, ready = stack.pop()
        if ready:
            open_keys.remove(key)
            yield key
        elif key not in done:
            if key in open_keys:
                raise ValueError(f"{key[1]!r}: depends on itself")
            open_keys.add(key)
            stack.append((key, True))
            stack.extend((needed, False) for needed in reversed(inputs_of(*key)))


# ---- Values --------------------------------------------------------------------------------------


class _Tensors:
    """Arrays of a model: reads stored tensors, runs operators, and counts the elements made."""

    def __init__(self, model: Model) -> None:
        self._onnx = import_extra("onnx", "onnx")
        self._helper = import_extra("onnx.helper", "onnx")
        self._model = model
        self._directory = model.directory
        self._opset = model.opset
        self._stored = 0
        self._made = 0
        self._read_bytes: dict[pathlib.Path, int] = {}

    def count_elements(self, elements: int, what: str) -> None:
        """Raises a ValueError if these elements and those made before are too many."""
        self._made += elements
        if self._made > _MADE_ELEMENTS + _MADE_PER_STORED * self._stored:
            raise ValueError(f"{what}: makes too much from the {self._stored} elements stored")

    def read(self, tensor: Any, name: str) -> Array:
        """A tensor's values; external data are read from the model's folder.

        Raises:
            ValueError: it is damaged or sparse, or its data are missing.
        """
        proto = self._onnx.TensorProto
        if not isinstance(tensor, proto):
            raise ValueError(
                f"{name!r}: got a sparse tensor, wanted a dense one: store it densely, or pass the "
                "arrays to onnx_lstm or onnx_gru"
            )
        external = tensor.data_location == proto.EXTERNAL
        if external and self._directory is None:
            raise ValueError(
                f"{name!r}: its data are in another file: give the model's path, or load them with "
                "onnx.load_external_data_for_model"
            )
        try:
            _check_one_field(tensor)
            elements = math.prod(_sizes(np.array(tensor.dims, np.int64)))
            bits = self._bits(tensor.data_type)
            if external:
                self._check_external(tensor, elements, _bytes_of(elements, bits))
            else:
                _check_held(tensor, elements, bits)
                self._stored += elements
            numpy_helper = import_extra("onnx.numpy_helper", "onnx")
            array: Array = numpy_helper.to_array(tensor, str(self._directory or ""))
        except Exception as error:  # onnx raises many types of errors for a damaged tensor
            raise ValueError(f"{name!r}: cannot be read: {error}") from error
        return array

    def _bits(self, data_type: int) -> int:
        """The size of a stored element, in bits."""
        kind = self._onnx.TensorProto.DataType.Name(data_type)
        if kind in ("STRING", "UNDEFINED"):
            raise ValueError(f"got elements of type {kind}, wanted numbers")
        if kind in _PACKED_BITS:
            return _PACKED_BITS[kind]
        return 8 * int(self._helper.tensor_dtype_to_np_dtype(data_type).itemsize)

    def _check_external(self, tensor: Any, elements: int, wanted: int) -> None:
        """Raises unless the model's folder has a file that holds exactly these bytes.

        Elements count as stored only until as many bytes have been read as the file has: any number
        of tensors can point to the same bytes.
        """
        assert self._directory is not None
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if pathlib.PurePath(location).is_absolute() or ".." in pathlib.PurePath(location).parts:
            raise ValueError(f"external data {location!r}: not in the model's folder")
        file = self._directory / location
        check_regular_file("external data", file)
        size = file.stat().st_size
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", size - offset))
        if not 0 <= offset <= offset + length <= size or length != wanted:
            raise ValueError(
                f"external data {location!r}: got {length} bytes at {offset} in a file of {size}, "
                f"wanted {wanted} for dimensions {list(tensor.dims)}"
            )
        before = self._read_bytes.get(file, 0)
        self._read_bytes[file] = before + wanted
        if before + wanted <= size:
            self._stored += elements
        else:
            self.count_elements(elements, f"external data {location!r}")

    def run(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        """The outputs of a node whose operator is in `_FOLDED`.

        Args:
            node: the node.
            inputs: the values of its inputs, None for an omitted input.

        Raises:
            ValueError: the node breaks the rules of its operator, fails on these inputs, or makes
                implausibly much.
        """
        title = node_title(node)
        try:
            call = self.call(node, inputs)
            made = _FOLDED[node.op_type].made(call)
        except Exception as error:  # contradictory inputs may raise anything
            raise ValueError(f"{title}: cannot be evaluated: {error}") from error
        work = max(made, sum(array.size for array in call.given))
        self.count_elements(work + _ELEMENTS_PER_NODE, title)
        return self._outputs(node, call)

    def run_again(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        """As `run`, for a node that has run before, on arrays of the same shapes.

        These elements are not counted: callers do this no more than three times per node.
        """
        return self._outputs(node, self.call(node, inputs))

    def _outputs(self, node: onnx.NodeProto, call: _Call) -> list[Array]:
        try:
            if node.op_type == "Constant":
                return [self._constant(node)]
            if node.op_type == "ConstantOfShape":
                return [np.full(_sizes(call.given[0]), self.fill(node))]
            with np.errstate(all="ignore"):
                return self._evaluate(node, call)
        except Exception as error:  # the reference implementation may raise anything
            raise ValueError(f"{node_title(node)}: cannot be evaluated: {error}") from error

    def call(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> _Call:
        """Checks that a node satisfies its operator's rules and works on numbers."""
        if node.op_type not in _HOLDS_TENSOR:
            self._model.check(node)
        attributes = {
            attribute.name: self._helper.get_attribute_value(attribute)
            for attribute in node.attribute
            if attribute.type != attribute.TENSOR
        }
        call = _Call(inputs, attributes, len(node.output))
        texts = [array for array in call.given if array.dtype.kind in _TEXT]
        if texts or attributes.get("to") == self._onnx.TensorProto.STRING:
            raise ValueError("got strings, wanted numbers")
        self._check_types(node, inputs)
        return call

    def _check_types(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> None:
        """Raises unless the combination of the inputs' types is one that the operator takes.

        The reference implementation computes with NumPy, which accepts many others.
        """
        schema = import_extra("onnx.defs", "onnx").get_schema(node.op_type, self._opset, "")
        bound: dict[
            str, tuple[str, str]
        ] = {}  # by type variable: its first input and that input's type
        for number, array in enumerate(inputs):
            if array is None:
                continue
            formal = schema.inputs[min(number, len(schema.inputs) - 1)]
            data_type = self._helper.np_dtype_to_tensor_dtype(array.dtype)
            name = self._onnx.TensorProto.DataType.Name(data_type).lower()
            if f"tensor({name})" not in formal.types:
                raise ValueError(f"{formal.name}: got elements of type {name}")
            first, other = bound.setdefault(formal.type_str, (formal.name, name))
            if other != name:
                raise ValueError(
                    f"{formal.name}: got elements of type {name}, but {first} has {other}"
                )

    def _constant(self, node: onnx.NodeProto) -> Array:
        """The value of a Constant node; its tensor may have external data, like any other."""
        (attribute,) = node.attribute
        if attribute.name == "value":
            return self.read(attribute.t, node.output[0])
        dtype = {
            "value_float": np.float32,
            "value_floats": np.float32,
            "value_int": np.int64,
            "value_ints": np.int64,
        }.get(attribute.name)
        if dtype is None:
            raise ValueError(f"got {attribute.name}, wanted a dense tensor or numbers")
        array: Array = np.array(self._helper.get_attribute_value(attribute), dtype)
        self._stored += array.size
        return array

    def fill(self, node: onnx.NodeProto) -> Array:
        """The element () that a ConstantOfShape node repeats."""
        for attribute in node.attribute:
            if attribute.name == "value":
                return self.read(attribute.t, node.output[0]).reshape(())
        return np.zeros((), np.float32)

    def _evaluate(self, node: onnx.NodeProto, call: _Call) -> list[Array]:
        """The outputs computed by the reference implementation."""
        opset, axes = self._opset, call.attributes.get("axes")
        names = [f"input{i}" if array is not None else "" for i, array in enumerate(call.inputs)]
        feeds = {name: array for name, array in zip(names, call.inputs) if array is not None}
        own = type(node)()
        own.CopyFrom(node)
        own.domain = ""
        # The reference implementation lacks the first of these in older opsets, and applies the
        # others to one axis after another.
        if node.op_type == "DequantizeLinear":
            opset = max(opset, 19)
        elif node.op_type in ("Squeeze", "Unsqueeze") and axes is not None:
            opset = max(opset, 13)
            del own.attribute[:]
            names.append("axes")
            feeds["axes"] = np.array(axes, np.int64)
        del own.input[:], own.output[:]
        own.input.extend(names)
        outputs = [f"output{i}" for i in range(len(node.output))]
        own.output.extend(outputs)

        def described(names: Any) -> list[Any]:
            undefined = self._onnx.TensorProto.UNDEFINED
            return [self._helper.make_tensor_value_info(name, undefined, None) for name in names]

        graph = self._helper.make_graph([own], "constant", described(feeds), described(outputs))
        model = self._helper.make_model(graph, opset_imports=[self._helper.make_opsetid("", opset)])
        reference = import_extra("onnx.reference", "onnx")
        results = reference.ReferenceEvaluator(model).run(None, feeds)
        return [np.asarray(result) for result in results]


def _bytes_of(elements: int, bits: int) -> int:
    return -(-elements * bits // 8)


def _check_held(tensor: Any, elements: int, bits: int) -> None:
    """Raises unless the data have the length that the dimensions require.

    Needed only where onnx would pad or truncate them: for elements that share a byte.
    """
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
    elif bits in (2, 4):
        held = len(tensor.int32_data)  # one byte in each
    else:
        return
    if held != _bytes_of(elements, bits):
        raise ValueError(
            f"got {held} bytes, wanted {_bytes_of(elements, bits)} for dimensions "
            f"{list(tensor.dims)}"
        )


def _check_one_field(tensor: Any) -> None:
    """Raises if several fields of a tensor hold data."""
    held = [name for name in _DATA_FIELDS if len(getattr(tensor, name)) > 0]
    if tensor.HasField("raw_data"):
        held.append("raw_data")
    if len(tensor.external_data) > 0:
        held.append("external_data")
    if len(held) > 1:
        raise ValueError(f"got data in {' and '.join(held)}, wanted only one of these fields")
