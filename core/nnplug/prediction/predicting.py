"""Predict with a trained model: nnU-Net's predictor and its results, with a safe start.

torch is imported only after the inputs were checked, so that a wrong folder is told at once.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnplug.errors import NnplugError
from nnplug.files.new_folder import removed_if_refused
from nnplug.image_headers import reason
from nnplug.models.trained_models import Fold, ModelFolder, choose_folds, read_model_folder, unfinished_folds
from nnplug.prediction.inputs import Case, check_inputs
from nnplug.processes.spawned_workers import keep_signals_from_workers

if TYPE_CHECKING:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnplug.prediction.model import LoadedModel

_DEFAULT_PROCESSES = 3
_CASES_WITHOUT_WORKERS = 2


def predict(
    model_folder: str | Path,
    inputs: str | Path,
    output: str | Path,
    *,
    folds: Fold | Sequence[Fold] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    device: str | torch.device | None = None,
    mirror: bool | None = None,
    step_size: float = 0.5,
    save_probabilities: bool = False,
    num_processes_preprocessing: int | None = None,
    num_processes_export: int | None = None,
    num_parts: int = 1,
    part_id: int = 0,
    continue_prediction: bool = False,
    perform_everything_on_device: bool = True,
    prev_stage_predictions: str | Path | None = None,
    trust_checkpoint: bool = False,
    trust_code: bool = False,
    verbose: bool = False,
    progress_bar: bool = True,
) -> list[Path]:
    """Segment the images of a folder. The results equal those of ``nnUNetv2_predict`` with the same settings.

    Worker processes import the calling script again: outside of ``nnplug predict``, call this under
    ``if __name__ == "__main__":``.

    Args:
        model_folder: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``; no environment variable is needed.
        inputs: folder with ``CASE_XXXX`` images, XXXX being the channel from 0000, in the model's file format; or an
            inventory (``.json``) that names the images of each case.
        output: folder for the segmentations ``CASE``; it is made if needed. Earlier predictions of the same cases are
            removed unless ``continue_prediction``.
        folds: numbers whose softmax outputs are averaged, or ``"fold_all"``. None and ``"all"``: ``fold_all`` where it
            alone exists, the folds of the cross-validation where they alone exist.
        checkpoint_name: file in each ``fold_X``.
        device: ``cuda``, ``cuda:1``, ``mps``, ``cpu``; what the machine has by default.
        mirror: average over mirrored images, along the axes of the model's training and no others. On by default.
        step_size: distance of the patches as a share of the patch size, above 0 and at most 1.
        save_probabilities: also write ``CASE.npz`` (float, classes x image) and ``CASE.pkl``, as ensembles need them.
        num_processes_preprocessing, num_processes_export: worker processes, both 0 for none. By default 3 each (or the
            variables ``nnUNet_npp``, ``nnUNet_nps``), never more than cases or CPU cores, and none for up to two cases.
        num_parts, part_id: predict every ``num_parts``-th case from number ``part_id`` (0-based) on.
        continue_prediction: leave out cases whose prediction is there and whole.
        perform_everything_on_device: keep the result on the GPU (faster); False for images larger than its memory.
        prev_stage_predictions: for a cascade, the folder with the first stage's predictions.
        trust_checkpoint: let the checkpoint run code while it is read.
        trust_code: let plans and checkpoint name code outside the libraries and the installed plugins.
        verbose: nnU-Net's own explanations.
        progress_bar: nnU-Net's bars on stderr.

    Returns:
        The segmentation of every case of this part, those included that ``continue_prediction`` left out.

    Raises:
        NnplugError: anything that the user can mend; the inputs are checked before the network is loaded.
    """
    if not 0 < step_size <= 1:
        raise NnplugError(f"step_size is {step_size}: expected a number above 0 and at most 1.")
    model = read_model_folder(Path(model_folder))
    chosen = choose_folds(model.path, folds, checkpoint_name)
    prev_stage = None if prev_stage_predictions is None else Path(prev_stage_predictions)
    # the checkpoint tells the configuration for sure; the folder's name tells it before anything is loaded
    _check_stage(model, model.path.name.split("__")[-1], prev_stage)
    with removed_if_refused(Path(output)):
        cases, remaining = check_inputs(
            Path(inputs),
            Path(output),
            model,
            prev_stage_predictions=prev_stage,
            num_parts=num_parts,
            part_id=part_id,
            continue_prediction=continue_prediction,
            save_probabilities=save_probabilities,
        )
        processes = choose_processes(num_processes_preprocessing, num_processes_export, len(remaining))
        if len(remaining) < len(cases):
            print(f"{len(cases) - len(remaining)} of {len(cases)} cases are there already.")
        if remaining:
            if folds in (None, "all", ["all"]):
                _mention_unfinished(model.path, chosen, checkpoint_name)
            from nnplug.devices import choose_device

            target = choose_device(device)

            from nnplug.prediction.model import load_model

            loaded = load_model(
                model, chosen, checkpoint_name, trust_checkpoint=trust_checkpoint, trust_code=trust_code
            )
            _check_stage(model, loaded.configuration, prev_stage)
            if mirror and loaded.mirror_axes is None:
                print("The model was trained without mirroring, so it is predicted without.")
            print(f"Predicting {len(remaining)} cases with folds {', '.join(map(str, chosen))} on {target}.")
            predictor = _make_predictor(
                target, mirror is not False, step_size, perform_everything_on_device, verbose, progress_bar
            )
            job = _Job(remaining, Path(output), save_probabilities, processes, prev_stage)
            _run(predictor, model, loaded, job)
    return [Path(output) / f"{case.name}{model.file_ending}" for case in cases]


@dataclass(frozen=True)
class _Job:
    """What nnU-Net's predictor is asked to do; ``processes`` is for preprocessing and export, both 0 for none."""

    cases: list[Case]
    output: Path
    save_probabilities: bool
    processes: tuple[int, int]
    prev_stage: Path | None


# --- settings --------------------------------------------------------------------------------------------------------


def choose_processes(preprocessing: int | None, export: int | None, num_cases: int) -> tuple[int, int]:
    """Worker processes for preprocessing and export; both 0 is nnU-Net's way without workers.

    Every worker imports torch, which takes longer than what it does for one or two cases: they get none.
    """
    if min(preprocessing or 0, export or 0) < 0:
        raise NnplugError("The number of processes (-npp, -nps) can not be negative.")
    if (preprocessing == 0) != (export == 0) and None not in (preprocessing, export):
        raise NnplugError("Only one of -npp and -nps is 0. Give 0 for both (no worker processes) or for none.")
    if 0 in (preprocessing, export) or (
        preprocessing is None and export is None and num_cases <= _CASES_WITHOUT_WORKERS
    ):
        return 0, 0
    limit = max(1, num_cases)
    from joblib import cpu_count

    fallback = min(_DEFAULT_PROCESSES, cpu_count())
    return (
        min(preprocessing or _from_environment("nnUNet_npp", fallback), limit),
        min(export or _from_environment("nnUNet_nps", fallback), limit),
    )


def _from_environment(variable: str, fallback: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() and int(value) > 0 else fallback


def _check_stage(model: ModelFolder, configuration: str, prev_stage: Path | None) -> None:
    if configuration not in model.plans["configurations"]:
        return
    previous = model.previous_stage(configuration)
    if previous is not None and prev_stage is None:
        raise NnplugError(
            f"Configuration '{configuration}' goes on from predictions of '{previous}'. Predict the same images with "
            f"-c {previous} first, then give that output folder with -prev_stage_predictions."
        )
    if previous is None and prev_stage is not None:
        raise NnplugError(f"Configuration '{configuration}' is no cascade: leave out -prev_stage_predictions.")


def _mention_unfinished(model_folder: Path, chosen: Sequence[Fold], checkpoint_name: str) -> None:
    unfinished = unfinished_folds(model_folder, checkpoint_name)
    if unfinished:
        names = ", ".join(f"fold_{fold}" for fold in unfinished)
        print(f"Left out, because {checkpoint_name} is not there: {names}. Used: folds {', '.join(map(str, chosen))}.")


# --- running ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _threads(device: torch.device) -> Iterator[None]:
    """As many threads for torch as nnUNetv2_predict gives it, but not more than a job or container may use."""
    import torch
    from joblib import cpu_count

    before = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cuda" else cpu_count() if device.type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_predictor(
    device: torch.device, mirror: bool, step_size: float, on_device: bool, verbose: bool, progress_bar: bool
) -> nnUNetPredictor:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    # on a CPU it says that it can not keep results on the GPU, whether asked to or not
    with contextlib.redirect_stdout(io.StringIO()):
        return nnUNetPredictor(
            tile_step_size=step_size,
            use_gaussian=True,
            use_mirroring=mirror,
            perform_everything_on_device=on_device,
            device=device,
            verbose=verbose,
            verbose_preprocessing=verbose,
            allow_tqdm=progress_bar,
        )


def _remove_old(cases: Sequence[Case], output: Path, ending: str) -> None:
    """What is there of these cases comes from an earlier model or a killed run; a continued run must not keep it."""
    for case in cases:
        for suffix in (ending, ".npz", ".pkl"):
            (output / f"{case.name}{suffix}").unlink(missing_ok=True)


def _run(predictor: nnUNetPredictor, model: ModelFolder, loaded: LoadedModel, job: _Job) -> None:
    from nnplug.prediction.reader_writer import PredictionPlans

    with tempfile.TemporaryDirectory(prefix="nnplug-predict-") as scratch, _threads(predictor.device):
        report = Path(scratch, "report.txt")
        plans = PredictionPlans(model.plans, report)
        manager = plans.get_configuration(loaded.configuration)
        predictor.manual_initialization(
            loaded.network,
            plans,
            manager,
            loaded.parameters,
            model.dataset_json,
            loaded.trainer_name,
            loaded.mirror_axes,
        )
        others = set(multiprocessing.active_children())
        try:
            _remove_old(job.cases, job.output, model.file_ending)
            with keep_signals_from_workers():
                _predict_files(predictor, job)
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            if report.exists():
                raise NnplugError(report.read_text(encoding="utf-8")) from None
            if isinstance(error, OSError):
                raise NnplugError(
                    f"The predictions could not be written to {job.output}: {error.strerror or reason(error)}. "
                    "See to the folder (space, permissions) and use --continue_prediction."
                ) from error
            raise


def _predict_files(predictor: nnUNetPredictor, job: _Job) -> None:
    files = [[str(path) for path in case.files] for case in job.cases]
    targets = [str(job.output / case.name) for case in job.cases]
    prev_stage = None if job.prev_stage is None else str(job.prev_stage)
    if job.processes == (0, 0):
        predictor.predict_from_files_sequential(files, targets, job.save_probabilities, True, prev_stage)
    else:
        predictor.predict_from_files(files, targets, job.save_probabilities, True, *job.processes, prev_stage)
