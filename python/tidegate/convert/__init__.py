"""Conversion of weights, exactly: from PyTorch, Keras and ONNX to layers, and back.

    layer = tidegate.convert.from_torch(module)              # or a state_dict, a file
    layer = tidegate.convert.from_keras("model.keras", "encoder")
    layer = tidegate.convert.from_onnx("model.onnx", "encoder/LSTM")

Quantised models of PyTorch and ONNX give layers in int8 with the same integers and scales;
`precision=` quantises on the way. What a layer cannot do exactly is refused with an error that
names it. A framework is imported only by the calls that need it; arrays and Keras's files need
none: a PyTorch state_dict of ndarrays, `keras_lstm`, `keras_gru`, `onnx_lstm`, `onnx_gru`.
"""

from tidegate.convert._keras import Merged, from_keras, keras_gru, keras_lengths, keras_lstm
from tidegate.convert._onnx import OnnxNode, from_onnx, onnx_nodes
from tidegate.convert._onnx_operators import onnx_gru, onnx_lstm
from tidegate.convert._onnx_write import to_onnx
from tidegate.convert._torch import from_torch, to_torch

__all__ = [
    "Merged",
    "OnnxNode",
    "from_keras",
    "from_onnx",
    "from_torch",
    "keras_gru",
    "keras_lengths",
    "keras_lstm",
    "onnx_gru",
    "onnx_lstm",
    "onnx_nodes",
    "to_onnx",
    "to_torch",
]


def __dir__() -> list[str]:
    """The public names, without the modules that define them."""
    return list(__all__)
