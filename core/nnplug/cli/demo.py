"""``nnplug demo``: a whole session on real images."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug demo
  nnplug demo --dataset nnUNet_raw/Dataset004_Hippocampus -tr nnUNetTrainer nnUNetTrainerDA5 -o hippocampus_demo
"""


def add_parser(subparsers: Any) -> None:
    from nnplug.cli import complete_trainers

    parser = subparsers.add_parser(
        "demo",
        help="a whole session on real images, in minutes",
        description=(
            "Plan, preprocess, train and validate two trainers that differ only in -tr, predict held-out cases, "
            "compare. The images are blocks of one averaged brain (MNI152) that ships with nilearn: this shows that "
            "the pipeline works, not what a model is worth. Run again, it goes on where it stopped."
        ),
        epilog=EXAMPLE,
    )
    parser.add_argument("--dataset", metavar="FOLDER", type=Path, help="your raw data set DatasetXXX_NAME; only read")
    parser.add_argument(
        "-o", dest="output", metavar="FOLDER", type=Path, default=Path("demo_output"), help="default: ./%(default)s"
    )
    trainers = parser.add_argument(
        "-tr",
        dest="trainers",
        metavar="NAME",
        nargs="+",
        default=(),
        help="trainers to compare (default: nnU-Net's own and the smallest network that a plug-in brings)",
    )
    trainers.completer = complete_trainers
    parser.add_argument("--epochs", metavar="N", type=int, default=4, help="of each training (default: %(default)s)")
    parser.add_argument("--iterations", metavar="N", type=int, default=20, help="of each epoch (default: %(default)s)")
    parser.add_argument("-device", metavar="D", help="cuda, cpu or mps (default: what the machine has)")
    parser.add_argument("--json", action="store_true", help="print only the result, as JSON, on standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from nnplug.cli import stdout_for_json

    # nnU-Net reads this when it is imported, and starts as many processes that each import torch
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    with stdout_for_json(args.json):
        from nnplug.demo.pipeline import DemoSettings, run_demo

        settings = DemoSettings(
            output=args.output,
            dataset=args.dataset,
            trainers=tuple(args.trainers),
            num_epochs=args.epochs,
            num_iterations_per_epoch=args.iterations,
            device=args.device,
        )
        result = run_demo(settings)
    if args.json:
        print(json.dumps(result, indent=2))
    return 0
