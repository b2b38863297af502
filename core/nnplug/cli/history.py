"""``nnplug history``: losses, Dice, learning rate and times of a run, by epoch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnplug.history.series import History

EXAMPLE = """example:
  nnplug history nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0
  nnplug history MODEL_FOLDER/fold_0 --csv history.csv --plot history.pdf
  nnplug history MODEL_FOLDER --plot folds.pdf           every fold of a model
  nnplug history MODEL_A/fold_0 MODEL_B/fold_0 --plot comparison.pdf
"""

_MOST_CLASSES_IN_TABLE = 4


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "history",
        help="losses, Dice, learning rate and times of a run, by epoch",
        description="Losses, Dice, learning rate and times by epoch, of any run of nnplug or nnU-Net, finished or not.",
        epilog=EXAMPLE,
    )
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="folder of a fold, or of a model: all its folds"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write a table, one row an epoch")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw a figure (.png, .pdf or .svg)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Read, then write what was asked for; without a flag print a table."""
    from nnplug.history import write_csv
    from nnplug.history.folds import join_folds, load_folds

    histories = load_folds(args.runs)
    for history in histories.values():
        for message in history.messages:
            print(f"nnplug: {message}", file=sys.stderr)
    rows = next(iter(histories.values())).rows if len(histories) == 1 else join_folds(histories)
    if args.plot is not None:  # first: it may refuse the file's suffix
        _plot(histories, args.plot)
    if args.csv is not None:
        write_csv(rows, args.csv)
    if args.json:
        _print_json(histories)
    elif args.csv is None and args.plot is None:
        _print_table(rows)
        _print_summary(histories)
    return 0


def _plot(histories: dict[Path, History], path: Path) -> None:
    from nnplug.history.folds import name_folds
    from nnplug.history.plot import plot_folds, plot_history

    if len(histories) == 1:
        plot_history(next(iter(histories.values())).rows, path)
    else:
        rows = [history.rows for history in histories.values()]
        plot_folds(dict(zip(name_folds(list(histories)), rows, strict=True)), path)


def _print_json(histories: dict[Path, History]) -> None:
    from nnplug.files.json_files import as_plain_json
    from nnplug.history.folds import label_folds

    runs = [
        {**label, "sources": [str(path) for path in history.sources], "epochs": history.rows}
        for label, history in zip(label_folds(list(histories)), histories.values(), strict=True)
    ]
    content = {"sources": runs[0]["sources"], "epochs": runs[0]["epochs"]} if len(runs) == 1 else {"runs": runs}
    print(json.dumps(as_plain_json(content, nan_as_null=True), indent=2))


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from nnplug.console import table_console

    classes = [column for column in rows[0] if column.startswith("dice_")]
    hidden = set(classes if len(classes) > _MOST_CLASSES_IN_TABLE else ())
    columns = [column for column in rows[0] if column not in hidden]
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " ") if column not in classes else column, justify="right")
    for row in rows:
        table.add_row(*(_cell(column, row[column]) for column in columns))
    console = table_console()
    console.print(table)
    if hidden:
        console.print(f"The Dice of {len(classes)} classes is in --csv and --json.", markup=False)


def _print_summary(histories: dict[Path, History]) -> None:
    """The best epoch of each fold, and the files that were read."""
    from nnplug.history.folds import name_folds

    for name, history in zip(name_folds(list(histories)), histories.values(), strict=True):
        best = max(history.rows, key=lambda row: (row["ema_dice"] == row["ema_dice"], row["ema_dice"]))
        where = f"{name}: " if len(histories) > 1 else ""
        print(f"{where}Best moving average of the Dice: {best['ema_dice']:.4f} in epoch {best['epoch']}.")
        print(f"{where}From {', '.join(path.name for path in history.sources)}.")


def _cell(column: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if column == "epoch_seconds":
        return f"{value:.1f}"
    return f"{value:.3g}" if column == "learning_rate" else f"{value:.4f}"
