"""Every Python snippet of the README runs as it stands. The C++ one: test_embedding.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tidegate as tg

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_snippets_are_found():
    assert len(SNIPPETS) == README.read_text(encoding="utf-8").count("```python") >= 7


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    before = tg.get_num_threads()
    try:
        exec(compile(snippet, str(README), "exec"), {})
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        pytest.skip("PyTorch is not installed")
    finally:
        tg.set_num_threads(before)


# Other packages' types are not what is tested here, and PyTorch's take long to read.
MYPY_CONFIG = """
[mypy]
strict = True
mypy_path = {folder}
[mypy-tidegate.*]
follow_imports = silent
[mypy-torch.*]
follow_imports = skip
ignore_missing_imports = True
"""


def test_snippets_pass_a_strict_type_checker(tmp_path):
    pytest.importorskip("mypy")
    # Wherever the package is, mypy finds its sources here.
    (tmp_path / "tidegate").symlink_to(Path(tg.__file__).parent)
    paths = [tmp_path / f"snippet_{k}.py" for k in range(len(SNIPPETS))]
    for path, snippet in zip(paths, SNIPPETS):
        path.write_text(snippet, encoding="utf-8")
    config = tmp_path / "mypy.ini"
    config.write_text(MYPY_CONFIG.format(folder=tmp_path), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", "cache"]
    done = subprocess.run(
        [*command, *paths], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
