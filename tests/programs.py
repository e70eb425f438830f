"""Other programs, as tests run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest


def run(*command: str | Path) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def program(name: str) -> str:
    """A program's path: beside this Python, where the `test` extra puts it, or on PATH."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def cmake_build(sources: Path, directory: Path, *options: str) -> Path:
    """Configures and builds a CMake project with Ninja; returns `directory`."""
    cmake = program("cmake")
    generator = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={program('ninja')}")
    run(cmake, "-S", sources, "-B", directory, *generator, *options)
    run(cmake, "--build", directory)
    return directory


def cached(directory: Path, name: str) -> str:
    """The value of a variable in a build directory's CMakeCache.txt."""
    match = re.search(rf"^{name}:\w+=(.*)$", (directory / "CMakeCache.txt").read_text(), re.M)
    assert match, name
    return match[1]


def compiler() -> str:
    return program(os.environ.get("CXX", "c++"))
