"""Fixtures of every test: instruction sets, random numbers, settings left alone, builds.

TIDEGATE_BUILD_DIRS names CMake build directories, separated like PATH, whose kernel objects are
looked into: one for this machine, then any cross builds. Without it, one is built, in Release mode.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import tidegate as tg
from isas import exact_isas
from programs import cmake_build, compiler
from tidegate import _core


def _settings() -> tuple[str, int]:
    return _core.isa(), tg.get_num_threads()


@pytest.fixture(scope="session", autouse=True)
def _session_leaves_settings_alone() -> Iterator[None]:
    """A test swaps back what it swaps for the process, or later ones test another thing."""
    before = _settings()
    yield
    assert _settings() == before


@contextmanager
def selected(isa: str) -> Iterator[str]:
    before = _core.isa()
    _core.select_isa(isa)
    try:
        yield isa
    finally:
        _core.select_isa(before)


@pytest.fixture(params=exact_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every instruction set of this build that the machine can run.

    Those that extend another one by instructions for low precision are in `any_isa` alone.
    """
    with selected(request.param) as name:
        yield name


@pytest.fixture(params=_core.available_isas())
def any_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `isa`, and on those that differ from another one in low precision alone."""
    with selected(request.param) as name:
        yield name


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


@pytest.fixture(scope="session")
def build_directories(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    given = os.environ.get("TIDEGATE_BUILD_DIRS")
    if given:
        return [Path(directory) for directory in given.split(os.pathsep)]
    compiler()
    root = Path(__file__).resolve().parent.parent
    directory = tmp_path_factory.mktemp("kernels")
    return [cmake_build(root, directory, "-DCMAKE_BUILD_TYPE=Release", "-DTIDEGATE_TESTS=OFF")]
