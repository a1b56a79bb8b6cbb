"""How a run tells how far it is: bars on a terminal, lines for a log."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SHOW_AFTER_S = 2.0
FIRST_TIME = "it has not run yet"
"""Why a stage runs of which there is nothing to say."""


class Lines:
    """A plain line on stderr whenever a stage begins or ends."""

    def begins(self, stage: str, why: str) -> None:
        """Say so, and why if the stage had run before."""
        self._say(stage, "begins" if why == FIRST_TIME else f"begins again; {why}")

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say nothing: a log has a line for each stage, not for each step."""

    def ends(self, stage: str, seconds: float) -> None:
        """Say so, and how long it took."""
        self._say(stage, f"done in {in_words(seconds)}")

    def kept(self, stage: str) -> None:
        """Say that it had been done before."""
        self._say(stage, "done before")

    def removed(self, stage: str) -> None:
        """Say that its result was removed."""
        self._say(stage, "removed; it is no longer part of the run")

    def _say(self, stage: str, what: str) -> None:
        print(f"{stage}: {what}", file=sys.stderr, flush=True)


class Remaining(ProgressColumn):
    """The remaining time, once a stage has taken two seconds and its steps are known."""

    def __init__(self) -> None:
        super().__init__()
        self._time = TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        """Show the time, or nothing yet."""
        if task.total is None or (task.elapsed or 0.0) < SHOW_AFTER_S:
            return Text("")
        return Text.assemble(self._time.render(task), " left")


class Bars:
    """A line for each stage on the terminal: a bar while it runs, its time once it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            Remaining(),
            console=console,
            transient=True,
        )
        self._task: Any = None

    def __enter__(self) -> Bars:
        self._open("preparing")
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def begins(self, stage: str, why: str) -> None:
        """Open the stage's line; say why it runs if it had run before."""
        if why != FIRST_TIME:
            self._say(f"[yellow]again[/]  {stage}", f"[dim]{why}[/]")
        self._open(stage)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total)

    def ends(self, stage: str, seconds: float) -> None:
        """Turn the bar into a line with the time."""
        self._open("")
        self._say(f"[green]done[/]   {stage.ljust(18)}", f"[dim]{in_words(seconds)}[/]")

    def kept(self, stage: str) -> None:
        """Say that the stage is current."""
        self._say(f"[dim]kept[/]   {stage}", "")

    def removed(self, stage: str) -> None:
        """Say that the stage was dropped."""
        self._say(f"[yellow]gone[/]   {stage}", "[dim]no longer part of the run[/]")

    def _open(self, stage: str) -> None:
        """Put the one live line to ``stage``."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(stage.ljust(18), total=None, visible=bool(stage))

    def _say(self, what: str, aside: str) -> None:
        self._console.print(f"{what}  {aside}".rstrip(), highlight=False)


def in_words(value: float) -> str:
    """Seconds as a reader says them."""
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60)} s"
