"""Live input: what Python adds to the C++ stream, which does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate import _core
from tidegate.checks import check_integer

if TYPE_CHECKING:
    from tidegate.layers import RecurrentLayer


class Stream(_core.Stream):
    """A batch of live sequences whose states stay inside, made by `layer.stream(batch)`.

    However the steps come, one at a time or in chunks, they give the bits of one whole call, the
    sign and payload of a NaN excepted. New parameters of the layer are taken at the next step.
    `step(x, out=y)` allocates nothing. A stream serves one thread at a time; streams of one layer
    are independent of each other.

    `batch_first` has no say here: a step is (batch, I), a chunk (T, batch, I). Pickled or copied, a
    stream takes its state along; `copy.copy` shares the layer, `copy.deepcopy` and a pickle hold a
    layer of their own.

    Args:
        layer: a recurrent layer with one direction, which is not `reverse`.
        batch: how many sequences.

    Raises:
        TypeError: layer is no recurrent layer, or batch is no integer.
        ValueError: the layer is bidirectional or reverse (it would need the future), or batch is
            negative.
    """

    def __init__(self, layer: RecurrentLayer[Any, Any], batch: int = 1) -> None:
        model = getattr(layer, "_model", None)
        if not isinstance(model, _core.Model):
            raise TypeError(f"layer: got {type(layer).__name__}, wanted an LSTM, a GRU or an MGU")
        super().__init__(model, check_integer("batch", batch))
        self._layer = layer

    @property
    def layer(self) -> RecurrentLayer[Any, Any]:
        """The layer whose parameters the stream uses."""
        return self._layer

    @property
    def dtype(self) -> np.dtype[Any]:
        """The layer's."""
        return self._layer.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layer, self.batch), self.state

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"Stream({self._layer!r}, batch={self.batch})"
