"""Progress bars with the time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tenflex.planning.planner import SIZE
from tenflex.progress import Progress as Step
from tenflex.shown import in_words


class Bars:
    """Bars on stderr for what a callback is told: the present block, and all of them; silent when not on a terminal.

    Args:
        total: The number of blocks, or of whatever a task is.
        unit: What they are called.

    Example:
        >>> with Bars(1) as bars:
        ...     bars(Step("refine", 3, 10, 0.04, "fc1:fc3"))
    """

    def __init__(self, total: int, unit: str = "blocks") -> None:
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[error]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.whole = self.progress.add_task(unit, total=total, visible=total > 1, error="")
        self.part = self.progress.add_task("", total=None, error="")
        self.begun: list[str] = []
        self.phase = ("", False)

    def __enter__(self) -> Bars:
        if not self.progress.disable:
            self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.progress.disable:  # else some versions of rich end with an empty line
            self.progress.stop()

    def __call__(self, step: Step) -> None:
        """Show a step."""
        if step.stage == SIZE:  # of a plan, whose end is known before it begins
            if step.done == 0 and not self.progress.disable:
                self.progress.console.print(f"{step.total} sizes of blocks will be tried for the plan")
            self.progress.update(self.whole, description="sizes", total=step.total, completed=step.done, visible=True)
            return
        if step.seconds is not None:
            if not self.progress.disable:
                told = f"{step.task}: about {in_words(step.seconds)}"
                self.progress.console.print(told, markup=False, highlight=False)
            return
        if step.task and step.task not in self.begun:  # reading inputs is no block's
            self.begun.append(step.task)
            self.progress.update(self.whole, completed=len(self.begun) - 1)
        phase = (step.task, step.error is None)
        if phase != self.phase:  # a new bar, which forgets how fast the last one was
            self.phase = phase
            self.progress.reset(self.part, total=step.total)
        error = "" if step.error is None else f"error {step.error**0.5:.3f}"
        self.progress.update(self.part, completed=step.done, description=str(step), error=error)
