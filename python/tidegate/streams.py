"""Live input: the Python side of the C++ stream, which does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate import _core
from tidegate.checks import check_integer

if TYPE_CHECKING:
    from tidegate.layers import RecurrentLayer


class Stream(_core.Stream):
    """A batch of live sequences, whose states are kept inside; made by `layer.stream(batch)`.

    Steps taken one at a time or in chunks have the same bits as one whole call, except for the sign
    and payload of a NaN. New parameters of the layer are used from the next step on.
    `step(x, out=y)` allocates nothing. A stream serves one thread at a time; streams of one layer
    are independent of each other.

    `batch_first` has no effect here: a step is (batch, I), a chunk (T, batch, I). A pickled or
    copied stream includes its state; `copy.copy` shares the layer, `copy.deepcopy` and a pickle
    have a layer of their own.

    Args:
        layer: a recurrent layer with one direction, which is not `reverse`.
        batch: the number of sequences.

    Raises:
        TypeError: layer is not a recurrent layer, or batch is not an integer.
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
        """The layer's dtype."""
        return self._layer.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layer, self.batch), self.state

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"Stream({self._layer!r}, batch={self.batch})"
