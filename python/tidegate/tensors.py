"""PyTorch tensors' memory as arrays, without importing PyTorch.

`Tensor.numpy` and `torch.from_numpy` mark a storage as not resizable, which breaks FSDP and growing
`out=` tensors, and they read a freed or shortened storage beyond its end. So memory is accessed by
address here, and its extent is checked.
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

# The dtypes, common to NumPy and PyTorch, that are read here.
_NAMES = (
    *("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
)


@functools.cache
def _dtypes() -> Mapping[Any, np.dtype[Any]]:
    torch = sys.modules["torch"]
    # The oldest supported PyTorch does not have the wider unsigned integers.
    return {getattr(torch, name): np.dtype(name) for name in _NAMES if hasattr(torch, name)}


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether it is a torch.Tensor, which it cannot be if PyTorch is not imported yet."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def array_of(name: str, tensor: torch.Tensor) -> Array:
    """A dense CPU tensor's memory as an array of its shape and strides.

    The result is a new array if the memory does not hold the values: for a negative view, or a
    tensor of zeros without memory.

    Args:
        name: the tensor's name in messages.
        tensor: a tensor with a dtype that NumPy has and that is not complex.

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
    """As `array_of`, for any tensor; raises if the tensor has no such memory.

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
    """Checks that the storage of a dense CPU tensor is large enough; ignores other tensors.

    Raises:
        ValueError: the storage is too small.
    """
    torch: Any = sys.modules["torch"]
    if (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.layout is torch.strided
    ):
        _memory(name, tensor, np.dtype((np.void, tensor.element_size())))


def from_bfloat16(bits: Array) -> Array:
    """A new float32 array of bfloat16 numbers, which are given as their bits in uint16."""
    values: Array = (bits.astype(np.uint32) << 16).view(np.float32)
    return values


def _memory(name: str, tensor: torch.Tensor, dtype: np.dtype[Any]) -> Array:
    address = tensor.data_ptr()
    if address == 0 and tensor._is_zerotensor():
        return np.zeros(tensor.shape, dtype)
    room = tensor.untyped_storage().nbytes() - tensor.storage_offset() * dtype.itemsize
    return _core.array_at(name, dtype, address, max(0, room), tensor.shape, tensor.stride(), tensor)
