"""``nnplug evaluate``: how good predictions are, for each case and class."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug evaluate labelsTs predictions
  nnplug evaluate labelsTs predictions -djfile dataset.json -pfile plans.json -o summary.json --csv table.csv
  nnplug evaluate nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__2d/fold_0 --csv fold_0.csv
"""
#: The surface Dice was made for tolerances of a few voxels.
_MANY_VOXELS = 5


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="compare predictions with the truth: Dice, IoU, surfaces, instances",
        description="Dice, IoU, surface Dice and HD95 of every case and class, and their means. Exit code 2 where "
        "files are missing or do not fit together.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("gt_folder", metavar="TRUTH", type=Path, help="folder with the true segmentations, or a fold of a model")
    add("pred_folder", metavar="PREDICTIONS", nargs="?", type=Path, help="folder with the predictions")
    add("-djfile", metavar="FILE", type=Path, help="dataset.json (default: beside the predictions)")
    add("-pfile", metavar="FILE", type=Path, help="plans.json (default: beside the predictions, if any)")
    add(
        "-o",
        dest="output",
        metavar="FILE",
        type=Path,
        help="default: summary.json beside the predictions; for a fold none",
    )
    add("--csv", metavar="FILE", type=Path, help="write a table, one row for a case and class")
    add(
        "--tolerance",
        metavar="MM",
        type=float,
        default=1.0,
        help="of the surface Dice, in mm (default: %(default)s)",
    )
    add("--no-surface", action="store_true", help="no surface Dice and HD95: faster for large images")
    add("--instances", action="store_true", help="compare connected components: panoptic quality, F1, counts")
    add("--chill", action="store_true", help="leave out cases that have no prediction")
    add("-np", dest="num_processes", metavar="N", type=int, help="processes; 0 uses none (default: up to 8)")
    add("--no_pbar", action="store_true", help="no progress bar")
    add(
        "--cache-dir", metavar="DIR", type=Path, help="for a fold: in place of nnUNet_preprocessed, as for an inventory"
    )
    add("--json", action="store_true", help="print only the result, as JSON, on standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from nnplug.cli import import_quickly, stdout_for_json
    from nnplug.cli.inventory import set_folders
    from nnplug.files.json_files import as_plain_json

    set_folders(args)
    output = args.output
    if output is None and args.pred_folder is not None:
        output = args.pred_folder / "summary.json"
    with stdout_for_json(args.json):
        result = import_quickly("nnplug.evaluation.evaluating").evaluate(
            args.gt_folder,
            args.pred_folder,
            dataset_json=args.djfile,
            plans=args.pfile,
            output=output,
            csv=args.csv,
            tolerance_mm=args.tolerance,
            surfaces=not args.no_surface,
            instances=args.instances,
            allow_missing=args.chill,
            num_processes=args.num_processes,
            progress_bar=not args.no_pbar,
        )
    if args.json:
        print(json.dumps(as_plain_json(result, nan_as_null=True), indent=2))
        return 0
    _print(result, [path for path in (output, args.csv) if path is not None])
    return 0


def _print(result: dict[str, Any], files: list[Path]) -> None:
    from nnplug.evaluation.tables import print_means, undefined_distances
    from nnplug.problems import count

    print_means(result)
    print(f"Means over {count(len(result['metric_per_case']), 'case')}; a case without the class is left out.")
    for name, number in undefined_distances(result).items():
        print(f"HD95 of {name} leaves out {count(number, 'case')} in which only truth or prediction has it.")
    voxels = result["settings"]["tolerance_voxels"] or 0
    if voxels > _MANY_VOXELS:
        tolerance = result["settings"]["tolerance_mm"]
        print(f"Surfaces count as equal within {tolerance:g} mm, which is {voxels:g} voxels here. Set --tolerance MM.")
    for path in files:
        print(f"Written: {path}")
