"""Fixtures of every test: instruction sets, random numbers, settings that stay as they were."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import tidegate as tg
from tidegate import _core


def _settings() -> tuple[str, int]:
    return _core.isa(), tg.get_num_threads()


@pytest.fixture(scope="session", autouse=True)
def _session_leaves_settings_alone() -> Iterator[None]:
    """A test swaps back what it swaps for the process, or later ones test another thing."""
    before = _settings()
    yield
    assert _settings() == before


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every instruction set of this build that the machine can run."""
    before = _core.isa()
    _core.select_isa(request.param)
    yield request.param
    _core.select_isa(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)
