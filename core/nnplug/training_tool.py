"""``nnunet_training``: from images to a validated model in one call, for services, agents and notebooks."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnplug.composition.resolved import ResolvedConfig
from nnplug.config import TrainerConfig
from nnplug.datasets import DatasetId, dataset_id, environment, environment_folder, find_dataset, read_plans
from nnplug.devices import choose_training_device
from nnplug.discovery.registry import get_registry
from nnplug.errors import NnplugError
from nnplug.files.folder_use import FolderUse
from nnplug.models.results import summarise, with_results_dir
from nnplug.planning.data import PlanningData, find_raw_data, open_inventory
from nnplug.planning.data_record import check_unchanged
from nnplug.planning.missing_steps import MissingSteps, list_stages
from nnplug.planning.trainer_fit import idle_trainer
from nnplug.problems import raise_problems
from nnplug.processes.interrupts import TrainingInterrupted
from nnplug.training.checkpointing import overrides
from nnplug.training.data_seams import NUM_FOLDS
from nnplug.training.lifecycle import listening
from nnplug.training.trainer import load_base_trainer
from nnplug.training.training import choose_folds, choose_mode, find_weights, train
from nnplug.training_events import EventSender, TrainingEvent

_log = logging.getLogger("nnplug")
# nnU-Net's folders are variables of the process, so a second call would change those of the first
_only_call = threading.Lock()


def nnunet_training(
    dataset_id: DatasetId,
    configuration: str = "3d_fullres",
    fold: int | str | Sequence[int | str] = "all",
    trainer: str | TrainerConfig | None = None,
    plans_identifier: str | None = None,
    num_gpus: int | None = None,
    device: str | None = None,
    pretrained_weights: str | Path | None = None,
    continue_training: bool = False,
    validation_only: bool = False,
    val_best: bool = False,
    disable_checkpointing: bool = False,
    npz: bool = False,
    use_compressed: bool = False,
    verify_dataset_integrity: bool = True,
    no_preprocessing: bool = False,
    *,
    inventory: str | Path | None = None,
    dataset_name: str | None = None,
    cache_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    restart: bool = False,
    clean: bool = False,
    prev_stage_trainer: str | TrainerConfig | None = None,
    num_processes: int | None = None,
    trust_code: bool = False,
    trust_checkpoint: bool = False,
    progress: Callable[[TrainingEvent], object] | None = None,
    raise_errors: bool = True,
) -> dict[str, Any]:
    """Do what is missing (checks, fingerprint, plans, preprocessing), then train and validate folds in turn.

    What is there already and still holds is kept: steps, and folds that are trained and validated with the same
    settings and data. One call at a time in a process, in any thread.

    Args:
        dataset_id: id or name of a raw data set, or the id of the inventory's.
        configuration: of the plans. For a cascade the folds of its first stage that are missing are trained before.
        fold: a number, several, or ``"all"``: every fold of the splits in turn.
        trainer: ``-tr`` text, or a config built in Python; None is nnU-Net's own.
        plans_identifier: plans; None is ``nnUNetPlans``. Missing ones are made by the planner of nnU-Net that names its
            plans so, for example ``nnUNetResEncUNetMPlans``.
        num_gpus: processes of distributed training; None takes all visible GPUs, as far as the batch has samples.
        device: ``cuda``, ``cpu`` or ``mps``; None takes what the machine has.
        pretrained_weights: checkpoint to start from; not for the first stage of a cascade.
        continue_training: go on with folds that were interrupted; without it, or ``restart``, they are refused.
        validation_only, val_best: only validate; validate the best checkpoint instead of the final one.
        disable_checkpointing: write no checkpoints.
        npz: save probabilities of the validation.
        use_compressed: accepted for old programs; without effect since nnU-Net stores its data with blosc2.
        verify_dataset_integrity: check every rule on every voxel, once for each state of the data; an inventory is
            always checked.
        no_preprocessing: make nothing of the data; raw images are not needed then.
        inventory, dataset_name, cache_dir: data described by an inventory, its name, and the folder for what is made.
            ``cache_dir`` alone stands for nnUNet_raw and nnUNet_preprocessed.
        results_dir: folder for models; None is nnUNet_results.
        restart: train finished and interrupted folds anew; the earlier trainings are set aside.
        clean: take the fingerprint anew, plan with the planner's own settings, and preprocess anew.
        prev_stage_trainer: of a cascade's first stage; None is ``trainer``.
        num_processes: for checks, fingerprint and preprocessing; None is nnU-Net's numbers, 0 works in this process.
        trust_code, trust_checkpoint: allow code from elsewhere; see the documentation.
        progress: called in this thread with each `TrainingEvent`. If it raises, a warning is logged, it is called no
            more, and the work goes on. None prints the messages.
        raise_errors: raise what goes wrong, or return it.

    Returns:
        ``status`` (``completed``), ``model_path``, ``dataset_id``, ``dataset``, ``configuration``, ``fold`` (number, or
        list of them), ``metrics`` (``dice``, ``iou``, ``validation_loss``; means over the folds), ``per_class`` (the
        same by label), ``folds`` (the result of each, as of `train`), ``trainer``, ``plans``, ``checkpoint``,
        ``seconds``, ``predict_command``, ``stock_prediction_obstacle``, ``stock_prediction_needs``, ``trust_code``,
        ``previous_stage`` (of a cascade: the result of its first stage, else None), ``progress_error`` (what the
        callback raised, else None).
        Where something went wrong and ``raise_errors`` is False: ``status`` (``error``, or ``interrupted`` where a
        signal stopped it and it can be continued) and ``message``.

    Raises:
        NnplugError: a user's mistake, or data with problems, all of which are named.
        TrainingInterrupted: a signal; call it again with ``continue_training``.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # it would wait for the very process that waits for this one
        raise NnplugError(
            "A worker process imports the script, and with it nnunet_training is called again. Put the call under "
            "if __name__ == '__main__':, so that only the script itself makes it."
        )
    events = EventSender(progress)
    call = _Call(
        dataset=str(dataset_id),
        configuration=configuration,
        fold=fold,
        trainer=trainer or "nnUNetTrainer",
        prev_stage_trainer=prev_stage_trainer,
        plans_name=plans_identifier or "nnUNetPlans",
        inventory=inventory,
        dataset_name=dataset_name,
        cache_dir=cache_dir,
        no_preprocessing=no_preprocessing,
        steps={"verify": verify_dataset_integrity, "clean": clean, "num_processes": num_processes},
        of_every_stage={
            "device": device,
            "num_gpus": num_gpus,
            "trust_code": trust_code,
            "trust_checkpoint": trust_checkpoint,
        },
        of_last_stage={
            "continue_training": continue_training,
            "restart": restart,
            "validation_only": validation_only,
            "val_best": val_best,
            "disable_checkpointing": disable_checkpointing,
            "npz": npz,
            "pretrained_weights": pretrained_weights,
        },
        events=events,
    )
    try:
        with _alone(), _folders(cache_dir, results_dir), listening(events.hear):
            if use_compressed:
                events.send("check", "use_compressed has had no effect since nnU-Net stores its data with blosc2.")
            return {**with_results_dir(call.run(), results_dir), "progress_error": events.error}
    except (TrainingInterrupted, Exception) as error:
        if raise_errors:
            raise
        return _as_result(error, dataset_id=dataset_id, configuration=configuration, fold=fold)


def _as_result(error: BaseException, **about: Any) -> dict[str, Any]:
    if isinstance(error, TrainingInterrupted):
        return {"status": "interrupted", "message": str(error), **about}
    if isinstance(error, NnplugError):
        return {"status": "error", "message": str(error), **about}
    _log.error("nnunet_training failed", exc_info=error)
    return {"status": "error", "message": f"{type(error).__name__}: {error}", **about}


@contextmanager
def _alone() -> Iterator[None]:
    if not _only_call.acquire(blocking=False):
        raise NnplugError(
            "Another nnunet_training is at work in this process, and nnU-Net's folders are variables of the process. "
            "Wait until it ends, or start a process for each."
        )
    try:
        yield
    finally:
        _only_call.release()


@contextmanager
def _folders(cache_dir: str | Path | None, results_dir: str | Path | None) -> Iterator[None]:
    """nnU-Net's variables for a ``with`` block."""
    folders = {"nnUNet_raw": cache_dir, "nnUNet_preprocessed": cache_dir, "nnUNet_results": results_dir}
    with environment(**{name: os.path.abspath(folder) for name, folder in folders.items() if folder is not None}):
        yield


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call of `nnunet_training`; ``steps`` are settings of `MissingSteps`, ``of_...`` of `nnplug.train`."""

    dataset: str
    configuration: str
    fold: int | str | Sequence[int | str]
    trainer: str | TrainerConfig
    prev_stage_trainer: str | TrainerConfig | None
    plans_name: str
    inventory: str | Path | None
    dataset_name: str | None
    cache_dir: str | Path | None
    no_preprocessing: bool
    steps: Mapping[str, Any]
    of_every_stage: Mapping[str, Any]
    of_last_stage: Mapping[str, Any]
    events: EventSender

    def run(self) -> dict[str, Any]:
        """The result, see `nnunet_training`."""
        with ExitStack() as uses:
            return self._run(uses)

    def _run(self, uses: ExitStack) -> dict[str, Any]:
        # what can be refused is refused before hours are spent on the data
        last = self._resolve(self.trainer)
        first = self._resolve(self.prev_stage_trainer or self.trainer)
        mode = self._check_options()
        folder = self._prepare_data(uses)
        stages = list_stages(folder, self.plans_name, self.configuration)
        if self.prev_stage_trainer is not None and len(stages) == 1:
            raise NnplugError(f"Configuration '{self.configuration}' is no cascade: it takes no previous stage.")
        previous = None
        if mode != "validate":
            for stage in stages[:-1]:
                previous = self._train(folder, stage, first, "all", continue_training=True, keep_finished=True)
        options = {**self.of_last_stage, "keep_finished": mode in ("new", "continue")}
        if len(stages) > 1:
            options["prev_stage_trainer"] = first
        return {**self._train(folder, self.configuration, last, self.fold, **options), "previous_stage": previous}

    def _resolve(self, trainer: str | TrainerConfig) -> ResolvedConfig:
        return get_registry().resolve(trainer, trust_code=self.of_every_stage["trust_code"])

    def _check_options(self) -> str:
        options = self.of_last_stage
        names = ("continue_training", "restart", "validation_only", "val_best", "disable_checkpointing")
        mode = choose_mode(**{name: options[name] for name in names})
        find_weights(options["pretrained_weights"], mode)
        device, num_gpus = self.of_every_stage["device"], self.of_every_stage["num_gpus"]
        choose_training_device(device, 1 if num_gpus is None else num_gpus)
        environment_folder("nnUNet_results")
        return mode

    # --- data

    def _prepare_data(self, uses: ExitStack) -> Path:
        """Do what is missing; returns ``nnUNet_preprocessed/DatasetXXX_NAME``, kept as it is during ``uses``."""
        if self.no_preprocessing and self.inventory is None:
            folder = environment_folder("nnUNet_preprocessed") / find_dataset(self.dataset)
            self.events.dataset = folder.name
            uses.enter_context(FolderUse(folder)).read(partial(self.events.send, "check"))
            self._check_preprocessed(folder)
            return folder
        data = find_raw_data(self.dataset) if self.inventory is None else self._open_inventory()
        self.events.dataset = data.name
        given = [folder for folder in (data.folder, data.raw / data.name) if (folder / "splits_final.json").is_file()]
        choose_folds(self.fold, [*given, data.folder][0], _ignore)
        if not given and not overrides(load_base_trainer(self._resolve(self.trainer)), "do_split"):
            _check_enough(data)
        use = uses.enter_context(FolderUse(data.folder))
        if self.no_preprocessing:
            use.read(partial(self.events.send, "check"))
            check_unchanged(data)
            self._check_preprocessed(data.folder)
        else:
            tell, check = self.events.send, self._try_networks
            steps = MissingSteps(data=data, plans_name=self.plans_name, tell=tell, check_plans=check, **self.steps)
            steps.run(self.configuration, use)
        return data.folder

    def _try_networks(self, data: PlanningData) -> None:
        """Refuse a network that does not take its patch before hours are spent on the data."""
        plans = read_plans(data.folder, self.plans_name)
        dataset_json = data.inventory.dataset_json()
        stages = list_stages(data.folder, self.plans_name, self.configuration)
        for stage in stages:
            resolved = self._resolve(self.trainer if stage == stages[-1] else self.prev_stage_trainer or self.trainer)
            with idle_trainer(plans, stage, resolved, dataset_json, data.preprocessed) as trainer:
                trainer.try_network()

    def _open_inventory(self) -> PlanningData:
        assert self.inventory is not None
        if self.cache_dir is None:
            raise NnplugError("--inventory needs --cache-dir DIR too.")
        named = self.dataset.startswith("Dataset")
        number = dataset_id(self.dataset)
        if number is None:
            raise NnplugError(f"The data set of an inventory needs an id from 0 to 999, got '{self.dataset}'.")
        name = self.dataset_name or (self.dataset if named else None)
        data, problems = open_inventory(Path(self.inventory), number, name, Path(self.cache_dir))
        raise_problems(self.inventory, problems)
        return data

    def _check_preprocessed(self, folder: Path) -> None:
        manager = PlansManager(read_plans(folder, self.plans_name))
        for stage in list_stages(folder, self.plans_name, self.configuration):
            cases = folder / manager.get_configuration(stage).data_identifier
            if not cases.is_dir() or not any(cases.iterdir()):
                raise NnplugError(
                    f"Configuration '{stage}' is not preprocessed: {cases} is missing or empty, and --no_preprocessing "
                    "makes nothing. Leave it out, or bring that folder."
                )

    # --- training

    def _train(self, folder: Path, stage: str, trainer: ResolvedConfig, fold: Any, **options: Any) -> dict[str, Any]:
        """Train and validate folds of a stage in turn."""
        results = []
        for number in choose_folds(fold, folder, _ignore):
            about = {"configuration": stage, "fold": number}
            arguments = {**self.of_every_stage, **options, "plans": self.plans_name, "on_message": _ignore}
            [result] = train(folder.name, stage, number, trainer, **arguments)
            results.append(result)
            dice = result["metrics"]["dice"]
            found = "without a validation" if dice is None else f"Dice {dice:.3f}"
            self.events.send("fold", f"{stage}, fold {number} is done: {found}", metrics=result["metrics"], **about)
        return summarise(results)


def _check_enough(data: PlanningData) -> None:
    """nnU-Net makes its folds when the first training begins."""
    number = len(data.inventory.cases)
    if number < NUM_FOLDS:
        raise NnplugError(
            f"{data.name} has {number} cases, too few for {NUM_FOLDS} folds. Make fewer with nnplug splits make "
            "-k, or train on every case with nnplug train --all-data."
        )


def _ignore(_message: str) -> None:
    pass
