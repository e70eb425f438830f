"""Tidegate within C++ and C programs: the CMake package of the wheel and of a plain build.

TIDEGATE_BUILD_DIRS is as in conftest.py; without it the plain build's package is not tried.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tidegate as tg
from programs import cmake_build, compiler, program, run
from tidegate import _core, files

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PUBLIC_HEADERS = sorted((ROOT / "csrc" / "include" / "tidegate").glob("*.h"))
FRAMES = 1875  # a minute of 32 ms each


@pytest.fixture(scope="module")
def package() -> Path:
    """The installed CMake package, as the command tells it."""
    return Path(run(sys.executable, "-m", "tidegate.cli", "--cmake-dir").strip())


@pytest.fixture(scope="module")
def library(package: Path) -> Path:
    return next(package.parent.parent.glob("libtidegate.*"))


def build(sources: Path, directory: Path, package: Path) -> Path:
    return cmake_build(sources, directory, f"-Dtidegate_DIR={package}")


def write_project(directory: Path, cmake: str) -> Path:
    directory.mkdir()
    (directory / "CMakeLists.txt").write_text(f"cmake_minimum_required(VERSION 3.21)\n{cmake}")
    return directory


# ---- Voice activity, in a minute of audio --------------------------------------------------------


@pytest.fixture(scope="module")
def vad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the features of some seconds, and what Python makes of a minute."""
    recorded = np.load(TESTS / "models" / "silero_vad.npz")
    lstm = tg.LSTM(128, 128)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    lstm.load_state_dict({f"{name}_l0": recorded[name] for name in names})
    head = tg.Linear(128, 1)
    head.load_state_dict(
        {"weight": recorded["out_weight"][:, :, 0], "bias": recorded["out_bias"].reshape(1)}
    )
    folder = tmp_path_factory.mktemp("vad")
    files.save(folder / "vad.safetensors", {"lstm": lstm, "head": head})
    features = recorded["lstm_in"]
    features.tofile(folder / "features.f32")

    minute = features[np.arange(FRAMES) % len(features)]
    h = lstm.stream().run(minute[:, np.newaxis])[:, 0].astype(np.float64)
    weight, bias = head.params["weight"][0], head.params["bias"]
    np.save(folder / "wanted.npy", 1 / (1 + np.exp(-(np.maximum(h, 0) @ weight + bias))))
    np.save(folder / "recorded.npy", recorded["prob"])
    return folder


def check_vad(program: Path, vad: Path) -> str:
    printed = run(program, vad / "vad.safetensors", vad / "features.f32")
    probabilities = np.array(printed.split(), np.float64)
    np.testing.assert_allclose(probabilities, np.load(vad / "wanted.npy"), rtol=0, atol=1e-6)
    recorded = np.load(vad / "recorded.npy")
    np.testing.assert_allclose(probabilities[: len(recorded)], recorded, rtol=0, atol=1e-5)
    return printed


def check_missing_file(command: list[Path], path: Path | str) -> None:
    """The program does not abort: it says which file is missing."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{path}: No such file" in result.stderr


@pytest.fixture(scope="module")
def embedding(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of tests/embedding with the library of the wheel."""
    return build(TESTS / "embedding", tmp_path_factory.mktemp("build"), package) / "vad"


def test_a_program_that_embeds_the_wheel(embedding: Path, vad: Path) -> None:
    check_vad(embedding, vad)
    check_missing_file([embedding, vad / "nothing", vad / "features.f32"], vad / "nothing")


def test_a_plain_build_gives_the_same(
    package: Path, embedding: Path, vad: Path, tmp_path: Path
) -> None:
    given = os.environ.get("TIDEGATE_BUILD_DIRS")
    if not given:
        pytest.skip("TIDEGATE_BUILD_DIRS names no build to install")
    prefix = tmp_path / "prefix"
    run(program("cmake"), "--install", given.split(os.pathsep)[0], "--prefix", prefix)
    static = next(prefix.glob("lib*/**/cmake/tidegate"))
    assert {p.name for p in static.iterdir()} == {p.name for p in package.iterdir()}
    plain = build(TESTS / "embedding", tmp_path / "build", static) / "vad"
    assert check_vad(plain, vad) == check_vad(embedding, vad)


def test_the_program_needs_no_python(embedding: Path, library: Path) -> None:
    for path in (embedding, library):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run(program("readelf"), "--dynamic", path))
        assert needed
        assert not [name for name in needed if "python" in name]


def test_the_readme_s_program(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Files\n") : readme.index("## Guarantees\n")]
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```", section, re.M | re.S))
    assert set(blocks) == {"python", "cmake", "cpp", "sh"}
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks["python"], "README.md", "exec"), {})  # saves the model
    (tmp_path / "CMakeLists.txt").write_text(blocks["cmake"])
    (tmp_path / "main.cc").write_text(blocks["cpp"])
    executable = build(tmp_path, tmp_path / "build", package) / "vad"
    layers = tg.load("vad.safetensors")
    h = layers["lstm"].stream().run(np.zeros((100, 1, 128), np.float32))[-1]
    wanted = 1 / (1 + np.exp(-layers["head"](h).astype(np.float64)))
    assert float(run(executable)) == pytest.approx(wanted.item(), rel=1e-5)
    (tmp_path / "vad.safetensors").unlink()
    check_missing_file([executable], "vad.safetensors")


# ---- The tests of the library's own build, through the shared library ----------------------------


def test_a_step_in_the_shared_library_neither_allocates_nor_locks_nor_calls_the_system(
    package: Path, tmp_path: Path
) -> None:
    project = write_project(
        tmp_path / "project",
        f"""
        project(realtime LANGUAGES CXX)
        find_package(tidegate CONFIG REQUIRED)
        add_executable(realtime {TESTS}/cpp/test_realtime.cc)
        target_compile_features(realtime PRIVATE cxx_std_20)
        target_link_libraries(realtime PRIVATE tidegate::tidegate ${{CMAKE_DL_LIBS}})
        """,
    )
    printed = run(build(project, tmp_path / "build", package) / "realtime")
    assert "FAILED" not in printed


def test_a_program_in_c(package: Path, tmp_path: Path) -> None:
    project = write_project(
        tmp_path / "project",
        """
        project(in_c LANGUAGES C)
        find_package(tidegate CONFIG REQUIRED)
        add_executable(in_c test_c_api.c)
        set_target_properties(in_c PROPERTIES C_STANDARD 99 C_EXTENSIONS OFF)
        target_link_libraries(in_c PRIVATE tidegate::tidegate m)
        """,
    )
    program("cc")
    shutil.copy(TESTS / "cpp" / "test_c_api.cc", project / "test_c_api.c")
    assert run(build(project, tmp_path / "build", package) / "in_c") == "0 failed checks\n"


def test_another_version_is_not_found(package: Path, tmp_path: Path) -> None:
    project = write_project(
        tmp_path / "project",
        """
        project(another LANGUAGES NONE)
        find_package(tidegate 99 CONFIG QUIET)
        if(tidegate_FOUND)
          message(FATAL_ERROR "found")
        endif()
        """,
    )
    build(project, tmp_path / "build", package)


# ---- pkg-config ----------------------------------------------------------------------------------

PROGRAM = """
#include <stdio.h>
#include "tidegate/tidegate_c.h"
int main(void) { return puts(tidegate_version()) < 0; }
"""


def compile_by_pkg_config(library: Path, directory: Path, suffix: str) -> str:
    """What the program prints, built with the flags of the library's file."""
    directory.mkdir()
    source = directory / f"program.{suffix}"
    source.write_text(PROGRAM)
    environment = os.environ | {"PKG_CONFIG_PATH": str(library / "pkgconfig")}
    flags = subprocess.run(
        [program("pkg-config"), "--cflags", "--libs", "tidegate"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout.split()
    cc = program("cc") if suffix == "c" else compiler()
    run(cc, source, "-o", directory / "program", *flags, f"-Wl,-rpath,{library}")
    return run(directory / "program")


@pytest.mark.parametrize("suffix", ["c", "cc"])
def test_a_program_by_pkg_config(library: Path, tmp_path: Path, suffix: str) -> None:
    printed = compile_by_pkg_config(library.parent, tmp_path / suffix, suffix)
    assert printed == f"{tg.__version__}\n"


@pytest.mark.parametrize("suffix", ["c", "cc"])
def test_a_program_by_pkg_config_of_a_plain_build(tmp_path: Path, suffix: str) -> None:
    given = os.environ.get("TIDEGATE_BUILD_DIRS")
    if not given:
        pytest.skip("TIDEGATE_BUILD_DIRS names no build to install")
    prefix = tmp_path / "prefix"
    run(program("cmake"), "--install", given.split(os.pathsep)[0], "--prefix", prefix)
    library = next(prefix.glob("lib*/**/pkgconfig")).parent
    assert compile_by_pkg_config(library, tmp_path / suffix, suffix) == f"{tg.__version__}\n"


# ---- What the wheel carries ----------------------------------------------------------------------


def test_the_wheel_carries_the_public_headers(package: Path) -> None:
    include = package.parent.parent.parent / "include" / "tidegate"
    assert {p.name: p.read_text() for p in include.iterdir()} == {
        p.name: p.read_text() for p in PUBLIC_HEADERS
    }


def test_the_extension_uses_this_library(library: Path) -> None:
    def run_paths(path: Path) -> list[str]:
        dynamic = run(program("readelf"), "--dynamic", path)
        found = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic)
        return [one for paths in found for one in paths.split(":")]

    # A repaired wheel brings other libraries along, in a folder beside the package.
    brought = {"$ORIGIN/../tidegate.libs", "$ORIGIN/../../tidegate.libs"}
    assert [one for one in run_paths(Path(_core.__file__)) if one not in brought] == ["$ORIGIN/lib"]
    assert [one for one in run_paths(library) if one not in brought] == []
    mapped = Path("/proc/self/maps").read_text()
    loaded = {Path(p).resolve() for p in re.findall(r"\S*/libtidegate\S*", mapped)}
    assert loaded == {library.resolve()}


def test_the_library_is_bound_when_loaded_and_stays(library: Path) -> None:
    """No first step waits for the dynamic linker; no plug-in that goes takes its threads' code."""
    dynamic = run(program("readelf"), "--dynamic", library)
    (flags,) = re.findall(r"\(FLAGS_1\)\s*Flags: (.*)", dynamic)
    assert {"NOW", "NODELETE"} <= set(flags.split())


def test_nothing_names_the_tree_that_it_was_built_in(package: Path, library: Path) -> None:
    for path in [library, Path(_core.__file__), *package.iterdir()]:
        assert os.fsencode(ROOT) not in path.read_bytes(), path.name
