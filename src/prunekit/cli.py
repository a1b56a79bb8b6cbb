"""The command line: arguments -> recipe -> workflow; nothing is decided here."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunekit import __version__, terminal
from prunekit.errors import PrunekitError
from prunekit.progress import Bars, Lines

if TYPE_CHECKING:
    from prunekit.measure import Machine
    from prunekit.workflow import Inspection, Outcome

ACCEPTED, REFUSED, USAGE, FAILED, INTERRUPTED = 0, 1, 2, 3, 130
GOES_ON = "Interrupted. Finished stages are kept; the same command goes on from there."

app = typer.Typer(
    help="Prune a trained PyTorch model to a measured target and prove what was done.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Bound = Annotated[
    float | None, typer.Option(help="Bound on the 99th percentile: search for the highest rate.")
]
Scenarios = Annotated[
    list[str] | None,
    typer.Option(
        help="single-stream, multi-stream, offline, or server, which needs --p99-ms; may be given again."
    ),
]
Rate = Annotated[float | None, typer.Option(help="With --p99-ms: one rate to test, in place of the search.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show warnings, and the traceback of an error.")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"prunekit {__version__}")
        raise typer.Exit(ACCEPTED)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Where the run is kept (default: runs/NAME).")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a recipe, or go on with a run that was begun.

    Exit codes: 0 accepted, 1 refused by a gate, 2 the recipe cannot be used, 3 the run failed.
    """
    with _errors(as_json, debug):
        with _printing_elsewhere(as_json), _watching(as_json) as watcher:
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # Read when torch is imported, in a moment.
            # Importing takes seconds, so the first line is there before.
            from prunekit.workflow import launched_processes, run_recipe

            with launched_processes() as ranks:
                speaks = ranks.is_first
                outcome = run_recipe(
                    recipe, run_dir=run_dir, watcher=watcher if speaks else None, ranks=ranks
                )
        if not speaks:
            raise typer.Exit(ACCEPTED if outcome.accepted else REFUSED)
        if as_json:
            _print_json(_outcome_values(outcome))
        else:
            _print_outcome(outcome)
    raise typer.Exit(ACCEPTED if outcome.accepted else REFUSED)


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(help="A recipe, or a Python file with the function workload().")],
    slices: Annotated[bool, typer.Option("--slices", help="List every slice of every group.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what can be pruned in a model, and what cannot and why."""
    with _errors(as_json, debug):
        from prunekit.workflow import inspect_workload

        with _printing_elsewhere(as_json):
            found = inspect_workload(source)
        if as_json:
            _print_json(_inspection_values(found))
        elif slices:
            _print_slices(found)
        else:
            _print_inspection(found)


@app.command()
def target(
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime", help="A runtime to measure; may be given again (default: those installed)."
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="Threads within an operator.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Wider intervals, sooner.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Describe this machine: its runtimes, and what zeros, widths and precisions are worth on them."""
    with _errors(as_json, debug):
        from prunekit.workflow import describe_target, machine_values

        with _printing_elsewhere(as_json), _watching(as_json) as watcher:
            machine = describe_target(runtime, threads=threads, quick=quick, watcher=watcher)
        if as_json:
            _print_json(machine_values(machine))
        else:
            _print_machine(machine)


@app.command()
def load(
    dense: Annotated[Path, typer.Argument(help="An ONNX file.")],
    pruned: Annotated[Path | None, typer.Argument(help="Another one, measured in turns with it.")] = None,
    p99_ms: Bound = None,
    scenario: Scenarios = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime or openvino.")] = "onnxruntime",
    qps: Rate = None,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    min_seconds: Annotated[float, typer.Option(help="Least duration of a test.")] = 5.0,
    min_queries: Annotated[int, typer.Option(help="Least number of queries of a test.")] = 1000,
    rounds: Annotated[int, typer.Option(help="Tests of each of two models at one load.")] = 5,
    precision: Annotated[float, typer.Option(help="Of the search: failing over passing rate - 1.")] = 0.05,
    samples_per_query: Annotated[int, typer.Option(help="Samples of a query (multi-stream).")] = 8,
    max_batch: Annotated[int | None, typer.Option(help="Samples of one call of the model.")] = None,
    max_wait_ms: Annotated[float, typer.Option(help="How long a call waits for its batch (server).")] = 0.0,
    inputs: Annotated[Path | None, typer.Option(help="An .npz file; without it inputs are made.")] = None,
    batch: Annotated[int, typer.Option(help="Open first dimensions of made inputs.")] = 1,
    sequence: Annotated[int | None, typer.Option(help="Other open dimensions of made inputs.")] = None,
    high: Annotated[int, typer.Option(help="Made identities are below this.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the arrivals and of made inputs.")] = 0,
    price_per_hour: Annotated[float | None, typer.Option(help="Of the machine, in any currency.")] = None,
    energy: Annotated[bool, typer.Option("--energy", help="Joules per sample, where counted.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Put exported models under load by the LoadGen protocol: latencies, requests per second, cost.

    Without --p99-ms: samples one after another (single-stream), then all at once (offline). With --p99-ms 20:
    the most requests per second of which 99 of 100 are answered within 20 ms (server).

    Exit codes: 0 measured, valid or not; 2 the arguments cannot be used, 3 it could not be measured.
    """
    with _errors(as_json, debug, interrupted="Interrupted. Nothing was kept."):
        from prunekit.measure import LoadSettings, Made
        from prunekit.workflow import LoadRequest, measure_load

        settings = LoadSettings(
            "server",
            target_qps=qps,
            min_seconds=min_seconds,
            min_queries=min_queries,
            samples_per_query=samples_per_query,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            seed=seed,
        )
        request = LoadRequest(
            dense=dense,
            pruned=pruned,
            scenarios=tuple(scenario or ()),
            runtime=runtime,
            threads=threads,
            settings=settings,
            p99_ms=p99_ms,
            precision=precision,
            rounds=rounds,
            made=Made(batch, sequence, high, seed),
            inputs=inputs,
            price_per_hour=price_per_hour,
            energy=energy,
        )
        found = measure_load(request, lambda line: print(line, file=sys.stderr))
        if as_json:
            _print_json(found.values())
        else:
            terminal.print_loads(terminal.console(), found)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="A finished run directory.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the HTML report of a finished run again and print its path."""
    with _errors(as_json, debug):
        from prunekit.workflow import make_report

        path = make_report(run_dir)
        if as_json:
            _print_json({"report": str(path)})
        else:
            print(path)


def main() -> None:
    """Run the command line."""
    app()


@contextlib.contextmanager
def _errors(as_json: bool, debug: bool, interrupted: str = GOES_ON) -> Iterator[None]:
    """One paragraph on stderr for whatever goes wrong, and the exit code that belongs to it."""
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        try:
            yield
        except typer.Exit:
            raise
        except KeyboardInterrupt as error:
            raise _ended(interrupted, INTERRUPTED, error, as_json, debug=False) from error
        except PrunekitError as error:
            text = " ".join([f"Error: {error}", *getattr(error, "__notes__", [])])
            raise _ended(text, error.exit_code, error, as_json, debug) from error
        except BrokenPipeError:
            raise
        except Exception as error:
            raise _ended(_unexpected(error), FAILED, error, as_json, debug) from error


def _ended(text: str, code: int, error: BaseException, as_json: bool, debug: bool) -> typer.Exit:
    text = " ".join(text.split())
    if as_json:
        _print_json({"error": {"kind": type(error).__name__, "message": text, "exit_code": code}})
    if debug:
        traceback.print_exception(error)
    print(text, file=sys.stderr)
    return typer.Exit(code)


def _unexpected(error: Exception) -> str:
    """The user's code may raise anything; so may a bug of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = f" at {last.filename}:{last.lineno}" if last else ""
    notes = " ".join(getattr(error, "__notes__", []))
    return (
        f"Error: unexpected {type(error).__name__}: {error}{where}. {notes} If that is not a line of "
        "your own code, it is a bug in prunekit; run the command again with --debug for the traceback."
    )


@contextlib.contextmanager
def _printing_elsewhere(as_json: bool) -> Iterator[None]:
    """With --json, what the user's code prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _watching(as_json: bool) -> Iterator[Any]:
    """Bars on a terminal; elsewhere lines on stderr."""
    if as_json or not sys.stdout.isatty():
        yield Lines()
        return
    with Bars(Console()) as bars:
        yield bars


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=2, allow_nan=False))


def _outcome_values(outcome: Outcome) -> dict[str, Any]:
    return {
        "accepted": outcome.accepted,
        "gates": [asdict(gate) for gate in outcome.gates],
        "rows": [asdict(row) for row in outcome.rows],
        "notes": list(outcome.notes),
        "report": str(outcome.report),
        "run_dir": str(outcome.run_dir),
    }


def _inspection_values(found: Inspection) -> dict[str, Any]:
    from prunekit.workflow import describe

    return {
        "name": found.name,
        "model": found.model,
        "cost": asdict(found.cost),
        **describe(found.groups, found.frozen),
    }


def _print_machine(machine: Machine) -> None:
    from prunekit.workflow import machine_headline, machine_tables

    console = terminal.console()
    console.print(machine_headline(machine), highlight=False)
    for part in machine_tables(machine):
        table = Table(*part.columns, box=SIMPLE_HEAD, title=part.title)
        for row in part.rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for sentence in machine.advice:
        console.print(Text(sentence))


def _print_outcome(outcome: Outcome) -> None:
    console = terminal.console()
    terminal.print_rows(console, outcome.rows, outcome.notes)
    if outcome.gates:
        gates = Table("gate", "", "reason", box=SIMPLE_HEAD)
        for gate in outcome.gates:
            gates.add_row(
                gate.name, "[green]passed[/]" if gate.passed else "[red]failed[/]", Text(gate.reason)
            )
        console.print(gates)
    verdict = "[green]Accepted[/]" if outcome.accepted else "[red]Refused[/]"
    why = "" if outcome.gates else ": the recipe has no gates"
    console.print(f"{verdict}{why}. Report: ", end="")
    print(outcome.report)


def _headline(found: Inspection) -> str:
    cost = found.cost
    return f"{found.name}: {found.model}, {cost.params:,} parameters, {cost.macs:,} MACs per example"


def _print_slices(found: Inspection) -> None:
    from prunekit.graph.describe import describe

    print(_headline(found), describe(found.groups, found.frozen), sep="\n\n")


def _print_inspection(found: Inspection) -> None:
    console = terminal.console()
    console.print(_headline(found), highlight=False)
    groups = Table("group", "kind", "units", "blocks", "tensors", box=SIMPLE_HEAD, title="Prunable")
    for group in found.groups:
        more = f" and {len(group.tensors) - 4} more" if group.tensors[4:] else ""
        tensors = ", ".join(group.tensors[:4]) + more
        blocks = str(group.blocks) if group.blocks > 1 else ""
        groups.add_row(Text(group.name), group.granularity.value, str(group.size), blocks, Text(tensors))
    console.print(groups)
    because: dict[tuple[str, str, str], list[str]] = {}
    for item in found.frozen:
        because.setdefault((item.reason, item.operator, item.source), []).append(f"{item.name} ({item.size})")
    console.print(Text("Frozen", style="italic"))
    for (reason, operator, source), axes in because.items():
        console.print(Text(f"\n  {', '.join(axes)}", style="bold"))
        console.print(Text(f"  {reason} [{operator}]"))
        if source:
            console.print(Text(f"  {source}", style="dim"), soft_wrap=True)


if __name__ == "__main__":
    main()
