"""``nnplug move_plans``: plans of one data set for another, for pretraining and fine-tuning."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug move_plans -s 7 -t 4 -sp nnUNetPlans -tp PlansOf7
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "move_plans",
        aliases=["move_plans_between_datasets"],
        help="give the plans of one data set to another",
        description="Give the plans of one data set to another, so that a network trained on one fits the other.",
        epilog=EXAMPLE,
    )
    from nnplug.cli.inventory import add_inventory_options

    add = parser.add_argument
    add("-s", dest="source", metavar="DATASET", required=True, help="id or name of the data set with the plans")
    add("-t", dest="datasets", metavar="DATASET", nargs=1, help="id or name of the raw data set that gets them")
    add("-sp", dest="source_plans", metavar="PLANS", required=True, help="the plans, for example nnUNetPlans")
    add("-tp", dest="target_plans", metavar="PLANS", help="their name at the target (default: the same)")
    add("--overwrite", action="store_true", help="replace plans of that name")
    add_inventory_options(parser, results=True)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Move."""
    from nnplug.cli import import_quickly
    from nnplug.cli.inventory import choose_data, folder_option
    from nnplug.errors import NnplugError

    if not args.datasets and args.inventory is None:
        raise NnplugError(
            "Which data set gets the plans? Give -t ID, or --inventory FILE --dataset-id N --cache-dir DIR."
        )
    [target] = choose_data(args)
    moving = import_quickly("nnplug.planning.moving")
    from nnplug.planning.plans_file import open_plans

    source = open_plans(args.source, args.source_plans)
    moved = moving.move_plans(source, target, args.target_plans, args.overwrite)
    print(f"{moved.path}: the plans '{source.name}' of {source.folder.name}")
    for note in moving.describe_differences(moved, source, target):
        print(note)
    configuration = _main_configuration(list(moved.plans["configurations"]))
    weights = _weights(source.folder.name, source.name, configuration)
    cache = folder_option("--cache-dir", args.cache_dir)
    folders = cache + folder_option("--results-dir", args.results_dir)
    print("Run:")
    print(f"  nnplug preprocess -d {target.name}{cache} -plans_name {moved.name} -c {configuration}")
    print(f"  nnplug train {target.name} {configuration} 0{folders} -p {moved.name} -pretrained_weights {weights}")
    return 0


def _main_configuration(names: list[str]) -> str:
    return "3d_fullres" if "3d_fullres" in names else names[0]


def _weights(dataset: str, plans: str, configuration: str) -> str:
    """A checkpoint of the source, or the word for one where nothing is trained yet."""
    from nnplug.planning.plans_file import trained_with

    checkpoints: list[Path] = []
    for model in trained_with(dataset, plans, configuration):
        checkpoints += sorted(
            model.glob("fold_*/checkpoint_final.pth"), key=lambda path: path.parent.name != "fold_all"
        )
    return str(checkpoints[0]) if checkpoints else "CHECKPOINT"
