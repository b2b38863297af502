"""``nnplug ensemble``: average the probabilities of several predictions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug predict -i imagesTs -o first -d 4 -c 2d --save_probabilities
  nnplug predict -i imagesTs -o second -d 4 -c 3d_fullres --save_probabilities
  nnplug ensemble -i first second -o predictions
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "ensemble",
        help="average the probabilities of several predictions",
        description="Average predictions that were made with --save_probabilities, as nnUNetv2_ensemble does.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("-i", dest="inputs", metavar="FOLDER", nargs="+", type=Path, required=True, help="folders of predictions")
    add("-o", dest="output", metavar="OUT", type=Path, required=True, help="folder for the segmentations")
    add("-np", dest="num_processes", metavar="N", type=int, help="processes; 0 uses none (default: up to 8)")
    add("--save_npz", action="store_true", help="also write the averaged probabilities")
    add("--no_pbar", action="store_true", help="no progress bar")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from nnplug.cli import import_quickly

    outputs = import_quickly("nnplug.prediction.ensembling").ensemble(
        args.inputs,
        args.output,
        save_probabilities=args.save_npz,
        num_processes=args.num_processes,
        progress_bar=not args.no_pbar,
    )
    print(f"{len(outputs)} segmentations in {args.output}.")
    return 0
