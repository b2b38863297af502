"""Outcomes as a table for people and as plain values for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnplug.networks.report import bytes_text, count_text
from nnplug.testing.conformance import Outcome
from nnplug.testing.costs import Costs, StepTime

_CELLS = {"passed": ("ok", "green"), "failed": ("FAILED", "bold red"), "skipped": ("skipped", "yellow")}
_EXEMPT = ("exempt", "yellow")


def print_checks(name: str, outcomes: Sequence[Outcome], console: Console) -> None:
    """One trainer: a table of its checks by plan, then what failed, was skipped, is exempt."""
    plans = list(dict.fromkeys(_plan(outcome) for outcome in outcomes))
    table = Table(box=None, pad_edge=False, title=name, title_justify="left")
    table.add_column("check")
    for plan in plans:
        table.add_column(plan)
    rows: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(_bare(outcome), {})[_plan(outcome)] = outcome
    for check, by_plan in rows.items():
        table.add_row(check, *(_cell(by_plan.get(plan)) for plan in plans))
    console.print(table)
    print_remarks(outcomes, console)


def print_remarks(outcomes: Sequence[Outcome], console: Console) -> None:
    """What is to be said of single checks, failures first."""
    for status in ("failed", "exempt", "skipped"):
        alike: dict[tuple[str, str], list[str]] = {}
        for outcome in outcomes:
            if outcome.status == status:
                alike.setdefault((outcome.check.resolved.name, outcome.message), []).append(outcome.check.name)
        for (trainer, message), checks in alike.items():
            console.print(Text(f"{trainer}: {', '.join(checks)}: {status}", "bold"))
            console.print(Text("\n".join(f"  {line}" for line in message.splitlines())))
    for outcome in outcomes:
        if outcome.status == "passed" and outcome.message:
            console.print(Text(f"{outcome.check.name}: {outcome.message}"))


def print_summary(trainers: Sequence[tuple[str, Sequence[Outcome]]], console: Console) -> None:
    """One line a trainer: how many checks, how long, what its network costs."""
    table = Table(box=None, pad_edge=False)
    for heading in ("trainer", "passed", "failed", "exempt", "skipped", "seconds"):
        table.add_column(heading, justify="left" if heading == "trainer" else "right", no_wrap=True)
    if any(_measured(outcomes) for _, outcomes in trainers):
        for heading in ("patch", "parameters", "multiply-adds", "peak memory", "s a step"):
            table.add_column(heading, justify="right", no_wrap=True)
    for name, outcomes in trainers:
        counts = Counter(outcome.status for outcome in outcomes)
        seconds = sum(outcome.seconds for outcome in outcomes)
        statuses = [str(counts[status] or "-") for status in ("passed", "failed", "exempt", "skipped")]
        first = [name, *statuses, f"{seconds:.1f}"]
        measured = _measured(outcomes)
        if not measured:
            table.add_row(*first)
        for costs, step in measured:
            patch = "x".join(map(str, costs.input_shape[2:]))
            adds = "unknown" if costs.multiply_adds is None else count_text(costs.multiply_adds)
            time = "-" if step is None else f"{step.seconds:.2f}"
            table.add_row(*first, patch, count_text(costs.num_parameters), adds, bytes_text(costs.peak_bytes), time)
            first = [""] * len(first)
    console.print(table)


def as_plain(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One trainer for JSON."""
    return {
        "trainer": name,
        "passed": not any(outcome.status == "failed" for outcome in outcomes),
        "seconds": sum(outcome.seconds for outcome in outcomes),
        "checks": [
            {
                "name": outcome.check.name,
                "status": outcome.status,
                "message": outcome.message,
                "seconds": outcome.seconds,
            }
            for outcome in outcomes
        ],
        "costs": [
            {
                "input_shape": list(costs.input_shape),
                "parameters": costs.num_parameters,
                "multiply_adds": costs.multiply_adds,
                "peak_bytes": costs.peak_bytes,
                "step_seconds": None if step is None else step.seconds,
            }
            for costs, step in _measured(outcomes)
        ],
    }


def _measured(outcomes: Sequence[Outcome]) -> list[tuple[Costs, StepTime | None]]:
    steps = [outcome.measured for outcome in outcomes if isinstance(outcome.measured, StepTime)]
    by_shape = {step.input_shape: step for step in steps}
    costs = [outcome.measured for outcome in outcomes if isinstance(outcome.measured, Costs)]
    return [(one, by_shape.get(one.input_shape)) for one in costs]


def _bare(outcome: Outcome) -> str:
    return outcome.check.name.partition("[")[0]


def _plan(outcome: Outcome) -> str:
    return outcome.check.name.partition("[")[2].rstrip("]")


def _cell(outcome: Outcome | None) -> Text:
    if outcome is None:
        return Text("")
    text, style = _CELLS.get(outcome.status, _EXEMPT)
    return Text(text, style)
