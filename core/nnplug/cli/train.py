"""``nnplug train``: train folds of a data set with a trainer."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnplug.cli import stdout_for_json

EXAMPLE = """example:
  nnplug train 4 3d_fullres 0 -tr monai_segresnet+dice_loss+num_epochs=250
  nnplug train Dataset004_Hippocampus 2d all -tr nnUNetTrainerDA5 --npz
  nnplug train 4 3d_fullres 0 --inventory inventory.json --dataset-name NAME --cache-dir cache --results-dir results
"""


def add_parser(subparsers: Any) -> None:
    from nnplug.cli.inventory import add_inventory_options

    parser = subparsers.add_parser(
        "train",
        help="train folds of a data set",
        description="Train and validate folds of a preprocessed data set. The results are ordinary nnU-Net results.",
        epilog=EXAMPLE,
    )
    parser.add_argument("dataset", metavar="DATASET", help="id or name of the data set")
    parser.add_argument("configuration", metavar="CONFIGURATION", help="of the plans: 2d, 3d_fullres, 3d_lowres, ...")
    parser.add_argument(
        "fold", metavar="FOLD", nargs="*", help="numbers, or 'all': every fold of the splits file in turn, 5 by default"
    )
    add_trainer_argument(parser, default="nnUNetTrainer")
    parser.add_argument("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
    parser.add_argument("-num_gpus", type=int, default=1, metavar="N", help="GPUs, or CPU processes with -device cpu")
    parser.add_argument("--ddp", action="store_true", help="train on all visible GPUs")
    add_training_options(parser)
    parser.add_argument("--all-data", action="store_true", help="one model on every case, in fold_all")
    parser.add_argument("-prev_stage_predictions", metavar="FOLDER", help="predictions of a cascade's first stage")
    add_inventory_options(parser, results=True)
    parser.set_defaults(func=run)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What every command that trains has."""
    parser.add_argument("-device", metavar="D", help="cuda, cpu or mps (default: what the machine has)")
    parser.add_argument("--npz", action="store_true", help="save the validation's probabilities, for find_best")
    parser.add_argument("--c", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--restart", action="store_true", help="start anew; an earlier training is set aside")
    parser.add_argument("--val", action="store_true", help="only validate a finished training")
    parser.add_argument("--val_best", action="store_true", help="validate checkpoint_best instead of checkpoint_final")
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints")
    parser.add_argument("-pretrained_weights", metavar="FILE", help="checkpoint to start from")
    parser.add_argument("-prev_stage_trainer", metavar="NAME", help="trainer of a cascade's first stage")
    parser.add_argument("--use_compressed", action="store_true", help="accepted; without effect since blosc2")
    parser.add_argument("--trust-code", action="store_true", help="allow a recipe to import from anywhere")
    parser.add_argument("--trust-checkpoint", action="store_true", help="allow a checkpoint to run code")
    parser.add_argument("--json", action="store_true", help="print only the whole result, as JSON, on standard output")


def add_trainer_argument(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """``-tr NAME`` with completion of trainer names."""
    from nnplug.cli import complete_trainers

    argument = parser.add_argument(
        "-tr",
        dest="trainer",
        metavar="NAME",
        default=default,
        help="trainer: NAME, a+b+field=value, or a recipe file (default: %(default)s); see nnplug trainers",
    )
    argument.completer = complete_trainers  # type: ignore[attr-defined]


def run(args: argparse.Namespace) -> int:
    from joblib import cpu_count

    from nnplug.cli.inventory import choose_training_data
    from nnplug.errors import NnplugError
    from nnplug.processes.interrupts import TrainingInterrupted

    choose_training_data(args)
    if not args.fold and not args.all_data:
        raise NnplugError("Which fold? Give numbers, 'all' for every fold of the splits, or --all-data.")
    if args.fold and args.all_data:
        raise NnplugError("--all-data trains one model on every case and takes no fold.")
    # nnU-Net reads this when it is imported, and starts as many processes that each import torch
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, cpu_count())))
    try:
        with stdout_for_json(args.json):
            results = _train(args)
    except TrainingInterrupted as interrupted:
        if args.json:
            print(json.dumps({"status": "interrupted", "message": str(interrupted)}))
        raise
    from nnplug.models.results import combine, with_results_dir
    from nnplug.training.fold_folder import RESULT_NAME

    result = with_results_dir(combine(results), args.results_dir)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result, [Path(one["model_path"], f"fold_{one['fold']}", RESULT_NAME) for one in results])
    return 0


def _print(result: Mapping[str, Any], files: Sequence[Path]) -> None:
    """The result as far as it is looked at, where all of it is, and what to do next."""
    shown = ("status", "model_path", "dataset", "configuration", "fold", "metrics")
    print("\n" + json.dumps({key: result[key] for key in shown}, indent=2))
    print(f"All of it: {', '.join(map(str, files))}")
    if result["stock_prediction_obstacle"]:
        print(f"Stock nnU-Net can not predict with this model: {result['stock_prediction_obstacle']}.")
    elif result["stock_prediction_needs"]:
        print(f"Stock nnU-Net can predict with this model where {result['stock_prediction_needs'][0]} is installed.")
    if result["predict_command"]:
        print(f"Predict with: {result['predict_command']}")


def _train(args: argparse.Namespace) -> list[dict[str, Any]]:
    from nnplug.cli import import_quickly
    from nnplug.errors import NnplugError

    train = import_quickly("nnplug.training.training").train
    import torch

    if args.use_compressed:
        print("--use_compressed has had no effect since nnU-Net stores its data with blosc2.")
    if args.ddp and args.num_gpus != 1:
        raise NnplugError("--ddp takes all visible GPUs and -num_gpus a number of them. Give one of them.")
    num_gpus = args.num_gpus
    if args.ddp:
        num_gpus = torch.cuda.device_count() if args.device in (None, "cuda") else 0
        if num_gpus == 0:
            reason = f"-device {args.device} uses none" if args.device not in (None, "cuda") else "there is none here"
            raise NnplugError(f"--ddp trains on all visible GPUs, and {reason}. Several CPU processes: -num_gpus N.")
    return train(
        args.dataset,
        args.configuration,
        args.fold,
        args.trainer,
        plans=args.plans,
        device=args.device,
        num_gpus=num_gpus,
        all_data=args.all_data,
        continue_training=args.c,
        restart=args.restart,
        validation_only=args.val,
        val_best=args.val_best,
        npz=args.npz,
        disable_checkpointing=args.disable_checkpointing,
        pretrained_weights=args.pretrained_weights,
        prev_stage_trainer=args.prev_stage_trainer,
        prev_stage_predictions=args.prev_stage_predictions,
        trust_code=args.trust_code,
        trust_checkpoint=args.trust_checkpoint,
    )
