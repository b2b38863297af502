"""``nnplug predict`` and ``nnplug predict_from_modelfolder``: segment images with a trained model."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

from nnplug.cli import stdout_for_json
from nnplug.processes.interrupts import ignore_signals

EXAMPLE = """example:
  nnplug predict -i imagesTs -o predictions -d 4 -c 3d_fullres -tr monai_segresnet+num_epochs=250
  nnplug predict -i imagesTs -o predictions -d Dataset004_Hippocampus -c 2d -f 0 --no-mirror --save_probabilities
  nnplug predict --inventory to_predict.json -o predictions -d 4 -c 3d_fullres --results-dir results
"""
EXAMPLE_FOLDER = """example:
  nnplug predict_from_modelfolder -i imagesTs -o predictions -m results/Dataset004_X/nnUNetTrainer__nnUNetPlans__2d
"""


def add_parser(subparsers: Any) -> None:
    from nnplug.cli.inventory import add_inventory_options

    parser = subparsers.add_parser(
        "predict",
        help="segment images with a trained model",
        description="Segment a folder of images. -tr is only needed where models of several trainers are there.",
        epilog=EXAMPLE,
    )
    _add_folders(parser)
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="id or name of the data set")
    parser.add_argument("-c", dest="configuration", metavar="CONFIGURATION", required=True, help="2d, 3d_fullres, ...")
    parser.add_argument(
        "-tr", dest="trainer", metavar="NAME", help="trainer, its terms in any order (default: the only one there is)"
    )
    parser.add_argument("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
    _add_settings(parser)
    add_inventory_options(parser, results=True)
    parser.set_defaults(func=run)

    parser = subparsers.add_parser(
        "predict_from_modelfolder",
        help="segment images with a model given by its folder",
        description="Segment a folder of images with a model folder. No environment variable is needed.",
        epilog=EXAMPLE_FOLDER,
    )
    _add_folders(parser)
    parser.add_argument(
        "-m", dest="model_folder", metavar="FOLDER", required=True, type=Path, help="folder with plans.json and fold_X"
    )
    _add_settings(parser)
    parser.set_defaults(func=run)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i",
        dest="inputs",
        metavar="IN",
        type=Path,
        help="folder with the images, named CASE_0000 etc., or an inventory (.json)",
    )
    parser.add_argument("-o", dest="output", metavar="OUT", required=True, type=Path, help="folder for the predictions")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-f",
        dest="folds",
        metavar="FOLD",
        nargs="+",
        default=["all"],
        help="folds to average: numbers, or fold_all (the model trained on every case). Default: fold_all or the folds "
        "of the cross-validation, whichever alone exists",
    )
    add("-chk", dest="checkpoint", metavar="FILE", default="checkpoint_final.pth", help="default: %(default)s")
    add("-device", metavar="D", help="cuda, cpu or mps (default: what the machine has)")
    mirroring = parser.add_mutually_exclusive_group()
    mirroring.add_argument(
        "--mirror",
        dest="mirror",
        action="store_true",
        default=None,
        help="average over mirrored images, along the axes that the model was trained with (the default)",
    )
    mirroring.add_argument(
        "--no-mirror", "--disable_tta", dest="mirror", action="store_false", help="no mirroring: faster"
    )
    add(
        "--step_size",
        "-step_size",
        type=float,
        default=0.5,
        metavar="S",
        help="distance of patches as a share of the patch size (default: %(default)s)",
    )
    add("--save_probabilities", action="store_true", help="also write CASE.npz, which ensembles need")
    add("-npp", type=int, metavar="N", help="processes for preprocessing (default: 3, fewer for few cases)")
    add("-nps", type=int, metavar="N", help="processes for export; -npp 0 -nps 0 uses no processes")
    add("-num_parts", type=int, default=1, metavar="N", help="share the cases among N calls")
    add("-part_id", type=int, default=0, metavar="I", help="which of them this is, from 0")
    add("--continue_prediction", action="store_true", help="leave out cases that are predicted already")
    add("--not_on_device", action="store_true", help="for images larger than the GPU's memory")
    add("-prev_stage_predictions", type=Path, metavar="FOLDER", help="for a cascade: the first stage's predictions")
    add("--disable_progress_bar", action="store_true", help="no progress bars")
    add("--verbose", action="store_true", help="nnU-Net's own explanations")
    add("--trust-checkpoint", action="store_true", help="allow a checkpoint to run code")
    add("--trust-code", action="store_true", help="allow plans and checkpoint to name code from anywhere")
    add("--json", action="store_true", help="print only the result, as JSON, on standard output")


def run(args: argparse.Namespace) -> int:
    _end_workers_on_signals()
    with stdout_for_json(args.json):
        result = _predict(args)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{len(result['outputs'])} predictions in {args.output}.")
    return 0


def _end_workers_on_signals() -> None:
    """SIGTERM and SIGINT become an exception: unlike a signal, that ends the worker processes too."""

    def stop(number: int, _frame: object) -> None:
        ignore_signals()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _predict(args: argparse.Namespace) -> dict[str, Any]:
    from nnplug.cli import import_quickly

    predict = import_quickly("nnplug.prediction.predicting").predict
    from nnplug.cli.inventory import choose_inputs
    from nnplug.models.trained_models import choose_folds, find_model_folder

    choose_inputs(args)
    if "dataset" in args:
        model_folder = find_model_folder(
            args.dataset, args.configuration, trainer=args.trainer, plans=args.plans, trust_code=args.trust_code
        )
    else:
        model_folder = args.model_folder
    outputs = predict(
        model_folder,
        args.inputs,
        args.output,
        folds=args.folds,
        checkpoint_name=args.checkpoint,
        device=args.device,
        mirror=args.mirror,
        step_size=args.step_size,
        save_probabilities=args.save_probabilities,
        num_processes_preprocessing=args.npp,
        num_processes_export=args.nps,
        num_parts=args.num_parts,
        part_id=args.part_id,
        continue_prediction=args.continue_prediction,
        perform_everything_on_device=not args.not_on_device,
        prev_stage_predictions=args.prev_stage_predictions,
        trust_checkpoint=args.trust_checkpoint,
        trust_code=args.trust_code,
        verbose=args.verbose,
        progress_bar=not args.disable_progress_bar,
    )
    return {
        "status": "completed",
        "model_folder": str(Path(model_folder).absolute()),
        "folds": choose_folds(model_folder, args.folds, args.checkpoint),
        "outputs": [str(path.absolute()) for path in outputs],
    }
