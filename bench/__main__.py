"""The command line: `python -m bench [run|report|compare|list|latency|threads|memory|service]`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.contenders import MODULES, OURS
from bench.grid import Cell, suite
from bench.processes import choose_cpus
from bench.progress import Progress
from bench.results import Results, ResultsError, compare, load, run_settings, summarize
from bench.runner import Budget, Ring, Settings
from bench.stats import LEAST_SAMPLES
from tidegate.bench import cpu_count, machine
from tidegate.terminal import at_least, positive

# The duration of each suite on two cores.
MINUTES = {"quick": 5.0, "full": 90.0, "low": 20.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # `run` is the default command.
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv.insert(0, "run")
    args = _parser().parse_args(argv)
    try:
        code: int = args.function(args)
        sys.stdout.flush()
        return code
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reading end of the pipe is closed. Redirect Python's flush at exit to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


# ---- run


def _run(args: argparse.Namespace) -> int:
    settings = Settings(
        contenders=args.contenders,
        min_rounds=args.min_rounds,
        max_rounds=max(args.max_rounds, args.min_rounds),
        sample_ms=args.sample_ms,
        quiet_limit=args.quiet_limit,
        timeout=args.timeout,
    )
    out = args.out or Path("build", f"bench-{args.suite}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    results = Results(out, run_settings(args.suite, settings))
    if not args.fresh:
        results.resume()
    cells = _chosen(args)
    ahead = [cell for cell in cells if not results.has(cell)]
    if len(ahead) < len(cells):
        done = f"{len(cells) - len(ahead)} of {len(cells)} cells are in {out} already"
        print(f"{done} (--fresh measures them again)")
    # A part of a suite gets a part of the suite's time.
    minutes = args.minutes or MINUTES[args.suite]
    share = len(ahead) / len(suite(args.suite, args.threads))
    budget = Budget(ahead, 60 * minutes * share, len(settings.contenders))
    with Progress(len(ahead)) as progress:
        for threads in args.threads:
            own = [cell for cell in ahead if cell.threads == threads]
            if own:
                with Ring(threads, settings) as ring:
                    _measure(own, ring, results, budget, progress)
    print()
    print(report.table(results.data))
    _write(results.data, args)
    return 0


def _measure(
    cells: list[Cell], ring: Ring, results: Results, budget: Budget, progress: Progress
) -> None:
    for cell in cells:
        progress.begin(cell.id, budget.remaining())
        record = ring.measure(cell, budget.next(), progress.tell)
        results.add(cell, record, ring.versions())
        progress.tell(report.cell_line(summarize(record)))
        progress.finish_one()
        budget.finish_one()


def _chosen(args: argparse.Namespace) -> list[Cell]:
    pattern = re.compile(args.cells)
    return [cell for cell in suite(args.suite, args.threads) if pattern.search(cell.id)]


def _write(data: dict[str, Any], args: argparse.Namespace) -> None:
    """Writes the files that the arguments ask for."""
    for path, text in ((args.markdown, report.short_markdown), (args.full, report.full_markdown)):
        if path is not None:
            path.write_text(text(data), encoding="utf-8")
            print(f"{path} written")
    if args.plots is not None:
        from bench.plots import draw

        try:
            for path in draw(data, args.plots):
                print(f"{path} written")
        except ImportError:
            print("no plots: they need matplotlib", file=sys.stderr)


# ---- The other commands


def _report(args: argparse.Namespace) -> int:
    data = load(args.file)
    print(report.table(data))
    _write(data, args)
    return 0


def _compare(args: argparse.Namespace) -> int:
    old, new = load(args.old), load(args.new)
    for key in ("cpu", "isa"):
        if old["machine"][key] != new["machine"][key]:
            print(f"note: {key} differs: {old['machine'][key]}, {new['machine'][key]}")
    changes = compare(old, new)
    print(report.comparison(changes, args.threshold))
    return int(any(c.certain and c.relative > 1 + args.threshold for c in changes))


def _list(args: argparse.Namespace) -> int:
    cells = _chosen(args)
    for cell in cells:
        print(f"{cell.id:60} {cell.work().flops / 1e6:12.3f} MFLOP")
    print(f"{len(cells)} cells")
    return 0


def _latency(args: argparse.Namespace) -> int:
    from bench import latency

    figures = latency.measure(args.rounds, args.sample_ms, args.wheel)
    print(latency.text(figures))
    _save(figures, args)
    return 0


def _threads(args: argparse.Namespace) -> int:
    from bench import threads

    pattern = re.compile(args.cells)
    cells = [cell for cell in threads.cells(args.suite) if pattern.search(cell.id)]
    try:
        choose_cpus(2)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    figures = threads.measure(cells, args.rounds, args.sample_ms, _tell)
    print(threads.text(figures))
    _save(figures, args)
    return 0


def _memory(args: argparse.Namespace) -> int:
    from bench import memory

    figures = memory.measure(args.contenders, args.timeout, _tell)
    _save({"memory": figures}, args)
    return 0


def _service(args: argparse.Namespace) -> int:
    from bench import service
    from bench.server import Load

    load = Load(
        clients=args.clients,
        workers=min(args.workers, args.clients),
        threads=args.threads,
        cpus=args.cpus,
        period=args.period_ms / 1e3,
        seconds=args.seconds,
    )
    tick = args.tick_ms / 1e3
    figures = service.measure(args.contenders, load, tick, args.rounds, args.timeout, _tell)
    print(service.text(figures))
    _save(figures, args)
    return 0


def _tell(text: str) -> None:
    print(text, flush=True)


def _save(figures: dict[str, Any], args: argparse.Namespace) -> None:
    if args.json is not None:
        data = {"machine": machine(), **figures}
        args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        print(f"{args.json} written")


# ---- Arguments


def _thread_counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    for part in parts:
        _cpus(part)
    return tuple(int(part) for part in parts)


def _cpus(text: str) -> list[int]:
    """Parses a number of processors and chooses them."""
    count = at_least(1)(text)
    try:
        return choose_cpus(count)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _contenders(text: str) -> tuple[str, ...]:
    names = text.split(",")
    for name in names:
        if name not in MODULES:
            raise argparse.ArgumentTypeError(f"got {name}, wanted some of {', '.join(MODULES)}")
    # Tidegate always takes part, since the others are compared with it.
    return tuple(name for name in MODULES if name in names or name == OURS)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Tidegate against its peers and the machine's limits."
    )
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}."
        )
        made.set_defaults(function=function)
        return made

    run = command("run", _run, "measure the grid (the default command)")
    _add_choice(run)
    counts = "1,2" if cpu_count() > 1 else "1"
    _add(run, "--threads", "thread counts, one after the other", _thread_counts, counts)
    _add_contenders(run)
    what = "minutes for the suite; set the cells' rounds (default: quick 5, full 90, low 20)"
    _add(run, "--minutes", what, positive)
    _add(run, "--min-rounds", "least rounds of a cell, even if they exceed the time", _rounds, 7)
    _add(run, "--max-rounds", "most rounds of a cell", _rounds, 25)
    _add_sample(run)
    what = "seconds that a contender's threads may run on after its turn, before they are stopped"
    _add(run, "--quiet-limit", what, positive, Settings.quiet_limit)
    _add_timeout(run)
    what = "file to save to and resume from (default: build/bench-<suite>.json)"
    _add(run, "--out", what, Path, metavar="FILE.json")
    run.add_argument("--fresh", action="store_true", help="ignore results in the file")
    _add_outputs(run)

    reported = command("report", _report, "print a file's tables, and draw plots")
    reported.add_argument("file", type=Path, metavar="FILE.json")
    _add_outputs(reported)

    compared = command("compare", _compare, "report what got slower; exit code 1 if anything did")
    compared.add_argument("old", type=Path, metavar="OLD.json")
    compared.add_argument("new", type=Path, metavar="NEW.json")
    _add(compared, "--threshold", "least relevant change, as a fraction", positive, 0.05)

    listed = command("list", _list, "print the cells of a suite")
    _add_choice(listed)
    _add(listed, "--threads", "thread counts", _thread_counts, "1")

    latency = command("latency", _latency, "a streamed step from Python, import time, sizes")
    _add(latency, "--rounds", "rounds", _rounds, 15)
    _add_sample(latency)
    _add(latency, "--wheel", "wheel whose size is reported", Path, metavar="FILE.whl")
    _add_json(latency)

    threads = command("threads", _threads, "2 threads against 1, 4 on 2, idle CPU, two processes")
    _add_choice(threads)
    _add(threads, "--rounds", "rounds of a cell", _rounds, 9)
    _add_sample(threads)
    _add_json(threads)

    memory = command("memory", _memory, "memory as a function of the length of a call")
    _add_contenders(memory)
    _add_timeout(memory)
    _add_json(memory)

    service = command("service", _service, "live streams, served by forked workers")
    _add_contenders(service, "tidegate,torch,onnxruntime")
    _add(service, "--clients", "live streams", at_least(1), 200)
    _add(service, "--period-ms", "time between a client's frames", positive, 32.0)
    _add(service, "--tick-ms", "interval of the ticks that batched frames wait for", positive, 4.0)
    _add(service, "--workers", "processes that share the clients", at_least(1), 2)
    _add(service, "--threads", "threads of a worker", at_least(1), 1)
    _add(service, "--cpus", "processors for all workers", _cpus, str(min(2, cpu_count())))
    _add(service, "--seconds", "duration of a turn", positive, 10.0)
    _add(service, "--rounds", "turns of each contender", at_least(1), 3)
    _add_timeout(service)
    _add_json(service)
    return parser


_rounds = at_least(LEAST_SAMPLES)


def _add(
    parser: argparse.ArgumentParser,
    name: str,
    text: str,
    type_: Callable[[str], Any],
    default: Any = None,
    **options: Any,
) -> None:
    default_text = "" if default is None else " (default: %(default)s)"
    parser.add_argument(name, type=type_, default=default, help=text + default_text, **options)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--suite", "which cells", str, "quick", choices=list(MINUTES))
    what = "only cells whose name (see `list`) matches"
    _add(parser, "--cells", what, _pattern, ".", metavar="REGEX")


def _add_contenders(parser: argparse.ArgumentParser, default: str = ",".join(MODULES)) -> None:
    _add(parser, "--contenders", "libraries to measure", _contenders, default)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    what = "length of a sample, a number of consecutive calls"
    _add(parser, "--sample-ms", what, positive, Settings.sample_ms)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    what = "seconds after which a contender that does not answer is dropped"
    _add(parser, "--timeout", what, positive, Settings.timeout)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--markdown", "write the short table", Path, metavar="FILE.md")
    _add(parser, "--full", "write the whole grid", Path, metavar="FILE.md")
    _add(parser, "--plots", "draw ratios.png and limits.png", Path, metavar="FOLDER")


def _add_json(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--json", "save the figures", Path, metavar="FILE.json")


if __name__ == "__main__":
    sys.exit(main())
