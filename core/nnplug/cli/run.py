"""``nnplug run``: from images to a validated model, whatever is missing on the way."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

from nnplug.cli import stdout_for_json

if TYPE_CHECKING:
    from nnplug.training_events import TrainingEvent

EXAMPLE = """example:
  nnplug run 4
  nnplug run 4 3d_cascade_fullres all -tr monai_segresnet --json
  nnplug run 4 2d 0 --inventory inventory.json --dataset-name NAME --cache-dir cache --results-dir results
"""


def add_parser(subparsers: Any) -> None:
    from nnplug.cli.inventory import add_inventory_options
    from nnplug.cli.train import add_trainer_argument, add_training_options

    parser = subparsers.add_parser(
        "run",
        help="check, plan, preprocess and train, as far as it is missing",
        description="Check the data, take the fingerprint, plan, preprocess, train and validate folds. What is there "
        "already and still holds is kept. Progress goes to standard error, the result to standard output.",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", nargs="?", help="id or name of the data set; left out with --dataset-id")
    add(
        "configuration",
        metavar="CONFIGURATION",
        nargs="?",
        help="of the plans (default: 3d_fullres); for a cascade its first stage is trained before, where it is missing",
    )
    add("fold", metavar="FOLD", nargs="*", help="numbers, or 'all': every fold of the splits file in turn (default)")
    add_trainer_argument(parser, default="nnUNetTrainer")
    add(
        "-p",
        dest="plans",
        metavar="PLANS",
        default="nnUNetPlans",
        help="plans, made by nnU-Net's planner of that name where they are missing (default: %(default)s)",
    )
    add("-num_gpus", type=int, metavar="N", help="GPUs (default: all visible ones, as far as the batch has samples)")
    add_training_options(parser)
    add(
        "--verify_dataset_integrity",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check every rule first (default), once for each state of the data",
    )
    add("--no_preprocessing", action="store_true", help="make nothing of the data: it has to be there")
    add("--clean", action="store_true", help="take fingerprint and plans and preprocess anew, as when data has changed")
    add("-np", dest="num_processes", metavar="N", type=int, help="processes for the data (0: no worker processes)")
    add_inventory_options(parser, results=True)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from joblib import cpu_count

    from nnplug.errors import NnplugError
    from nnplug.processes.interrupts import TrainingInterrupted

    _stop_on_signals()
    # nnU-Net reads this when it is imported, and starts as many processes that each import torch
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, cpu_count())))
    try:
        with stdout_for_json(True):
            result = _run(args)
    except (TrainingInterrupted, NnplugError) as error:
        if args.json:
            status = "error" if isinstance(error, NnplugError) else "interrupted"
            print(json.dumps({"status": status, "message": str(error)}))
        raise
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    shown = ("model_path", "configuration", "fold", "metrics", "per_class")
    print(json.dumps({key: result[key] for key in shown}, indent=2))
    if result["predict_command"]:
        print(f"Predict with: {result['predict_command']}")
    return 0


def _stop_on_signals() -> None:
    """What interrupts the work on the data; a training has its own way. Ctrl-C stops that work at once."""
    from nnplug.processes.interrupts import SIGNALS, TrainingInterrupted

    def stop(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        raise TrainingInterrupted(f"Interrupted by {name}; what is done is kept. Go on with --c.")

    def forget() -> None:
        for name in names:
            signal.signal(getattr(signal, name), signal.SIG_DFL)

    names = [name for name in SIGNALS if name != "SIGINT"]
    for name in names:
        signal.signal(getattr(signal, name), stop)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)  # nnU-Net's forked workers are ended by the signal


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from nnplug.cli import import_quickly

    _choose_positions(args)
    nnunet_training = import_quickly("nnplug.training_tool").nnunet_training
    return nnunet_training(
        args.dataset,
        args.configuration,
        args.fold,
        args.trainer,
        plans_identifier=args.plans,
        num_gpus=args.num_gpus,
        device=args.device,
        pretrained_weights=args.pretrained_weights,
        continue_training=args.c,
        validation_only=args.val,
        val_best=args.val_best,
        disable_checkpointing=args.disable_checkpointing,
        npz=args.npz,
        use_compressed=args.use_compressed,
        verify_dataset_integrity=args.verify_dataset_integrity,
        no_preprocessing=args.no_preprocessing,
        inventory=args.inventory,
        dataset_name=args.dataset_name,
        cache_dir=args.cache_dir,
        results_dir=args.results_dir,
        restart=args.restart,
        clean=args.clean,
        prev_stage_trainer=args.prev_stage_trainer,
        num_processes=args.num_processes,
        trust_code=args.trust_code,
        trust_checkpoint=args.trust_checkpoint,
        progress=_show,
    )


def _choose_positions(args: argparse.Namespace) -> None:
    """DATASET may be left out where ``--dataset-id`` is given, CONFIGURATION and FOLD always."""
    from nnplug.errors import NnplugError

    words = [word for word in (args.dataset, args.configuration, *args.fold) if word is not None]
    if args.dataset_id is not None:
        number = re.fullmatch(r"(?:Dataset)?0*(\d+)(?:_.+)?", words[0]) if words else None
        if number is None:
            words.insert(0, str(args.dataset_id))
        elif int(number[1]) != args.dataset_id:
            raise NnplugError(f"DATASET is {words[0]}, and --dataset-id is {args.dataset_id}. Leave DATASET out.")
    if not words:
        raise NnplugError("Which data set? Give DATASET, or --inventory FILE --dataset-id N --cache-dir DIR.")
    args.dataset, args.configuration, args.fold = words[0], (words[1:] or ["3d_fullres"])[0], words[2:] or ["all"]


def _show(event: TrainingEvent) -> None:
    # the training shows its epochs itself
    if event.stage != "epoch":
        print(event.message, file=sys.stderr, flush=True)
