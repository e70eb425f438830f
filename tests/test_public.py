"""What the package shows: every public name, documented, and no other."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

import tidegate as tg

MODULES = [tg, tg.convert, tg.losses, tg.optim]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_dir_shows_the_public_names_and_nothing_else(module: ModuleType) -> None:
    shown = dir(module)
    assert len(set(shown)) == len(shown)
    assert set(shown) - {"__version__"} == set(module.__all__)
    assert list(module.__all__) == sorted(module.__all__, key=_as_ruff_sorts)
    for name in module.__all__:
        assert not name.startswith("_")
        value = getattr(module, name)
        assert inspect.getdoc(value), f"{module.__name__}.{name} has no documentation"


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions and modules."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("module", [tg.losses, tg.optim], ids=lambda module: module.__name__)
def test_what_a_module_defines_without_an_underscore_is_public(module: ModuleType) -> None:
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    assert defined <= set(module.__all__)


def test_what_dir_leaves_out_can_still_be_imported() -> None:
    names: dict[str, object] = {}
    exec("from tidegate import *; from tidegate import layers, reference", names)
    assert names["LSTM"] is tg.LSTM
    assert names["convert"] is tg.convert
    assert isinstance(names["reference"], ModuleType)
