"""The `tidegate` command: finding subcommands, exit codes, messages without tracebacks."""

import subprocess
import sys

import pytest

import tidegate as tg
from tidegate import _core, cli, demo


def run(capsys, *argv):
    """Exit code, standard output, standard error."""
    try:
        code = cli.main(argv)
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"tidegate {tg.__version__}\n", "")


def test_the_package_runs_as_the_command():
    command = [sys.executable, "-m", "tidegate"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"tidegate {tg.__version__}\n")
    wrong = subprocess.run([*command, "nothing"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "usage: tidegate" in wrong.stderr


def test_cmake_dir(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(_core, "__file__", str(tmp_path / "_core.so"))
    package = tmp_path / "lib" / "cmake" / "tidegate"
    code, out, err = run(capsys, "--cmake-dir")
    assert (code, out) == (1, "")
    assert err == f"tidegate: there is no CMake package in {package}\n"
    package.mkdir(parents=True)
    (package / "tidegate-config.cmake").touch()
    assert run(capsys, "--cmake-dir") == (0, f"{package}\n", "")


def test_help_lists_the_commands(capsys):
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    for command in cli.COMMANDS:
        assert command in out


def test_config_prints_the_configuration(capsys):
    tg.show_config()
    want = capsys.readouterr().out
    code, out, err = run(capsys, "config")
    assert (code, err) == (0, "")
    assert out == want
    assert tg.__version__ in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_subcommands_have_help_of_their_own(capsys, command):
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"tidegate {command}" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "command"),
        (["trian"], "trian"),
        (["--bogus"], "command"),
        (["config", "--bogus"], "--bogus"),
        (["demo", "--bogus"], "--bogus"),
    ],
)
def test_wrong_arguments_exit_with_2(capsys, argv, message):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: tidegate")
    assert message in err.splitlines()[-1]


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "main", interrupted)
    assert run(capsys, "demo") == (130, "", "interrupted\n")


def test_the_subcommands_exit_code_is_returned(capsys, monkeypatch):
    monkeypatch.setattr(demo, "main", lambda argv: int(argv[0]))
    assert run(capsys, "demo", "7")[0] == 7


def test_as_a_process():
    command = [sys.executable, "-m", "tidegate.cli"]
    good = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout) == (0, f"tidegate {tg.__version__}\n")
    bad = subprocess.run(
        [*command, "demo", "--epochs", "0"], capture_output=True, text=True, check=False
    )
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "--epochs" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_a_reader_that_leaves_is_no_traceback():
    command = [sys.executable, "-m", "tidegate.cli", "config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
