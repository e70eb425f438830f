"""LSTM, GRU and MGU on CPUs: fused C++ kernels, forward and backward, on NumPy arrays.

    import numpy as np, tidegate as tg

    gru = tg.GRU(12, 64, bidirectional=True, seed=0)
    y, h_n = gru(np.zeros((100, 8, 12), np.float32))

Names, shapes, argument order and defaults are those of `torch.nn.LSTM` and `torch.nn.GRU`.

Layers: `LSTM`, `GRU`, `MGU`, and live input through `Stream`. Training: their `forward` and
`backward`, `Linear`, `Dropout`, `losses`, `optim`, `lr_scheduler`. Files: `save` and `load`;
`TensorFile` reads any safetensors file. Weights from PyTorch, Keras and ONNX, and back: `convert`.
PyTorch modules on these kernels: `tidegate.torch`, which has to be imported explicitly. Settings:
`set_num_threads`, `get_num_threads`, `num_threads`; what this machine is: `show_config`,
`fastest_bfloat16`. The reference that all results are checked against: `tidegate.reference`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tidegate import losses, lr_scheduler, optim
from tidegate._core import Tape, version
from tidegate.files import TensorFile, load, save
from tidegate.layers import GRU, LSTM, MGU, Grads
from tidegate.linear import Dropout, Linear
from tidegate.params import Gradients, Params
from tidegate.settings import (
    config,
    fastest_bfloat16,
    get_num_threads,
    num_threads,
    set_num_threads,
    show_config,
)
from tidegate.streams import Stream

if TYPE_CHECKING:
    from tidegate import convert

__version__ = version()

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "Dropout",
    "Gradients",
    "Grads",
    "Linear",
    "Params",
    "Stream",
    "Tape",
    "TensorFile",
    "config",
    "convert",
    "fastest_bfloat16",
    "get_num_threads",
    "load",
    "losses",
    "lr_scheduler",
    "num_threads",
    "optim",
    "save",
    "set_num_threads",
    "show_config",
]


def __getattr__(name: str) -> Any:
    """Imports `convert` on first access, which keeps `import tidegate` fast."""
    if name == "convert":
        return import_module("tidegate.convert")
    raise AttributeError(f"module 'tidegate' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, including `convert`, without the modules that define them."""
    return [*__all__, "__version__"]
