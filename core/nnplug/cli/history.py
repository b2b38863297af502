"""``nnplug history``: losses, Dice, learning rate and times of a run, by epoch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug history nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0
  nnplug history MODEL_FOLDER/fold_0 --csv history.csv --plot history.pdf
"""

_MOST_CLASSES_IN_TABLE = 4
_WIDTH_WITHOUT_TERMINAL = 200


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "history",
        help="losses, Dice, learning rate and times of a run, by epoch",
        description="Losses, Dice, learning rate and times by epoch, of any run of nnplug or nnU-Net, finished or not.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a fold, or a model folder with one fold")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write a table, one row an epoch")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw a figure (.png, .pdf or .svg)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Read, then write what was asked for; without a flag print a table."""
    from nnplug.history import load_history, write_csv
    from nnplug.json_files import as_plain_json

    history = load_history(args.run)
    for message in history.messages:
        print(f"nnplug: {message}", file=sys.stderr)
    if args.csv is not None:
        write_csv(history.rows, args.csv)
    if args.plot is not None:
        from nnplug.history.plot import plot_history

        plot_history(history.rows, args.plot)
    if args.json:
        content = {"sources": [str(path) for path in history.sources], "epochs": history.rows}
        print(json.dumps(as_plain_json(content, nan_as_null=True), indent=2))
    elif args.csv is None and args.plot is None:
        _print_table(history.rows, [path.name for path in history.sources])
    return 0


def _print_table(rows: Sequence[dict[str, Any]], sources: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    classes = [column for column in rows[0] if column.startswith("dice_")]
    hidden = set(classes if len(classes) > _MOST_CLASSES_IN_TABLE else ())
    columns = [column for column in rows[0] if column not in hidden]
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " ") if column not in classes else column, justify="right")
    for row in rows:
        table.add_row(*(_cell(column, row[column]) for column in columns))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False)
    console.print(table)
    best = max(rows, key=lambda row: (row["ema_dice"] == row["ema_dice"], row["ema_dice"]))
    console.print(f"Best moving average of the Dice: {best['ema_dice']:.4f} in epoch {best['epoch']}.", markup=False)
    console.print(f"From {', '.join(sources)}.", markup=False)
    if hidden:
        console.print(f"The Dice of {len(classes)} classes is in --csv and --json.", markup=False)


def _cell(column: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if column == "epoch_seconds":
        return f"{value:.1f}"
    return f"{value:.3g}" if column == "learning_rate" else f"{value:.4f}"
