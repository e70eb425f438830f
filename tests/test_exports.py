"""The names that the libraries export, whichever way the C++ library is linked.

A process may hold several copies of the C++ library (NumPy's OpenBLAS brings one along). Symbols of
one that the dynamic linker binds to another make a crash in the first call: nothing of it may be
exported, and locales, the part that is shared by address, are not used at all.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tidegate as tg
from programs import cached, cmake_build, compiler, program, run
from tidegate import _core

ROOT = Path(__file__).resolve().parent.parent
PUBLIC_HEADERS = sorted((ROOT / "csrc" / "include" / "tidegate").glob("*.h"))
# Some functions are exported for the extension alone, and their headers are not installed.
OWN_HEADERS = sorted((ROOT / "csrc" / "core").glob("*.h"))
EXPORTING = [h for h in PUBLIC_HEADERS + OWN_HEADERS if "TIDEGATE_EXPORT" in h.read_text()]
WORDS = {word for header in EXPORTING for word in re.findall(r"\w+", header.read_text())}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names and tools are ELF's")


def exported(path: Path) -> dict[str, str]:
    """The type, as nm tells it, of each symbol that a library defines for others."""
    listed = run(program("nm"), "--dynamic", "--defined-only", "--format=posix", path)
    return dict(line.split()[:2] for line in listed.splitlines())


def check_library(path: Path) -> None:
    symbols = exported(path)
    assert {"tidegate_version", "_ZN8tidegate7versionB5cxx11Ev"} <= set(symbols)
    for name, kind in symbols.items():
        # Functions (those of templates are weak), and what exceptions are recognised by, of which
        # Clang makes the names constants.
        of_type = re.match(r"_ZT[ISV]N8tidegate\d+(OutOfMemory|Interrupted)E$", name)
        assert kind in ("VDR" if of_type else "TW"), (name, kind)
        mangled = re.match(r"_Z(?:NK?|T[ISV]N)8tidegate(\d+)(\w+)", name)
        if mangled:
            own = mangled[2][: int(mangled[1])]
            assert own in WORDS, name
            assert "4Impl" not in mangled[2][len(own) :].split("St")[0], name
        else:
            assert name.startswith("tidegate_"), name
            assert name in WORDS, name


def check_package(package: Path) -> None:
    """Checks the exports of a folder with the extensions and lib/."""
    check_library(next((package / "lib").glob("libtidegate.*")))
    for name in ("_core", "reference"):
        (extension,) = package.glob(f"{name}.*.so")
        assert exported(extension) == {f"PyInit_{name}": "T"}


# ---- The installed package -----------------------------------------------------------------------

INSTALLED = Path(_core.__file__).parent


def test_the_package_exports_its_own_names_alone() -> None:
    check_package(INSTALLED)


LOCALES = re.compile(
    r"\bstd::(__\w+::)?(locale|ios_base|basic_ios|"
    r"basic_[io]*(f|string)?(stream|buf)|basic_streambuf|use_facet|has_facet)\b"
)


def test_nothing_uses_locales_or_streams(build_directories: list[Path]) -> None:
    objects = sorted(build_directories[0].glob("CMakeFiles/tidegate.dir/**/*.o"))
    assert objects
    for path in (*objects, Path(_core.__file__)):
        dynamic = ["--dynamic"] if path.suffix == ".so" else []
        listed = run(program("nm"), "--demangle", *dynamic, path)
        assert not LOCALES.findall(listed), path


PLUGIN_CMAKE = """
cmake_minimum_required(VERSION 3.21)
project(plugin LANGUAGES CXX)
find_package(tidegate REQUIRED)
add_library(plugin MODULE plugin.cc)
target_link_libraries(plugin PRIVATE tidegate::tidegate)
"""

PLUGIN_CC = """
#include "tidegate/tidegate_c.h"
extern "C" const char* plugin() { return tidegate_version(); }
"""


def test_a_plug_in_does_not_export_the_static_library_in_it(
    build_directories: list[Path], tmp_path: Path
) -> None:
    run(program("cmake"), "--install", build_directories[0], "--prefix", tmp_path / "prefix")
    (tmp_path / "CMakeLists.txt").write_text(PLUGIN_CMAKE)
    (tmp_path / "plugin.cc").write_text(PLUGIN_CC)
    build = cmake_build(tmp_path, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={tmp_path}/prefix")
    assert set(exported(build / "libplugin.so")) == {"plugin"}


# ---- A package that holds a C++ library of its own -----------------------------------------------

# The kernels, which take a compiler minutes, are another build's.
LAUNCHER = """#!/bin/sh
output= previous=
for argument; do
  [ "$previous" = -o ] && output=$argument
  previous=$argument
done
case $output in
  *tidegate_kernels_*) exec cp "{directory}/$output" "$output" ;;
esac
exec "$@"
"""


@pytest.fixture(scope="module")
def static_site(build_directories: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import tidegate from, linked with the C++ library's archive."""
    for module in ("pybind11", "Cython"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    folder = tmp_path_factory.mktemp("static")
    link_flags = "-static-libstdc++ -static-libgcc"
    (folder / "empty.cc").write_text("int empty() { return 0; }\n")
    if subprocess.run(
        [compiler(), *link_flags.split(), "-shared", "-fPIC", "-o", "empty.so", "empty.cc"],
        cwd=folder,
        check=False,
    ).returncode:
        pytest.skip("the C++ library has no archive")
    launcher = folder / "launcher"
    launcher.write_text(LAUNCHER.format(directory=build_directories[0].resolve()))
    launcher.chmod(0o755)
    cmake = program("cmake")
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
    run(
        *(cmake, "-S", ROOT, "-B", folder / "build", "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={program('ninja')}", "-DSKBUILD=2"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"),
        *("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0 -DNDEBUG"),
        *(f"-DCMAKE_SHARED_LINKER_FLAGS={link_flags}", f"-DCMAKE_MODULE_LINKER_FLAGS={link_flags}"),
        f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}",
        # Those whose kernels the launcher can copy.
        f"-DTIDEGATE_ISAS={cached(build_directories[0], 'TIDEGATE_ISAS')}",
    )
    run(cmake, "--build", folder / "build")
    site = folder / "site"
    built = shutil.ignore_patterns("*.so", "lib", "include", "__pycache__")
    shutil.copytree(Path(tg.__file__).parent, site / "tidegate", ignore=built)
    run(cmake, "--install", folder / "build", "--prefix", site)
    return site


def test_a_static_c_library_is_not_exported(static_site: Path) -> None:
    package = static_site / "tidegate"
    for path in (*package.glob("*.so"), *package.glob("lib/*.so")):
        needed = run(program("readelf"), "--dynamic", path)
        assert "libstdc++" not in needed
        assert "libgcc_s" not in needed
    check_package(package)


COMMANDS = """
import ctypes, importlib, os, sys
ctypes.CDLL("libstdc++.so.6", os.RTLD_GLOBAL | os.RTLD_NOW)
for name in sys.argv[2:]:
    importlib.import_module(name)
sys.path.insert(0, sys.argv[1])
import tidegate
from tidegate.cli import main
assert tidegate.__file__.startswith(sys.argv[1])
for command in (
    ["config"],
    ["--version"],
    ["--cmake-dir"],
    ["demo", "--hidden", "8", "--epochs", "2"],
    ["selftest", "--case", "0"],
    ["bench", "--rounds", "1"],
):
    try:
        assert main(command) in (0, None), command
    except SystemExit as end:
        assert not end.code, command
try:
    tidegate.LSTM(0, 1)
except ValueError as error:  # an exception of one copy, caught by another
    print("refused:", error)
"""


@pytest.mark.parametrize("modules", [[], ["torch"]], ids=["alone", "torch"])
def test_a_static_c_library_beside_another(static_site: Path, modules: list[str]) -> None:
    for module in modules:
        pytest.importorskip(module)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(static_site), *modules],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused:" in done.stdout
