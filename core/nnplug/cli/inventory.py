"""``nnplug inventory make`` and ``check``, and the options with which every command takes an inventory."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnplug.inventory.checking import CaseReport
    from nnplug.inventory.loading import Inventory
    from nnplug.planning.data import PlanningData
    from nnplug.processes.case_pool import Pool

EXAMPLE = """example:
  nnplug inventory make scans -o inventory.json --images '{case}/t1.nii.gz' '{case}/flair.nii.gz' \\
      --label '{case}/seg.nii.gz' --channels T1 FLAIR --labels background lesion
  nnplug inventory check inventory.json --overview overview.png
"""
EXAMPLE_MAKE = """examples, by where the files are:
  nnplug inventory make DatasetXXX_NAME -o inventory.json
  nnplug inventory make scans -o inventory.json --images '{case}_{channel}.nii.gz' --label '{case}_mask.nii.gz'
  nnplug inventory make bids -o inventory.json --images 'sub-{case}/anat/sub-{case}_T1w.nii.gz' \\
      --label 'derivatives/masks/sub-{case}/anat/sub-{case}_*mask.nii.gz'
  nnplug inventory make --csv table.csv -o inventory.json
"""
_PRELOAD = ("nnplug.inventory.checking",)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "inventory",
        help="describe a data set in a file, and check it",
        description="An inventory is a JSON file that says where the images and labels of a data set are.",
        epilog=EXAMPLE,
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_make(actions)
    _add_check(actions)


def _add_make(actions: Any) -> None:
    parser = actions.add_parser(
        "make",
        help="make an inventory of the files of a folder or a table",
        description="Find the files of each case by patterns and write an inventory. {case} stands for the case's "
        "name, {channel} for a channel, * for anything within a name. Without patterns the folder has imagesTr and "
        "labelsTr, or images and labels.",
        epilog=EXAMPLE_MAKE,
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", nargs="?", type=Path, help="folder with the files")
    add("-o", dest="output", metavar="FILE", type=Path, required=True, help="the inventory (.json)")
    add("--images", metavar="PATTERN", nargs="+", help="one with {channel}, or one for each channel in its order")
    add("--label", metavar="PATTERN", help="pattern of the labels")
    add("--csv", metavar="FILE", type=Path, help="a table with the columns case, label and one for each channel")
    add("--channels", metavar="NAME", nargs="+", help="names of the channels; CT and others choose a normalisation")
    add("--labels", metavar="NAME", nargs="+", help="names of the values 0 (background), 1, 2, ..., or NAME=VALUE")
    add("--skip-incomplete", action="store_true", help="leave out cases without label or channel, and name them")
    add("--overwrite", action="store_true", help="replace an inventory that is there")
    _add_running(parser)
    parser.set_defaults(func=run_make)


def _add_check(actions: Any) -> None:
    parser = actions.add_parser(
        "check",
        help="check every rule on every file",
        description="Check the description, the headers and every voxel, and list all problems. Exit code 2 where "
        "there are some.",
        epilog=EXAMPLE,
    )
    parser.add_argument("path", metavar="FILE", type=Path, help="an inventory, or the folder of a raw data set")
    parser.add_argument("--overview", metavar="FILE", type=Path, help="draw a slice of every case with its labels")
    parser.add_argument("--headers", action="store_true", help="only the headers, not the voxels")
    _add_running(parser)
    parser.set_defaults(func=run_check)


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-np", dest="num_processes", metavar="N", type=int, help="processes (default: one a core)")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")


# --- running ---------------------------------------------------------------------------------------------------------


def run_make(args: argparse.Namespace) -> int:
    from nnplug.conversion.describing import parse_regions
    from nnplug.errors import NnplugError
    from nnplug.inventory.making import Source, make_inventory, write_inventory
    from nnplug.problems import count

    if (args.folder is None) == (args.csv is None):
        raise NnplugError("Where are the files? Give a FOLDER or --csv FILE, one of them.")
    if args.output.exists() and not args.overwrite:
        raise NnplugError(f"{args.output} is there already. Give --overwrite to replace it, or another name.")
    source = Source(
        folder=args.folder or args.csv.parent,
        image_patterns=args.images,
        label_pattern=args.label,
        table=args.csv,
        channels=args.channels,
        labels=parse_regions(args.labels) if args.labels else None,
        skip_incomplete=args.skip_incomplete,
    )
    inventory = make_inventory(source, _pool(args, 1 << 30))
    write_inventory(inventory, args.output, overwrite=args.overwrite)
    labels = ", ".join(f"{name} {value}" for name, value in inventory.labels.items())
    print(f"{args.output}: {count(len(inventory.cases), 'case')}, channels {', '.join(inventory.channel_names)}.")
    print(f"Labels: {labels}.\nCheck it with: nnplug inventory check {args.output}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    from nnplug.inventory.checking import check_cases
    from nnplug.inventory.loading import load_inventory, load_raw_folder
    from nnplug.inventory.overview import write_overview
    from nnplug.problems import count, raise_problems

    inventory, problems = load_raw_folder(args.path) if args.path.is_dir() else load_inventory(args.path)
    if inventory.converted:
        print(f"The description is in the Decathlon's style: {'; '.join(inventory.converted)}.")
    pool = _pool(args, len(inventory.cases))
    reports, found = check_cases(inventory, pool, voxels=not args.headers, pictures=args.overview is not None)
    _print_table(inventory, reports)
    if args.overview is not None:
        pictures = {name: report.picture for name, report in reports.items() if report.picture is not None}
        write_overview(args.overview, pictures)
        print(f"{args.overview}: a slice of {count(len(pictures), 'case')}.")
    raise_problems(args.path, [*problems, *found])
    what = "headers" if args.headers else "files"
    print(f"No problem in the {what} of {count(len(reports), 'case')}.")
    return 0


def _pool(args: argparse.Namespace, num_cases: int) -> Pool:
    from nnplug.processes.case_pool import Pool, choose_num_processes

    number = choose_num_processes(args.num_processes, None, num_cases)
    return Pool(number, progress_bar=not args.no_pbar, preload=_PRELOAD)


def _print_table(inventory: Inventory, reports: dict[str, CaseReport]) -> None:
    from rich.table import Table

    from nnplug.console import table_console

    table = Table(box=None, pad_edge=False)
    values = {name: value for name, value in inventory.labels.items() if isinstance(value, int) and value > 0}
    for column in ("case", "voxels", "spacing mm", *values, "problems"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, report in reports.items():
        size = "x".join(map(str, report.headers.size or ()))
        spacing = "x".join(f"{value:.4g}" for value in report.headers.spacing_mm or ())
        counts = [str((report.label_voxels or {}).get(value, "")) for value in values.values()]
        table.add_row(name, size, spacing, *counts, str(len(report.problems) or ""))
    table_console().print(table)


# --- options of other commands ---------------------------------------------------------------------------------------


def add_inventory_options(parser: argparse.ArgumentParser, *, results: bool = False) -> None:
    """``--inventory``, ``--dataset-id``, ``--dataset-name``, ``--cache-dir``; ``--results-dir`` too for ``results``."""
    group = parser.add_argument_group("data described by an inventory, in place of nnU-Net's folders")
    add = group.add_argument
    add("--inventory", metavar="FILE", type=Path, help="JSON file that names the images and labels; nothing is copied")
    add("--dataset-id", metavar="N", type=int, help="id of the data set, 0 to 999")
    add("--dataset-name", metavar="NAME", help="name of the data set (default: the inventory's)")
    add("--cache-dir", metavar="DIR", type=Path, help="folder for what is made, as nnUNet_raw and nnUNet_preprocessed")
    if results:
        add("--results-dir", metavar="DIR", type=Path, help="folder for trained models, as nnUNet_results")


def choose_data(args: argparse.Namespace) -> list[PlanningData]:
    """The data sets of a command that has no other way to name them than ``-d`` and the options of an inventory.

    Raises:
        NnplugError: none or both are given; there are problems with one.
    """
    from nnplug.errors import NnplugError
    from nnplug.planning.data import find_raw_data

    if args.inventory is not None:
        if args.datasets:
            raise NnplugError("-d names data sets in nnUNet_raw, --inventory is a data set itself. Give one of them.")
        return [open_for_work(args)]
    if not args.datasets:
        raise NnplugError("Which data set? Give -d ID, or --inventory FILE --dataset-id N --cache-dir DIR.")
    if args.dataset_id is not None or args.dataset_name is not None:
        raise NnplugError("--dataset-id and --dataset-name belong to an inventory. Give --inventory FILE too.")
    set_folders(args)
    return [find_raw_data(dataset) for dataset in args.datasets]


def open_for_work(args: argparse.Namespace) -> PlanningData:
    """The inventory of the options, with nnU-Net's variables set for this process and those that it starts.

    Raises:
        NnplugError: an option is missing; the inventory has problems, all of which are named.
    """
    from nnplug.errors import NnplugError
    from nnplug.planning.data import open_inventory
    from nnplug.problems import raise_problems

    missing = [
        option
        for option, value in (("--dataset-id N", args.dataset_id), ("--cache-dir DIR", args.cache_dir))
        if value is None
    ]
    if missing:
        raise NnplugError(f"--inventory needs {' and '.join(missing)} too.")
    data, problems = open_inventory(args.inventory, args.dataset_id, args.dataset_name, args.cache_dir)
    raise_problems(args.inventory, problems)
    set_folders(args)
    return data


def choose_training_data(args: argparse.Namespace) -> None:
    """Make ``args.dataset`` the name of an inventory's data set and set nnU-Net's variables; nothing without one.

    DATASET may be left out where ``--dataset-id`` is given.

    Raises:
        NnplugError: as ``open_for_work``; the data is not planned, or has changed since.
    """
    from nnplug.errors import NnplugError

    if args.inventory is None:
        set_folders(args)
        return
    from nnplug.datasets import dataset_id

    number = dataset_id(args.dataset)
    named = number is not None
    if args.dataset_id is None:
        args.dataset_id = number
    if not named:
        args.configuration, args.fold = args.dataset, [args.configuration, *args.fold]
    from nnplug.planning.data_record import FINGERPRINT, check_unchanged

    data = open_for_work(args)
    is_it = number == dataset_id(data.name) if args.dataset.isdecimal() else args.dataset == data.name
    if named and not is_it:
        raise NnplugError(f"DATASET is {args.dataset}, and the inventory is {data.name}. Leave DATASET out.")
    if not os.environ.get("nnUNet_results"):
        raise NnplugError("--inventory needs --results-dir DIR too, the folder for trained models.")
    if not (data.folder / FINGERPRINT).is_file():
        raise NnplugError(
            f"{data.folder} is not planned yet. Run nnplug plan_and_preprocess with the same --inventory, "
            "--dataset-id, --dataset-name and --cache-dir first."
        )
    check_unchanged(data)
    args.dataset = data.name


def choose_inputs(args: argparse.Namespace) -> None:
    """Make ``args.inputs`` the images to predict and ``args.dataset`` that of the model.

    Raises:
        NnplugError: neither a folder nor an inventory is given, or both; no data set.
    """
    from nnplug.errors import NnplugError
    from nnplug.planning.data import dataset_name

    inventory = getattr(args, "inventory", None)
    if (args.inputs is None) == (inventory is None):
        raise NnplugError("Which images? Give -i FOLDER or --inventory FILE, one of them.")
    args.inputs = args.inputs or inventory
    if "dataset" not in args:
        return
    set_folders(args)
    if args.dataset is None and args.dataset_id is None:
        raise NnplugError("Which data set is the model of? Give -d ID, or --dataset-id N.")
    if args.dataset is None:
        named = args.dataset_name is not None
        args.dataset = dataset_name(args.dataset_id, args.dataset_name) if named else str(args.dataset_id)


def folder_option(option: str, folder: Path | None) -> str:
    """The option for a command to be shown, with a blank in front; nothing where nnU-Net's variables are used."""
    return f" {option} {shlex.quote(str(folder))}" if folder is not None else ""


def set_folders(args: argparse.Namespace) -> None:
    """Put ``--cache-dir`` and ``--results-dir`` into nnU-Net's variables."""
    cache, results = args.cache_dir, getattr(args, "results_dir", None)
    for variable, folder in (("nnUNet_raw", cache), ("nnUNet_preprocessed", cache), ("nnUNet_results", results)):
        if folder is not None:
            os.environ[variable] = os.path.abspath(folder)
