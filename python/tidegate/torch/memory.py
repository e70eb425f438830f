"""Arrays on the memory of tensors.

`Tensor.numpy` and `torch.from_numpy` mark a storage as not resizable; FSDP and growing `out=`
tensors need storages that are. So inputs are handed over by address, and results are written into
tensors that PyTorch has allocated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tidegate import _core
from tidegate.checks import Array

# What the kernels compute on.
DTYPES: dict[Any, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
_ARRAY_DTYPES = {
    **DTYPES,
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
}


def array_of(name: str, tensor: torch.Tensor) -> Array:
    """A dense CPU tensor's memory as an array of its shape and strides.

    Args:
        name: the tensor's name in messages.
        tensor: float32, float64, int32 or int64.

    Raises:
        TypeError: another dtype.
        ValueError: the storage ends before the tensor's last element.
    """
    dtype = _ARRAY_DTYPES.get(tensor.dtype)
    if dtype is None:
        raise TypeError(f"{name}: got {tensor.dtype}, wanted float32, float64, int32 or int64")
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    room = tensor.untyped_storage().nbytes() - tensor.storage_offset() * dtype.itemsize
    return _core.array_at(
        name, dtype, tensor.data_ptr(), room, tensor.shape, tensor.stride(), tensor
    )


def tensor_of(array: Array) -> torch.Tensor:
    """The tensor whose memory a result of the core is, one that `ALLOCATORS` made."""
    tensor: torch.Tensor = array.base
    return tensor


# For each dtype of the kernels, the function that makes a result's tensor of a shape. `torch.empty`
# would ask for the default device, and takes twice the time.
ALLOCATORS = {dtype: torch.empty(0, dtype=dtype, device="cpu").new_empty for dtype in DTYPES}
