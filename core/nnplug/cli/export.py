"""``nnplug export``: trained models as a zip file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug export -d 4 -c 3d_fullres -tr monai_segresnet+num_epochs=250 -o model.zip
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "export",
        help="write trained models into a zip file",
        description="Write trained models into a zip file, for nnplug install and for "
        "nnUNetv2_install_pretrained_model_from_zip. The packages that they need are named in it.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("-d", dest="dataset", metavar="DATASET", required=True, help="id or name of the data set")
    add(
        "-o",
        dest="output",
        metavar="FILE",
        type=Path,
        required=True,
        help="the zip file; one that is there is replaced",
    )
    add("-c", dest="configurations", metavar="CONFIGURATION", nargs="+", help="default: all that were trained")
    add("-tr", dest="trainer", metavar="NAME", help="trainer, its terms in any order (default: the only one there is)")
    add("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
    add(
        "-f",
        dest="folds",
        metavar="FOLD",
        nargs="+",
        help="numbers, or fold_all. Default: fold_all or the folds of the cross-validation, whichever alone exists",
    )
    add(
        "-chk",
        dest="checkpoints",
        metavar="FILE",
        nargs="+",
        default=["checkpoint_final.pth"],
        help="checkpoints of each fold (default: checkpoint_final.pth)",
    )
    add("--not_strict", action="store_true", help="leave out configurations, folds and checkpoints that are missing")
    add("--exp_cv_preds", action="store_true", help="also the predictions of the cross-validation")
    add("--results-dir", metavar="DIR", type=Path, help="folder of trained models, in place of nnUNet_results")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from nnplug.sharing.exporting import export_models

    exported = export_models(
        args.dataset,
        args.output,
        configurations=args.configurations,
        trainer=args.trainer,
        plans=args.plans,
        folds=args.folds,
        checkpoints=args.checkpoints,
        strict=not args.not_strict,
        crossval_predictions=args.exp_cv_preds,
        results=args.results_dir,
    )
    for one in exported:
        print(f"{one.model.path.parent.name}/{one.model.path.name}: folds {' '.join(map(str, one.folds))}")
        if one.left_out:
            print(f"  left out, as it is missing: {', '.join(one.left_out)}")
        if one.first_stage:
            print(f"  needs the predictions of {one.first_stage}, which is not in the file: add it with -c")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB. To install it: nnplug install {args.output}")
    return 0
