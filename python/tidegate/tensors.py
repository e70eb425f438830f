"""The memory of PyTorch's tensors as arrays. PyTorch is not imported here.

`Tensor.numpy` and `torch.from_numpy` mark a storage as not resizable, which FSDP and growing `out=`
tensors rely on, and read a storage that was freed or shortened beyond its end. So memory is taken
by address, and its extent is checked.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from tidegate import _core

if TYPE_CHECKING:
    import torch

    from tidegate.checks import Array

# The dtypes that NumPy and PyTorch have in common and that are read here.
_NAMES = (
    *("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
)


@functools.cache
def _dtypes() -> Mapping[Any, np.dtype[Any]]:
    torch = sys.modules["torch"]
    # The wider unsigned integers are newer than the oldest PyTorch that is supported.
    return {getattr(torch, name): np.dtype(name) for name in _NAMES if hasattr(torch, name)}


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether it is a torch.Tensor. If PyTorch is not imported yet, nothing can be one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def array_of(name: str, tensor: torch.Tensor) -> Array:
    """A dense CPU tensor's memory as an array of its shape and strides.

    It is a new array if the memory does not hold the values: those of a negative view, or of a
    tensor of zeros without memory.

    Args:
        name: the tensor's name in messages.
        tensor: of a dtype that NumPy has, without complex ones.

    Raises:
        TypeError: another dtype.
        ValueError: the storage ends before the tensor's last element.
    """
    dtype = _dtypes().get(tensor.dtype)
    if dtype is None:
        raise TypeError(f"{name}: got {tensor.dtype}, wanted a dtype of NumPy that is not complex")
    array = _memory(name, tensor, dtype)
    return -array if tensor.is_neg() else array


def values_of(name: str, tensor: torch.Tensor) -> Array:
    """As `array_of`, of any tensor: what has no such memory is refused.

    bfloat16 becomes float32, which holds its values exactly.

    Raises:
        TypeError: another dtype, device or layout, or a subclass without memory of its own.
        ValueError: as `array_of`.
    """
    torch = sys.modules["torch"]
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(f"{name}: got a {type(tensor).__name__}, wanted a tensor of plain values")
    if not tensor.is_cpu or tensor.layout is not torch.strided or tensor.is_quantized:
        raise TypeError(
            f"{name}: got a {tensor.dtype} tensor ({tensor.layout}, on {tensor.device}), wanted a "
            "dense one on the CPU"
        )
    if tensor.dtype is not torch.bfloat16:
        return array_of(name, tensor)
    array = from_bfloat16(_memory(name, tensor, np.dtype(np.uint16)))
    return -array if tensor.is_neg() else array


def check_storage(name: str, tensor: torch.Tensor) -> None:
    """Raises if the storage of a dense CPU tensor is too small for it; others are not looked at.

    Raises:
        ValueError: it is.
    """
    torch: Any = sys.modules["torch"]
    if (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.layout is torch.strided
    ):
        _memory(name, tensor, np.dtype((np.void, tensor.element_size())))


def from_bfloat16(bits: Array) -> Array:
    """Numbers of bfloat16, given as their bits in uint16: a new float32 array of this shape."""
    values: Array = (bits.astype(np.uint32) << 16).view(np.float32)
    return values


def _memory(name: str, tensor: torch.Tensor, dtype: np.dtype[Any]) -> Array:
    address = tensor.data_ptr()
    if address == 0 and tensor._is_zerotensor():
        return np.zeros(tensor.shape, dtype)
    room = tensor.untyped_storage().nbytes() - tensor.storage_offset() * dtype.itemsize
    return _core.array_at(name, dtype, address, max(0, room), tensor.shape, tensor.stride(), tensor)
