"""``train``: what ``nnplug train`` does, as a function. Checks first, then one fold after the other."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnplug.composition.resolved import ResolvedConfig
from nnplug.config import TrainerConfig
from nnplug.datasets import DatasetId, environment_folder, find_dataset, foreground_names, read_plans, read_splits
from nnplug.devices import choose_training_device
from nnplug.discovery.registry import get_registry
from nnplug.errors import NnplugError
from nnplug.files.folder_use import FolderUse
from nnplug.files.json_files import read_required_json
from nnplug.networks.network import configure_plans
from nnplug.planning.preprocessing import check_made_for
from nnplug.training.data_remarks import describe_data
from nnplug.training.data_seams import NUM_FOLDS
from nnplug.training.fold_training import FoldJob, train_fold


def train(
    dataset: DatasetId,
    configuration: str,
    folds: int | str | Sequence[int | str],
    trainer: str | TrainerConfig | ResolvedConfig = "nnUNetTrainer",
    *,
    plans: str = "nnUNetPlans",
    device: str | None = None,
    num_gpus: int | None = 1,
    all_data: bool = False,
    continue_training: bool = False,
    restart: bool = False,
    keep_finished: bool = False,
    validation_only: bool = False,
    val_best: bool = False,
    npz: bool = False,
    disable_checkpointing: bool = False,
    pretrained_weights: str | Path | None = None,
    prev_stage_trainer: str | TrainerConfig | ResolvedConfig | None = None,
    prev_stage_predictions: str | Path | None = None,
    trust_code: bool = False,
    trust_checkpoint: bool = False,
    on_message: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train and validate folds of a preprocessed data set, one after the other.

    Args:
        dataset: id or name.
        configuration: of the plans, for example ``3d_fullres``.
        folds: numbers, or ``"all"``: every fold of the splits file.
        trainer: ``-tr`` text, or a config built in Python.
        plans: plans identifier.
        device: ``cuda``, ``cpu`` or ``mps``; None takes what the machine has.
        num_gpus: processes of distributed training (GPUs, or CPU processes with ``device="cpu"``); None takes all
            visible GPUs, as far as the batch has samples for them.
        all_data: one model on every case, in nnU-Net's ``fold_all``; ``folds`` is not used.
        continue_training, restart: what to do with a training that is there already.
        keep_finished: leave a fold that is trained and validated with the same settings and data as it is; its result
            is the kept one.
        validation_only, val_best: only validate; validate the best checkpoint instead of the final one.
        npz: save probabilities of the validation (nnU-Net's find_best needs them).
        disable_checkpointing: write no checkpoints.
        pretrained_weights: checkpoint to start from; with ``continue_training`` only where there is none of the fold.
        prev_stage_trainer, prev_stage_predictions: where a cascade takes the first stage's segmentations from.
        trust_code, trust_checkpoint: allow code from elsewhere; see the documentation.
        on_message: receives what ``folds="all"`` was taken for, and of each fold the trainer's name and the folder.

    Returns:
        One result a fold: ``status``, ``model_path``, ``dataset_id``, ``dataset``, ``configuration``, ``fold``,
        ``trainer``, ``plans``, ``checkpoint`` (the validated one), ``metrics`` (``dice`` and ``iou``, 0 to 1, higher is
        better; ``validation_loss``), ``per_class``, ``seconds``, ``predict_command``, ``stock_prediction_obstacle``,
        ``stock_prediction_needs``, ``trust_code``.

    Raises:
        NnplugError: a user's mistake; nothing was trained for the fold it names.
        TrainingInterrupted: a signal; the fold can be continued.
    """
    mode = choose_mode(
        continue_training=continue_training,
        restart=restart,
        validation_only=validation_only,
        val_best=val_best,
        disable_checkpointing=disable_checkpointing,
    )
    weights = find_weights(pretrained_weights, mode)
    resolved = get_registry().resolve(trainer, trust_code=trust_code)
    results = environment_folder("nnUNet_results")
    name = find_dataset(dataset)
    folder = environment_folder("nnUNet_preprocessed") / name
    plans_json = read_plans(folder, plans)
    dataset_json = read_required_json(folder / "dataset.json", "The data set file")
    if not foreground_names(dataset_json["labels"]):
        raise NnplugError(f"{name} has no label but the background ('labels' in dataset.json): nothing can be learned.")
    configured = configure_plans(plans_json, configuration, resolved)
    batch_size = _check_preprocessed(folder, configured, configuration)
    check_made_for(folder, plans_json, configuration)
    num_gpus = count_gpus(device, batch_size, resolved) if num_gpus is None else num_gpus
    if num_gpus > batch_size:
        raise NnplugError(f"-num_gpus {num_gpus}: the batch of {batch_size} has too few samples to share. Use fewer.")
    device = choose_training_device(device, num_gpus)
    if batch_size % num_gpus and PlansManager(configured).get_configuration(configuration).batch_dice:
        raise NnplugError(
            f"-num_gpus {num_gpus}: with batch Dice (batch_dice in the plans) every process needs as many samples, and "
            f"the batch of {batch_size} can not be shared so. Use another number, or +batch_size=N."
        )
    base = results / name / f"{resolved.name}__{plans_json['plans_name']}__{configuration}"
    previous = _previous_stage(
        configured,
        configuration,
        base,
        trainer=prev_stage_trainer,
        predictions=prev_stage_predictions,
        trust_code=trust_code,
    )
    jobs = [
        FoldJob(
            trainer=resolved,
            plans=plans_json,
            dataset_json=dataset_json,
            configuration=configuration,
            fold=fold,
            model_folder=base,
            device=device,
            mode=mode,
            keep_finished=keep_finished,
            num_processes=num_gpus,
            save_probabilities=npz,
            validate_best=val_best,
            disable_checkpointing=disable_checkpointing,
            pretrained_weights=weights,
            previous_stage_folder=previous,
            trust_checkpoint=trust_checkpoint,
        )
        for fold in (["all"] if all_data else choose_folds(folds, folder, on_message))
    ]
    for remark in describe_data(folder, configured, configuration, all_data):
        on_message(f"nnplug: warning: {remark}")
    done = []
    with FolderUse(folder) as use:
        use.read(on_message)
        for job in jobs:
            on_message(f"{'Validating' if validation_only else 'Training'} {resolved.name} in {job.fold_folder}")
            done.append(train_fold(job))
    return done


def choose_mode(
    *, continue_training: bool, restart: bool, validation_only: bool, val_best: bool, disable_checkpointing: bool
) -> str:
    """What to do with a training that is there: the ``mode`` of a `FoldJob`.

    Raises:
        NnplugError: options that exclude each other.
    """
    if sum([continue_training, restart, validation_only]) > 1:
        raise NnplugError("--c, --restart and --val exclude each other. Give one of them.")
    if val_best and disable_checkpointing:
        raise NnplugError("--val_best needs checkpoints, and --disable_checkpointing writes none.")
    return "continue" if continue_training else "restart" if restart else "validate" if validation_only else "new"


def find_weights(pretrained_weights: str | Path | None, mode: str) -> Path | None:
    """The file to start from. Raises NnplugError where it is missing, or nothing is to be trained."""
    if pretrained_weights is None:
        return None
    if mode == "validate":
        raise NnplugError("-pretrained_weights starts a training, and --val only validates. Give one of them.")
    weights = Path(pretrained_weights).absolute()
    if not weights.is_file():
        raise NnplugError(f"There is no file {weights} for -pretrained_weights.")
    return weights


def count_gpus(device: str | None, batch_size: int, trainer: ResolvedConfig) -> int:
    """As many of the visible GPUs as share the batch evenly; 1 for a trainer that other processes do not know."""
    visible = torch.cuda.device_count() if device in (None, "cuda") else 0
    try:
        is_known = b"__main__" not in pickle.dumps(trainer)
    except (pickle.PicklingError, AttributeError, TypeError):
        is_known = False
    return max(number for number in range(1, max(1, visible) + 1) if batch_size % number == 0) if is_known else 1


def choose_folds(
    folds: int | str | Sequence[int | str], folder: Path, on_message: Callable[[str], None] = print
) -> list[int]:
    """Fold numbers from what the user gave; ``all`` is every fold of the splits file.

    Raises:
        NnplugError: not a number, or beyond the splits.
    """
    splits = read_splits(folder)
    number = NUM_FOLDS if splits is None else len(splits)
    chosen: list[int] = []
    for fold in [folds] if isinstance(folds, int | str) else folds:
        if str(fold) == "all":
            on_message(
                f"all: training the {number} folds of the cross-validation in turn. "
                "For one model on every case (nnU-Net's fold_all) use --all-data."
            )
            chosen += range(number)
        elif not str(fold).isdigit():
            raise NnplugError(f"Fold '{fold}' is neither a number nor 'all'.")
        elif int(fold) >= number:
            source = folder / "splits_final.json" if splits is not None else "nnU-Net's default cross-validation"
            raise NnplugError(f"Fold {fold} does not exist: {source} has {number} folds, 0 to {number - 1}.")
        else:
            chosen.append(int(fold))
    return list(dict.fromkeys(chosen))


def _check_preprocessed(folder: Path, plans: dict[str, Any], configuration: str) -> int:
    """Check that the data are there; returns the batch size of the configuration."""
    settings = PlansManager(plans).get_configuration(configuration)
    data = folder / settings.data_identifier
    if not data.is_dir() or not any(data.iterdir()):
        raise NnplugError(
            f"Configuration '{configuration}' is not preprocessed: {data} is missing or empty. "
            f"Run: nnplug preprocess -d {folder.name} -plans_name {plans['plans_name']} -c {configuration}, "
            "with the same --inventory or --cache-dir if there is one."
        )
    return settings.batch_size


def _previous_stage(
    plans: dict[str, Any],
    configuration: str,
    base: Path,
    *,
    trainer: str | TrainerConfig | ResolvedConfig | None,
    predictions: str | Path | None,
    trust_code: bool,
) -> Path | None:
    """The folder with the first stage's segmentations that a cascade's second stage trains on; None without cascade."""
    settings = PlansManager(plans).get_configuration(configuration)
    stage = settings.previous_stage_name
    if stage is None:
        if trainer is not None or predictions is not None:
            raise NnplugError(f"Configuration '{configuration}' is no cascade: it takes no previous stage.")
        return None
    if trainer is not None and predictions is not None:
        raise NnplugError("-prev_stage_trainer and -prev_stage_predictions exclude each other. Give one of them.")
    name = base.name.split("__")[0]
    if predictions is not None:
        folder = Path(predictions)
    else:
        name = get_registry().resolve(trainer, trust_code=trust_code).name if trainer is not None else name
        folder = base.with_name(f"{name}__{plans['plans_name']}__{stage}") / "predicted_next_stage" / configuration
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    raise NnplugError(
        f"'{configuration}' is the second stage of a cascade and needs the predictions of '{stage}', but {folder} is "
        f"missing or empty. Train every fold of it first: nnplug train {base.parent.name} {stage} all "
        f"-tr {name}; or name another one with -prev_stage_trainer NAME or -prev_stage_predictions FOLDER."
    )
