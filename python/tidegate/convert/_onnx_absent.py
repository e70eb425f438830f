"""Explains why an ONNX model has no LSTM or GRU node: what it has instead, and what to do."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tidegate.convert._onnx_graph import (
    DOMAINS,
    Model,
    Scope,
    node_label,
    node_title,
    recurrent_operator,
)

if TYPE_CHECKING:
    import onnx

_QUANTISED = (
    "is quantised, and not one of the quantised operators that can be converted "
    "(com.microsoft.DynamicQuantizeLSTM): convert the float model that it was made from"
)
_RNN = "is a plain recurrent network without gates, a cell that Tidegate does not have"
_PYTORCH = "is PyTorch's own operator: export the module again, to ONNX operators"

# A cell made of separate operators has gates that multiply the results of these, reached through
# operators that move their first input, and through differences: 1 - z, h - n.
_SIGMOIDS = ("Sigmoid", "HardSigmoid")
_MOVES = ("Split", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Identity", "Gather")
_MATRIX_PRODUCTS = (
    *("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"),
    *("FusedMatMul", "FusedGemm", "MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
)
_FARTHEST = 4
_LISTED = 5


def why(model: Model) -> str:
    """What a model without LSTM and GRU nodes has instead, as the end of a sentence."""
    others = [f"the {title} {reason}" for _, title, reason in _others(model)]
    if others:
        more = f"; and {len(others) - _LISTED} more" if len(others) > _LISTED else ""
        return "; ".join(others[:_LISTED]) + more
    cells = _cells(model)
    if not cells:
        return "it has no other operator of a gated recurrent network either"
    places = "; ".join(
        f"{count} in {'/'.join(path) or 'the main graph'} (the first: {title})"
        for path, (count, title) in list(cells.items())[:_LISTED]
    )
    return (
        "but matrix products, and products of a sigmoid and a tanh, as in cells that were unrolled "
        f"or written by hand: {places}. Such cells are not recognised: pass their weights to "
        "onnx_lstm or onnx_gru, or export a module with a whole LSTM or GRU layer instead of a "
        "cell and a loop over time (tf2onnx writes such nodes only for layers without masking)"
    )


def why_unknown(model: Model, name: str) -> str:
    """Why a node with this name cannot be converted, as the end of a message; else ""."""
    for label, title, reason in _others(model):
        if label == name:
            return f", but that {title} {reason}"
    return ""


def _others(model: Model) -> Iterator[tuple[str, str, str]]:
    """The label and title of each other recurrent operator, and the reason to refuse it."""
    for node, _ in model.nodes():
        reason = _other(node)
        if reason is not None:
            yield node_label(node), node_title(node), reason


def _other(node: onnx.NodeProto) -> str | None:
    own = node.domain in DOMAINS
    if recurrent_operator(node):
        return None
    if own and node.op_type == "RNN":
        return _RNN
    if node.op_type == "ATen" and any(a.s in (b"lstm", b"gru") for a in node.attribute):
        return _PYTORCH
    if not ("LSTM" in node.op_type or "GRU" in node.op_type):
        return None
    if "Quant" in node.op_type or node.op_type.startswith("Q"):
        return _QUANTISED
    return (
        f"is not an ONNX operator, but one of the domain {node.domain!r}, which cannot be converted"
    )


def _cells(model: Model) -> dict[tuple[str, ...], tuple[int, str]]:
    """Graphs that look like hand-written cells: path -> (number of gates, title of the first)."""
    types: dict[Scope, set[str]] = collections.defaultdict(set)
    gates: dict[Scope, list[str]] = collections.defaultdict(list)
    for node, scope in model.nodes():
        types[scope].add(node.op_type)
        if node.op_type == "Mul" and len(node.input) == 2 and _is_gate(node, scope):
            gates[scope].append(node_title(node))
    return {
        scope.path: (len(titles), titles[0])
        for scope, titles in gates.items()
        if types[scope].intersection(_MATRIX_PRODUCTS)
    }


def _is_gate(node: onnx.NodeProto, scope: Scope) -> bool:
    """Whether the node multiplies a sigmoid by a tanh."""
    a, b = (_sources(name, scope) for name in node.input)
    return bool(
        (a.intersection(_SIGMOIDS) and "Tanh" in b) or (b.intersection(_SIGMOIDS) and "Tanh" in a)
    )


def _sources(name: str, scope: Scope, distance: int = 0) -> set[str]:
    """The operators that compute a name, ignoring those that only move values."""
    owner = scope.owner(name)
    if owner is None or name not in owner.makers or distance > _FARTHEST:
        return set()
    node, _ = owner.makers[name]
    operands = {"Sub": 2, **dict.fromkeys(_MOVES, 1)}.get(node.op_type)
    if operands is None:
        return {node.op_type}
    inputs = node.input[:operands]
    return set().union(*(_sources(needed, owner, distance + 1) for needed in inputs))
