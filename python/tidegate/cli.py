"""The `tidegate` command: dispatches to the subcommands, each of which parses its own arguments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tidegate as tg
from tidegate import _core

COMMANDS = {
    "demo": "train a network on real speech, in seconds",
    "selftest": "check every instruction set of this machine against the reference",
    "bench": "time some calls, and compare them with the machine's limits",
    "config": "print version, instruction sets, threads and compiler",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: the arguments; None means the process's own.

    Returns:
        The exit code: the subcommand's, 0 for success; 130 if interrupted; 1 if standard output was
        closed.

    Raises:
        SystemExit: 2 for wrong arguments (reported on standard error), 0 after --help, --version
            and --cmake-dir; 1 if there is no CMake package.
    """
    parser = argparse.ArgumentParser(
        prog="tidegate",
        description="LSTM, GRU and MGU on CPUs.",
        epilog="\n".join(["commands:", *(f"  {name:10}{what}" for name, what in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tidegate {tg.__version__}")
    parser.add_argument(
        "--cmake-dir",
        action=_PrintCmakeDir,
        nargs=0,
        help="print where the CMake package is, for cmake -Dtidegate_DIR=...",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see: tidegate COMMAND --help")
    args = parser.parse_args(argv)
    try:
        code = _run(args.command, args.arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reading end of the pipe is closed. Redirect Python's flush at exit to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _PrintCmakeDir(argparse.Action):
    """Prints the CMake package's directory and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        # Located beside the extension: an editable install has its Python files elsewhere.
        directory = Path(_core.__file__).parent / "lib" / "cmake" / "tidegate"
        if not (directory / "tidegate-config.cmake").is_file():
            parser.exit(1, f"{parser.prog}: there is no CMake package in {directory}\n")
        print(directory)
        parser.exit()


def _run(command: str, argv: Sequence[str]) -> int:
    """Runs one subcommand, importing only what it needs."""
    if command == "demo":
        from tidegate import demo

        return demo.main(argv)
    if command == "selftest":
        from tidegate import selftest

        return selftest.main(argv)
    if command == "bench":
        from tidegate import bench

        return bench.main(argv)
    return _config(argv)


def _config(argv: Sequence[str]) -> int:
    argparse.ArgumentParser(prog="tidegate config", description=COMMANDS["config"]).parse_args(argv)
    tg.show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
