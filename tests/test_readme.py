"""Every Python snippet of the README runs as it stands. The C++ one: test_embedding.py."""

from __future__ import annotations

import re
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
