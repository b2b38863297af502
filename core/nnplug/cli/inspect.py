"""``nnplug inspect``: one preprocessed case, as a training reads it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug inspect case_0 -d 4 -c 3d_fullres --picture case_0.png
  nnplug inspect case_0 --inventory inventory.json --dataset-id 4 --cache-dir cache --json
"""


def add_parser(subparsers: Any) -> None:
    from nnplug.cli.inventory import add_inventory_options

    parser = subparsers.add_parser(
        "inspect",
        help="show a preprocessed case",
        description="Show what a training reads of a case: size, spacing, channels after normalisation, voxels of each "
        "label, crop box, size on disk, a picture.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("case", metavar="CASE", help="name of the case")
    add("-d", dest="dataset", metavar="DATASET", help="id or name of the data set")
    add("-c", dest="configuration", metavar="CONFIGURATION", help="default: 3d_fullres, or one that is preprocessed")
    add("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
    add("--picture", metavar="FILE", type=Path, help="draw slices with the outlines of the labels (PNG)")
    add("--json", action="store_true", help="print JSON")
    add_inventory_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from nnplug.cli import import_quickly

    folder = _data_folder(args)
    preprocessed_case = import_quickly("nnplug.planning.preprocessed_case")
    case = preprocessed_case.open_case(folder, args.case, args.plans, args.configuration)
    report = preprocessed_case.describe_case(case)
    if args.picture is not None:
        from nnplug.inventory.overview import write_overview

        write_overview(args.picture, preprocessed_case.draw(case), preprocessed_case.PICTURE_SIDE)
        report["picture"] = str(args.picture)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def _data_folder(args: argparse.Namespace) -> Path:
    from nnplug.cli.inventory import open_for_work, set_folders
    from nnplug.datasets import environment_folder, find_dataset
    from nnplug.errors import NnplugError

    if args.inventory is not None:
        if args.dataset is not None:
            raise NnplugError("-d names a preprocessed data set, --inventory is one itself. Give one of them.")
        return open_for_work(args).folder
    if args.dataset is None:
        raise NnplugError("Which data set? Give -d ID, or --inventory FILE --dataset-id N --cache-dir DIR.")
    set_folders(args)
    return environment_folder("nnUNet_preprocessed") / find_dataset(args.dataset)


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    from nnplug.console import table_console

    box = ", ".join(f"{start}:{stop}" for start, stop in report["crop_box"])
    rows = {
        "data set": f"{report['dataset']}, {report['configuration']} of {report['plans']}",
        "folder": report["folder"],
        "voxels": f"{_by_axis(report['shape'])}, {report['dtype']}; labels {report['label_dtype']}",
        "spacing": f"{_by_axis(report['spacing_mm'])} mm, before {_by_axis(report['original_spacing_mm'])} mm",
        "crop box": f"[{box}] of {_by_axis(report['original_shape'])}" if box else "not known",
        "on disk": f"{report['bytes_on_disk'] / 1e6:.3g} MB",
    }
    if "picture" in report:
        rows["picture"] = report["picture"]
    print(report["case"])
    for name, text in rows.items():
        print(f"  {name:<8}  {text}")
    channels = Table(box=None, pad_edge=False)
    for column in ("channel", "normalisation", "mean", "std", "min", "max"):
        channels.add_column(column, justify="left" if column in ("channel", "normalisation") else "right")
    for row in report["channels"]:
        # a mean that rounding alone keeps from 0 is 0
        tiny = 1e-6 * max(abs(row["min"]), abs(row["max"]))
        numbers = (0.0 if abs(row[key]) < tiny else row[key] for key in ("mean", "std", "min", "max"))
        channels.add_row(row["name"], row["normalization"], *(f"{number:.4g}" for number in numbers))
    labels = Table(box=None, pad_edge=False)
    for column in ("label", "value", "voxels", "share"):
        labels.add_column(column, justify="left" if column == "label" else "right")
    for row in report["labels"]:
        values = ",".join(map(str, row["values"]))
        labels.add_row(row["name"], values, str(row["voxels"]), f"{100 * row['share']:.2f} %")
    console = table_console()
    for table in (channels, labels):
        print()
        console.print(table)


def _by_axis(values: list[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
