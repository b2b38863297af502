"""``nnplug postprocess``: apply the post-processing that ``find_best`` has chosen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug postprocess -i predictions -o final \\
      -pp_pkl_file MODEL_FOLDER/crossval_results_folds_0_1_2_3_4/postprocessing.pkl
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "postprocess",
        help="apply the post-processing that find_best has chosen",
        description="Apply nnU-Net's post-processing to a folder of predictions, as nnUNetv2_apply_postprocessing "
        "does. The file is read without running what it may contain.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("-i", dest="inputs", metavar="FOLDER", type=Path, required=True, help="folder with predictions")
    add("-o", dest="output", metavar="OUT", type=Path, required=True, help="folder for the results")
    add("-pp_pkl_file", metavar="FILE", type=Path, required=True, help="nnU-Net's postprocessing.pkl")
    add("-np", dest="num_processes", metavar="N", type=int, help="processes; 0 uses none (default: up to 8)")
    add("-plans_json", metavar="FILE", type=Path, help="default: plans.json beside the predictions or the .pkl file")
    add("-dataset_json", metavar="FILE", type=Path, help="default: dataset.json in the same places")
    add("--no_pbar", action="store_true", help="no progress bar")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from nnplug.cli import import_quickly

    outputs = import_quickly("nnplug.prediction.postprocessing").postprocess(
        args.inputs,
        args.output,
        args.pp_pkl_file,
        dataset_json=args.dataset_json,
        plans=args.plans_json,
        num_processes=args.num_processes,
        progress_bar=not args.no_pbar,
    )
    print(f"{len(outputs)} segmentations in {args.output}.")
    return 0
