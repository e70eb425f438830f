"""What the build must hold: kernel objects that cannot clash, the folders' rules, a lean wheel."""

from __future__ import annotations

import importlib.metadata
import json
import re
import zlib
from pathlib import Path

import pytest

import tidegate
from isas import BASE_ISAS
from programs import cached, cmake_build, compiler, program, run
from tidegate import _core

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PUBLIC_HEADERS = sorted((CSRC / "include" / "tidegate").glob("*.h"))

# What a freestanding compiler may call for a loop that moves or clears memory.
MEMORY_FUNCTIONS = {"memcpy", "memmove", "memset"}
# The C library's, for activations that are computed lane by lane and for losses, once a row. No
# object of the library defines them.
MATH_FUNCTIONS = {"exp", "expm1", "log", "log1p"}


# ---- Kernel objects ------------------------------------------------------------------------------


def test_kernel_objects_define_one_table_each(build_directories: list[Path]) -> None:
    """Weak symbols are merged: the linker could give an AVX2 machine the AVX-512 copy."""
    for directory in build_directories:
        assert cached(directory, "CMAKE_BUILD_TYPE") == "Release"
        objects = sorted(directory.glob("CMakeFiles/tidegate_kernels_*.dir/**/*.o"))
        assert objects
        for path in objects:
            isa = re.search(r"tidegate_kernels_(\w+)\.dir", str(path))[1]  # type: ignore[index]
            listed = run(cached(directory, "CMAKE_NM"), "--format=posix", "--extern-only", path)
            symbols = [line.split()[:2] for line in listed.splitlines()]
            defined = [name for name, kind in symbols if kind != "U"]
            assert len(defined) == 1, f"{isa}: {defined}"
            assert re.fullmatch(rf"_?tidegate_\w+_{isa}", defined[0])
            assert not [name for name, kind in symbols if kind in "WwVvu"]
            undefined = {name for name, kind in symbols if kind == "U"}
            # Of the instruction set that this one extends, too.
            base = BASE_ISAS.get(isa, isa)
            of_isas = re.compile(rf"_?tidegate_\w+_({isa}|{base})")
            tables = {name for name in undefined if of_isas.fullmatch(name)}
            assert undefined - tables <= MEMORY_FUNCTIONS | MATH_FUNCTIONS


def test_every_isa_has_its_kernels(build_directories: list[Path]) -> None:
    for directory in build_directories:
        names = {path.name for path in directory.glob("CMakeFiles/tidegate_kernels_*.dir")}
        isas = {name.removeprefix("tidegate_kernels_").removesuffix(".dir") for name in names}
        x86 = {"baseline", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx"}
        assert isas in (x86, {"neon", "neon_dot", "neon_i8mm"})


# ---- The installed C++ library -------------------------------------------------------------------

PROGRAM_CMAKE = """
cmake_minimum_required(VERSION 3.21)
project(program LANGUAGES CXX)
find_package(tidegate REQUIRED)
add_executable(program program.cc)
target_link_libraries(program PRIVATE tidegate::tidegate)
"""

PROGRAM_CC = """
#include <cstdio>
#include "tidegate/tidegate.h"
int main() { std::printf("%s %s", tidegate::version().c_str(), tidegate::isa().c_str()); }
"""


def test_cmake_package_serves_another_program(
    build_directories: list[Path], tmp_path: Path
) -> None:
    run(program("cmake"), "--install", build_directories[0], "--prefix", tmp_path / "prefix")
    (tmp_path / "CMakeLists.txt").write_text(PROGRAM_CMAKE)
    (tmp_path / "program.cc").write_text(PROGRAM_CC)
    build = cmake_build(tmp_path, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={tmp_path}/prefix")
    version, isa = run(build / "program").split()
    assert version == tidegate.__version__
    assert isa in _core.available_isas()


def test_a_build_without_openmp_does_not_ask_for_it(build_directories: list[Path]) -> None:
    for directory in build_directories:
        names = {path.stem for path in directory.glob("CMakeFiles/tidegate.dir/**/team_*.o")}
        makers = {name.removesuffix(".cc") for name in names}
        assert makers in ({"team_openmp"}, {"team_std"})
        installed = [directory / name for name in ("tidegate.pc", "tidegate-config.cmake")]
        installed += directory.glob("CMakeFiles/Export/**/tidegate-targets.cmake")
        mentioned = any(re.search("openmp", path.read_text(), re.I) for path in installed)
        assert mentioned == (makers == {"team_openmp"})


# ---- Headers and folders -------------------------------------------------------------------------


def includes(path: Path) -> list[str]:
    """What a file includes, in its own brackets or quotes."""
    return re.findall(r'^\s*#\s*include\s+([<"][^>"]+[>"])', path.read_text(), re.M)


def sources(folder: str) -> list[Path]:
    found = sorted(p for p in (CSRC / folder).rglob("*") if p.suffix in {".h", ".cc"})
    assert found
    return found


@pytest.mark.parametrize("header", PUBLIC_HEADERS, ids=lambda path: path.name)
def test_public_headers_stand_alone_in_cpp17(header: Path, tmp_path: Path) -> None:
    source = tmp_path / "alone.cc"
    # Twice: the guard must hold.
    source.write_text(f'#include "tidegate/{header.name}"\n' * 2)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    run(compiler(), *flags, f"-I{CSRC / 'include'}", source)


def test_public_headers_have_no_simd_openmp_or_python() -> None:
    for header in PUBLIC_HEADERS:
        for name in includes(header):
            # The standard library's headers have no suffix, but for C's.
            standard = r"<std(def|int)\.h>" if header.name == "tidegate_c.h" else r"<\w+>"
            assert re.fullmatch(rf'"tidegate/\w+\.h"|{standard}', name), f"{header.name}: {name}"


def test_bindings_use_the_public_api_and_what_is_exported_for_them() -> None:
    exporting = [p for p in sources("core") if "TIDEGATE_EXPORT" in p.read_text()]
    uninstalled = {f'"core/{path.name}"' for path in exporting if path.suffix == ".h"}
    assert uninstalled == {'"core/machine_speed.h"', '"core/switches.h"'}
    own = {f'"bindings/{path.name}"' for path in sources("bindings")}
    own |= {f'"{path.name}"' for path in sources("bindings")}
    public = {f'"tidegate/{header.name}"' for header in PUBLIC_HEADERS}
    for path in sources("bindings"):
        quoted = {name for name in includes(path) if name.startswith('"')}
        assert quoted <= own | public | uninstalled, path.name


def test_kernels_include_nothing_of_the_layers_above() -> None:
    for path in sources("kernels"):
        for name in includes(path):
            if name in ('"tidegate/activation.h"', '"tidegate/cell.h"'):  # plain constants
                continue
            assert not name.startswith(('"core/', '"bindings/', '"tidegate/')), path.name


def test_core_sees_no_simd_types() -> None:
    allowed = {'"kernels/table.h"', '"kernels/spec.h"'}
    for path in sources("core"):
        assert {name for name in includes(path) if name.startswith('"kernels/')} <= allowed


def test_threads_know_nothing_of_layers() -> None:
    allowed = (
        r'<.+>|"core/(threads/\w+|thread_setup|isa|memory|descriptor|machine_speed)\.h"'
        r'|"tidegate/.+"'
    )
    for path in sources("core/threads"):
        for name in includes(path):
            assert re.fullmatch(allowed, name), f"{path.name}: {name}"


def test_files_use_no_threads() -> None:
    for path in sources("core/files"):
        assert not [name for name in includes(path) if name.startswith('"core/threads/')], path.name


def module(path: Path) -> str:
    """A header and the source of the same name are one module."""
    return str(path.relative_to(CSRC).with_suffix(""))


def test_modules_of_the_core_form_no_circles() -> None:
    uses: dict[str, set[str]] = {}
    for path in sources("core"):
        used = {name[1:-3] for name in includes(path) if name.startswith('"core/')}
        uses.setdefault(module(path), set()).update(used - {module(path)})
    # Modules that use no remaining one are taken away, until nothing is left.
    while leaves := {name for name, used in uses.items() if not used & set(uses)}:
        uses = {name: used for name, used in uses.items() if name not in leaves}
    assert not uses


def test_openmp_is_in_one_file() -> None:
    files = [p for p in CSRC.rglob("*") if p.suffix in {".h", ".cc"}]
    users = [p for p in files if re.search(r"#\s*pragma\s+omp|<omp\.h>", p.read_text())]
    assert [module(p) for p in users] == ["core/threads/team_openmp"]


# ---- The configuration ---------------------------------------------------------------------------


def test_a_build_directory_takes_a_shared_library_too(tmp_path: Path) -> None:
    """What is on by default, and needs a static one, then goes."""
    compiler()
    cmake, ninja = program("cmake"), program("ninja")
    configure = (cmake, "-S", ROOT, "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}")
    for shared, tests in (("OFF", True), ("ON", False), ("OFF", True)):
        run(*configure, f"-DBUILD_SHARED_LIBS={shared}")
        assert ("test_json" in run(ninja, "-C", tmp_path, "-t", "targets", "all")) == tests


# ---- The package ---------------------------------------------------------------------------------


def test_version_is_written_in_one_place() -> None:
    text = (CSRC / "include" / "tidegate" / "version.h").read_text()
    version = re.findall(r'#define TIDEGATE_VERSION "([^"]+)"', text)
    assert version == [tidegate.__version__]
    assert version == [importlib.metadata.version("tidegate")]
    written = [ROOT / "pyproject.toml", ROOT / "CMakeLists.txt"]
    written += [p for p in CSRC.rglob("*") if p.suffix in {".h", ".cc"}]
    written += (ROOT / "python").rglob("*.py*")
    holders = [p.name for p in written if p.suffix != ".pyc" and f'"{version[0]}"' in p.read_text()]
    assert holders == ["version.h"]


@pytest.fixture(scope="module")
def installed() -> list[importlib.metadata.PackagePath]:
    distribution = importlib.metadata.distribution("tidegate")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        pytest.skip("an editable install is no wheel")
    files = distribution.files or []
    return [path for path in files if "__pycache__" not in path.parts]


def test_wheel_carries_what_it_should(installed: list[importlib.metadata.PackagePath]) -> None:
    names = {str(path) for path in installed}
    assert {"tidegate/py.typed", "tidegate/_core.pyi"} <= names
    assert any(name.startswith("tidegate/data/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    inside = {path for path in installed if path.parts[0] == "tidegate"}
    unwanted = {".c", ".cc", ".cpp", ".h", ".o", ".a"}
    found = {str(path) for path in inside if path.suffix in unwanted}
    assert found == {f"tidegate/include/tidegate/{header.name}" for header in PUBLIC_HEADERS}
    top = {path.parts[0] for path in installed if path.parts[0] != ".."}
    assert {name for name in top if not name.endswith(".dist-info")} == {"tidegate"}


def test_wheel_is_small(installed: list[importlib.metadata.PackagePath]) -> None:
    size = sum(len(zlib.compress(path.read_binary())) for path in installed)
    assert size <= 4e6


def test_extensions_are_stripped(installed: list[importlib.metadata.PackagePath]) -> None:
    libraries = {path.name.split(".")[0]: path for path in installed if path.suffix == ".so"}
    assert set(libraries) == {"_core", "reference", "libtidegate"}
    for path in libraries.values():
        assert not run(program("nm"), Path(str(path.locate()))).strip(), path
