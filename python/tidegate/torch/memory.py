"""Results of the core in memory that PyTorch allocated.

Their storages are therefore resizable, unlike those of `torch.from_numpy`. `tidegate.tensors` reads
the inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tidegate.checks import Array

# The dtypes of the kernels.
DTYPES: dict[Any, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


def tensor_of(array: Array) -> torch.Tensor:
    """The tensor whose memory `array`, a result made by `ALLOCATORS`, uses."""
    tensor: torch.Tensor = array.base
    return tensor


# For each dtype of the kernels, the function that makes a result's tensor of a given shape.
# `torch.empty` would look up the default device, and takes twice the time.
ALLOCATORS = {dtype: torch.empty(0, dtype=dtype, device="cpu").new_empty for dtype in DTYPES}
