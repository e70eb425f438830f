"""Named arrays over one flat vector: a layer's parameters and their gradients.

This module does not know layers: the layer decides what the vector means (names, shapes, offsets),
and the store decides where it lives (in C++ for this package's layers, in NumPy for your own).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np

from tidegate import _core
from tidegate.checks import Array, check_array, check_mapping

Specs: TypeAlias = Sequence[tuple[str, tuple[int, ...], int]]


class Store(Protocol):
    """The memory of a layer's parameters."""

    @property
    def flat(self) -> Array:
        """A live, read-only, contiguous 1-D view of all parameters, in the layer's dtype."""

    def write(self, offset: int, values: Array) -> None:
        """Copies contiguous 1-D `values` of the same dtype in, and updates what depends on them."""


class ArrayStore:
    """Parameters in NumPy memory that the store owns.

    Args:
        flat: the initial values, a 1-D array; copied.
    """

    def __init__(self, flat: Array) -> None:
        self._flat = np.array(flat, order="C")

    @property
    def flat(self) -> Array:
        """All parameters, as a live read-only view."""
        view = self._flat.view()
        view.flags.writeable = False
        return view

    @property
    def memory(self) -> Array:
        """All parameters, as a writable view."""
        return self._flat

    def write(self, offset: int, values: Array) -> None:
        """Copies `values` in."""
        self._flat[offset : offset + values.size] = values


def _joined(arrays: Mapping[str, Array]) -> tuple[Specs, Array]:
    """The layout of `arrays`, one after the other, and a vector with copies of their values.

    Raises:
        TypeError: `arrays` is not a mapping, a name is not a str, or the arrays are not all float32
            or all float64 ndarrays.
        ValueError: `arrays` is empty.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays: got {type(arrays).__name__}, wanted a mapping of names to arrays")
    given = dict(arrays)
    if not given:
        raise ValueError("arrays: got none, wanted at least one")
    dtype: np.dtype[Any] | None = None
    specs, offset = [], 0
    for name, array in given.items():
        if not isinstance(name, str):
            raise TypeError(f"arrays: got the name {name!r}, wanted a str")
        check_array(name, array, dtype=dtype)
        dtype = array.dtype
        specs.append((name, array.shape, offset))
        offset += array.size
    return specs, np.concatenate([array.reshape(-1) for array in given.values()])


class _NamedArrays(Mapping[str, Array]):
    """Base class of Params and Gradients: names -> views of one flat vector; equal if identical."""

    # Mapping's own __eq__ would compare arrays with ==, whose truth value is ambiguous.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(self, specs: Specs) -> None:
        self._specs = {name: (tuple(shape), offset) for name, shape, offset in specs}
        self._size = sum(math.prod(shape) for shape, _ in self._specs.values())

    def _vector(self) -> Array:
        raise NotImplementedError

    def _layout(self) -> Specs:
        return [(name, shape, offset) for name, (shape, offset) in self._specs.items()]

    def _find(self, name: str) -> tuple[tuple[int, ...], int]:
        try:
            return self._specs[name]
        except (KeyError, TypeError):
            raise KeyError(f"no parameter {name!r}; there are {', '.join(self._specs)}") from None

    def __getitem__(self, name: str) -> Array:
        return self._part(name, self._vector())

    def _part(self, name: str, vector: Array) -> Array:
        """The array of this name in a flat vector."""
        shape, offset = self._find(name)
        return vector[offset : offset + math.prod(shape)].reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __repr__(self) -> str:
        lines = [f"  {name}: {shape}" for name, (shape, _) in self._specs.items()]
        head = f"{type(self).__name__}({self._size} x {self.dtype}"
        return "\n".join([head, *lines]) + "\n)" if lines else head + ")"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of every array."""
        return self._vector().dtype

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names -> shapes, in the order of the flat vector."""
        return {name: shape for name, (shape, _) in self._specs.items()}


class Params(_NamedArrays):
    """A layer's parameters: names -> read-only live views, over one flat vector.

    `params[name]` reads, `params[name] = array` writes a checked copy; `params.flat` and
    `params.update()` do so for all of them at once. Existing read-only views show the new values.
    Two Params are equal only if they are the same object.

    `Params.from_arrays` makes the parameters of your own layer, for the optimisers to train.

    Args:
        specs: (name, shape, offset into the flat vector) of each parameter, in the order of the
            vector.
        store: the memory that holds the vector.
    """

    def __init__(self, specs: Specs, store: Store) -> None:
        super().__init__(specs)
        self._store = store

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Params:
        """Parameters with these names, shapes and values, in memory of their own.

        Args:
            arrays: all of float32 or all of float64, of any shapes; copied.

        Raises:
            TypeError: `arrays` is not a mapping of names to such arrays.
            ValueError: `arrays` is empty.
        """
        specs, flat = _joined(arrays)
        return cls(specs, ArrayStore(flat))

    def _vector(self) -> Array:
        return self._store.flat

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of every array."""
        store = self._store  # in low precision, `flat` is made at each access
        return store.dtype if isinstance(store, _core.Parameters) else store.flat.dtype

    def __setitem__(self, name: str, value: Array) -> None:
        """Copies `value` in.

        Raises:
            KeyError: no parameter has this name.
            TypeError: `value` is not an ndarray of the layer's dtype.
            ValueError: its shape differs.
        """
        shape, offset = self._find(name)
        check_array(name, value, shape=shape, dtype=self.dtype)
        self._store.write(offset, self._detached(value))

    @property
    def flat(self) -> Array:
        """All parameters as one contiguous 1-D vector: a read-only live view; assigning copies in.

        Raises:
            TypeError: the assigned value is not an ndarray of the layer's dtype.
            ValueError: its shape is not (size,).
        """
        return self._store.flat

    @flat.setter
    def flat(self, value: Array) -> None:
        check_array("flat", value, shape=(self._size,), dtype=self.dtype)
        self._store.write(0, self._detached(value))

    @contextmanager
    def update(self) -> Iterator[Array]:
        """`with params.update() as flat:` yields a copy of the flat vector, to change in place.

        The copy is written back on leaving; if the body raises, it is dropped and nothing changes.
        Writing to it later has no effect, and neither has rebinding its name (`flat = flat * 0.9`).
        """
        flat = self._store.flat.copy()
        yield flat
        self._store.write(0, flat)

    def _step_by(self, step: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Calls step(parameters, *args, **kwargs), an optimiser's step in the core, in place."""
        store = self._store
        if isinstance(store, ArrayStore):
            step(store.memory, *args, **kwargs)
        elif isinstance(store, _core.Parameters):
            step(store, *args, **kwargs)
        else:
            with self.update() as flat:
                step(flat, *args, **kwargs)

    def state_dict(self) -> dict[str, Array]:
        """Names -> copies, as `numpy.savez(file, **params.state_dict())` can save them."""
        vector = self._vector()  # in low precision, made at each access
        return {name: self._part(name, vector).copy() for name in self}

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Replaces all parameters by copies of the arrays with these names. All or nothing.

        Args:
            state_dict: exactly this layer's names, with its shapes and its dtype; an open `.npz`
                file will do.

        Raises:
            TypeError: `state_dict` is not a mapping, or nothing but dtypes is wrong.
            ValueError: keys are missing, surplus or of another shape. One message names every
                problem.
        """
        wanted = {name: (shape, self.dtype) for name, shape in self.shapes.items()}
        given = check_mapping(
            "state_dict",
            state_dict,
            wanted,
            for_tensors="tidegate.convert.from_torch makes a layer of PyTorch's tensors",
        )
        flat = np.empty(self._size, self.dtype)
        for name, (shape, offset) in self._specs.items():
            flat[offset : offset + math.prod(shape)] = given[name].reshape(-1)
        self._store.write(0, flat)

    def _detached(self, value: Array) -> Array:
        """`value` as a contiguous vector that shares no memory with the store."""
        if np.may_share_memory(value, self._store.flat):
            value = value.copy()
        return np.ascontiguousarray(value).reshape(-1)


class Gradients(_NamedArrays):
    """Gradients for a layer's parameters: names -> writable views over one flat vector.

    Names, shapes and order are the layer's own, so `grads.flat` corresponds to `params.flat`. To
    accumulate over several tapes: `total.flat += grads.flat`. Two Gradients are equal only if they
    are the same object.

    Args:
        specs: as for Params.
        flat: the vector itself, not copied: 1-D, contiguous, writable.
    """

    def __init__(self, specs: Specs, flat: Array) -> None:
        super().__init__(specs)
        if flat.shape != (self._size,) or not (flat.flags.c_contiguous and flat.flags.writeable):
            raise ValueError(
                f"flat: got shape {flat.shape}, contiguous={flat.flags.c_contiguous}, "
                f"writeable={flat.flags.writeable}, wanted a contiguous, writable vector of "
                f"{self._size}"
            )
        self._flat = flat

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Gradients:
        """Gradients with these names, shapes and values, in memory of their own.

        Args:
            arrays: names and shapes of the parameters, in the same order; all of float32 or all of
                float64; copied.

        Raises:
            TypeError: `arrays` is not a mapping of names to such arrays.
            ValueError: `arrays` is empty.
        """
        return cls(*_joined(arrays))

    @classmethod
    def zeros_like(cls, params: Params | Gradients) -> Gradients:
        """Zeros with the names, shapes and dtype of `params`, to add gradients to.

        Raises:
            TypeError: `params` is neither Params nor Gradients.
        """
        if not isinstance(params, (Params, Gradients)):
            raise TypeError(f"params: got {type(params).__name__}, wanted Params or Gradients")
        return cls(params._layout(), np.zeros(params.flat.shape, params.dtype))

    def _vector(self) -> Array:
        return self._flat

    @property
    def flat(self) -> Array:
        """All gradients as one contiguous 1-D vector: writable and live; assigning copies in.

        Raises:
            TypeError: the assigned value is not an ndarray of the gradients' dtype.
            ValueError: its shape is not (size,).
        """
        return self._flat

    @flat.setter
    def flat(self, value: Array) -> None:
        check_array("flat", value, shape=(self._size,), dtype=self.dtype)
        self._flat[...] = value
