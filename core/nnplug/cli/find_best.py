"""``nnplug find_best``: the best model or ensemble, its post-processing, and the commands to predict with it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  nnplug find_best 4 -tr nnUNetTrainer monai_segresnet+num_epochs=250 -c 2d 3d_fullres
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "find_best",
        help="the best of trained models and their ensembles, and its post-processing",
        description="Compare the cross-validations of trained models and of their ensembles by nnU-Net's rules, find "
        "post-processing for the best, and print the commands to predict with it.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="id or name of the data set")
    add("-p", dest="plans", metavar="PLANS", nargs="+", default=["nnUNetPlans"], help="default: nnUNetPlans")
    add(
        "-c",
        dest="configurations",
        metavar="CONFIGURATION",
        nargs="+",
        help="default: 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres, as far as the plans have them",
    )
    add("-tr", dest="trainers", metavar="NAME", nargs="+", default=["nnUNetTrainer"], help="default: nnUNetTrainer")
    add("-f", dest="folds", metavar="FOLD", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    add("-np", dest="num_processes", metavar="N", type=int, help="processes (default: 8, or nnUNet_def_n_proc)")
    add("--disable_ensembling", action="store_true", help="no ensembles; --npz was then not needed in training")
    add("--no_overwrite", action="store_true", help="keep what an earlier call has merged and averaged")
    add("--strict", action="store_true", help="every configuration must be trained; otherwise it is left out")
    add("--cache-dir", metavar="DIR", type=Path, help="in place of nnUNet_preprocessed, as for an inventory")
    add("--results-dir", metavar="DIR", type=Path, help="folder of trained models, in place of nnUNet_results")
    add("--json", action="store_true", help="print only the result, as JSON, on standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from nnplug.cli import import_quickly, stdout_for_json
    from nnplug.cli.inventory import set_folders

    set_folders(args)
    with stdout_for_json(args.json):
        selection = import_quickly("nnplug.evaluation.model_selection")
        result = selection.find_best(
            args.dataset,
            trainers=args.trainers,
            configurations=args.configurations or selection.CONFIGURATIONS,
            plans=args.plans,
            folds=args.folds,
            ensembles=not args.disable_ensembling,
            overwrite=not args.no_overwrite,
            strict=args.strict,
            num_processes=args.num_processes or _nnunets_num_processes(),
        )
    if args.json:
        print(json.dumps(result, indent=2, default=str))
    else:
        _print(result, args.results_dir)
    return 0


def _nnunets_num_processes() -> int:
    from nnplug.errors import NnplugError

    number = os.environ.get("nnUNet_def_n_proc", "8")
    if not number.isdecimal() or int(number) == 0:
        raise NnplugError(f"nnUNet_def_n_proc={number} is no number of processes. Set it to one, or give -np N.")
    return int(number)


def _print(result: dict[str, Any], results_dir: Path | None) -> None:
    from nnplug.cli.inventory import folder_option

    for reason in result["skipped"]:
        print(f"Left out: {reason}")
    best = max(result["all_results"].values())
    for name, dice in result["all_results"].items():
        print(f"{dice:.4f}  {name}{'  <- best' if dice == best else ''}")
    for sentence in result["postprocessing"]:
        print(sentence)
    chosen = result["best_model_or_ensemble"]
    print(f"Dice without post-processing {chosen['result_on_crossval_pre_pp']:.4f}", end=", ")
    print(f"with it {chosen['result_on_crossval_post_pp']:.4f}.")
    print("\nTo predict with it:")
    for line in result["commands"]["nnplug"]:
        is_of_model = line.startswith("nnplug predict ")
        print(f"  {line}{folder_option('--results-dir', results_dir) if is_of_model else ''}")
    folder = "" if results_dir is None else f", where nnUNet_results is {results_dir}"
    print(f"\nWith nnU-Net's own commands{folder}:")
    print("\n".join(f"  {line}" for line in result["commands"]["stock"]))
