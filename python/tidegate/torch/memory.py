"""Results of the core in memory that PyTorch allocated.

So their storages are resizable, which those of `torch.from_numpy` are not; `tidegate.tensors` tells
how inputs are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tidegate.checks import Array

# What the kernels compute on.
DTYPES: dict[Any, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


def tensor_of(array: Array) -> torch.Tensor:
    """The tensor whose memory a result of the core is, one that `ALLOCATORS` made."""
    tensor: torch.Tensor = array.base
    return tensor


# For each dtype of the kernels, the function that makes a result's tensor of a shape. `torch.empty`
# would ask for the default device, and takes twice the time.
ALLOCATORS = {dtype: torch.empty(0, dtype=dtype, device="cpu").new_empty for dtype in DTYPES}
