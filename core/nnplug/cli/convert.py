"""``nnplug convert``: other layouts and formats to nnU-Net's, and predictions back."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnplug.case_pool import Pool
    from nnplug.conversion.running import Outcome

EXAMPLE = """examples:
  nnplug convert msd -i Task04_Hippocampus
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="turn other layouts and formats into nnU-Net's, and predictions back",
        description="Every file is checked before it is written, appears whole, and is never overwritten without "
        "--overwrite. A conversion that was interrupted goes on when it is run again.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_msd(actions)


def _add(actions: Any, name: str, summary: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return actions.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_target(parser: argparse.ArgumentParser, id_option: str = "--dataset-id", required: bool = True) -> None:
    add = parser.add_argument
    options = dict.fromkeys([id_option, *(["-overwrite_id", "--dataset-id"] if not required else [])])
    add(*options, dest="dataset_id", metavar="N", type=int, required=required, help="id of the new data set, 0 to 999")
    add("--dataset-name", metavar="NAME", required=required, help="its name, without DatasetXXX_")
    add("--raw-dir", metavar="DIR", type=Path, help="folder of data sets (default: nnUNet_raw)")


def _add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dry-run", action="store_true", help="read and check everything, write nothing")
    add("--overwrite", action="store_true", help="replace files that are there")
    add("-np", "-p", dest="num_processes", metavar="N", type=int, help="processes (default: one a core)")
    add("--no_pbar", action="store_true", help="no progress bar")


def _add_msd(actions: Any) -> None:
    parser = _add(
        actions,
        "msd",
        "a task folder of the Medical Segmentation Decathlon",
        "Convert TaskXX_NAME with 3D or 4D images into DatasetXXX_NAME. Volumes are copied; the channels of 4D images "
        "are split.",
        "example:\n  nnplug convert msd -i Task04_Hippocampus -output_task_id 104\n",
    )
    parser.add_argument("-i", dest="folder", metavar="FOLDER", type=Path, required=True, help="the task folder")
    _add_target(parser, "-output_task_id", required=False)
    _add_running(parser)
    parser.set_defaults(func=run_msd)


# --- running ---------------------------------------------------------------------------------------------------------


def run_msd(args: argparse.Namespace) -> int:
    from nnplug.conversion.decathlon import TaskFolder, convert_task

    task = TaskFolder(args.folder, args.raw_dir, args.dataset_id, args.dataset_name)
    return _report(args, convert_task(task, _pool(args), overwrite=args.overwrite, dry_run=args.dry_run))


def _pool(args: argparse.Namespace) -> Pool:
    from nnplug.case_pool import Pool, choose_num_processes
    from nnplug.conversion.running import PRELOAD

    number = choose_num_processes(args.num_processes, os.cpu_count() or 1, 1 << 30)
    return Pool(number, progress_bar=not args.no_pbar, preload=PRELOAD)


def _report(args: argparse.Namespace, outcome: Outcome) -> int:
    from nnplug.inventory.problems import count

    target, converted, num_cases = outcome.target, outcome.converted, outcome.num_cases
    if not converted:
        print(f"{target}: {count(num_cases, 'case')}, all of them converted before.")
    elif args.dry_run:
        print(f"{target}: {count(len(converted), 'case')} would be converted; no problem found.")
    else:
        before = num_cases - len(converted)
        print(f"{target}: {count(len(converted), 'case')} converted{f', {before} before' if before else ''}.")
    return 0
