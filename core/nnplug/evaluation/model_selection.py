"""Choose the best of trained models and their ensembles, with nnU-Net's own function, and say how to use it."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnplug.datasets import environment_folder, find_dataset, read_plans
from nnplug.errors import NnplugError
from nnplug.files.atomic_file import replace_file
from nnplug.files.json_files import read_json
from nnplug.models.trained_models import ModelFolder, find_model_folder, read_model_folder
from nnplug.prediction.ensembling import check_probabilities
from nnplug.problems import Problem, count, raise_problems, shortened

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
DEFAULT_FOLDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Candidate:
    """A trained model that is compared.

    Attributes:
        trainer: canonical name, as in its folder.
        plans, configuration: as in its folder.
        model: the folder.
    """

    trainer: str
    plans: str
    configuration: str
    model: ModelFolder


def find_best(
    dataset: str,
    *,
    trainers: Sequence[str] = ("nnUNetTrainer",),
    configurations: Sequence[str] = CONFIGURATIONS,
    plans: Sequence[str] = ("nnUNetPlans",),
    folds: Sequence[int] = DEFAULT_FOLDS,
    ensembles: bool = True,
    overwrite: bool = True,
    strict: bool = False,
    num_processes: int = 8,
    on_message: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Compare the cross-validations of models and of their ensembles in pairs, and find post-processing for the best.

    ``inference_information.json`` and ``inference_instructions.txt`` are written into the data set's results.

    Args:
        dataset: id or name.
        trainers: names, their terms in any order.
        configurations: those that the plans do not have are left out.
        plans: plans identifiers.
        folds: of the cross-validation.
        ensembles: also average two models each, for which their validation must have been run with ``--npz``.
        overwrite: False keeps what an earlier call has merged and averaged.
        strict: refuse to leave out a configuration that was not trained.
        num_processes: for averaging and evaluating.
        on_message: called with a line when the comparison begins; it may take hours.

    Returns:
        nnU-Net's ``inference_information.json``, and ``skipped`` (what was left out, and why), ``postprocessing``
        (sentences), ``commands`` (lines for a shell) for ``nnplug`` and ``stock``.

    Raises:
        NnplugError: nothing was trained; validations, probabilities or the truth are missing: all that is is listed.
    """
    name = find_dataset(dataset)
    candidates, skipped = _find_candidates(name, trainers, configurations, plans, strict)
    _check(name, candidates, folds, ensembles)
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    number = len(candidates)
    pairs = number * (number - 1) // 2 if ensembles else 0
    on_message(f"Comparing {count(number, 'model')} and {count(pairs, 'ensemble')} of {name}.")
    models = [{"plans": c.plans, "configuration": c.configuration, "trainer": c.trainer} for c in candidates]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            found = find_best_configuration(name, models, ensembles, num_processes, overwrite, list(folds), strict)
    except BaseException:
        on_message(printed.getvalue().strip())  # it may tell why, or hold the results of hours
        raise
    steps = [line for line in printed.getvalue().splitlines() if line.startswith(("Results were", "Removing all"))]
    best = found["best_model_or_ensemble"]
    chosen = [c for c in candidates for one in best["selected_model_or_models"] if one == _names(c)]
    commands = {program: _commands(program, name, chosen, folds, best) for program in ("nnplug", "stock")}
    _write_instructions(chosen[0].model.path.parent, commands)
    return {
        **found,
        "skipped": skipped,
        "postprocessing": steps,
        "commands": commands,
    }


def _names(candidate: Candidate) -> dict[str, str]:
    return {
        "configuration": candidate.configuration,
        "trainer": candidate.trainer,
        "plans_identifier": candidate.plans,
    }


# --- what is compared ------------------------------------------------------------------------------------------------


def _find_candidates(
    dataset: str, trainers: Sequence[str], configurations: Sequence[str], plans: Sequence[str], strict: bool
) -> tuple[list[Candidate], list[str]]:
    preprocessed = environment_folder("nnUNet_preprocessed") / dataset
    found: dict[Path, Candidate] = {}
    skipped: list[str] = []
    reasons: dict[str, str] = {}  # why there is nothing of a trainer
    trained: set[str] = set()
    for trainer, configuration, identifier in itertools.product(trainers, configurations, plans):  # nnU-Net's order
        if configuration not in read_plans(preprocessed, identifier)["configurations"]:
            continue
        try:
            path = find_model_folder(dataset, configuration, trainer=trainer, plans=identifier)
        except NnplugError as error:
            if strict:
                raise
            skipped.append(str(error))
            reasons.setdefault(trainer, str(error))
            continue
        trained.add(trainer)
        found[path] = Candidate(path.name.split("__")[0], identifier, configuration, read_model_folder(path))
    for trainer, reason in reasons.items():
        if trainer not in trained:
            raise NnplugError(reason)
    if not found:
        raise NnplugError(
            f"{', '.join(plans)} of {dataset} have none of the configurations {', '.join(configurations)}. "
            "Choose with -c."
        )
    return list(found.values()), skipped


def _check(dataset: str, candidates: Sequence[Candidate], folds: Sequence[int], ensembles: bool) -> None:
    """What nnU-Net would stumble over after hours of averaging."""
    truth = environment_folder("nnUNet_preprocessed") / dataset / "gt_segmentations"
    problems = []
    if not truth.is_dir():
        advice = "Preprocess the data set again: nnplug plan_and_preprocess"
        problems.append(Problem("the truth is missing", advice, file=truth))
    averaged = ensembles and len(candidates) > 1
    validated: dict[str, set[str]] = {}
    for candidate in candidates:
        cases: dict[str, str] = {}
        for fold in folds:
            problems += _check_fold(candidate, fold, averaged, cases)
        problems += _classes_without_value(candidate, folds)
        if all((candidate.model.path / f"fold_{fold}" / "validation" / "summary.json").is_file() for fold in folds):
            validated[candidate.model.path.name] = set(cases)
    problems += _different_cases(validated)
    raise_problems(f"find_best for {dataset}", problems)


def _different_cases(validated: dict[str, set[str]]) -> list[Problem]:
    """nnU-Net would compare the means over different cases, and average an ensemble over those of one model alone."""
    problems = []
    for name, cases in validated.items():
        other = max(validated, key=lambda one: len(validated[one] - cases))
        missing = sorted(validated[other] - cases)
        if missing:
            found = f"{name} has not validated {count(len(missing), 'case')} that {other} has: {shortened(missing)}"
            advice = "Only models validated on the same cases can be compared: train on one split, or choose with -f."
            problems.append(Problem(found, advice))
    return problems


def _classes_without_value(candidate: Candidate, folds: Sequence[int]) -> list[Problem]:
    """nnU-Net's mean over the classes is NaN with one of these, and then it finds no best model at all."""
    paths = [candidate.model.path / f"fold_{fold}" / "validation" / "summary.json" for fold in folds]
    means = [(read_json(path) or {}).get("mean", {}) for path in paths]
    absent = [key for key in means[0] if all(math.isnan(mean.get(key, {}).get("Dice", math.nan)) for mean in means)]
    advice = "Models can not be compared with it: leave it out of dataset.json, and train again."
    return [Problem(f"no case has class {key}, in truth or prediction", advice, file=paths[0]) for key in absent]


def _check_fold(candidate: Candidate, fold: int, averaged: bool, cases: dict[str, str]) -> list[Problem]:
    folder = candidate.model.path / f"fold_{fold}" / "validation"
    train = shlex.join(
        [
            *("nnplug", "train", candidate.model.path.parent.name, candidate.configuration, str(fold)),
            *("-tr", candidate.trainer, "-p", candidate.plans),
        ]
    )
    if not (folder.parent / "checkpoint_final.pth").is_file():
        return [Problem("this fold is not trained", f"Run: {train} --npz", file=folder.parent)]
    # nnU-Net writes the summary last
    if not (folder / "summary.json").is_file():
        return [Problem("this fold is not validated", f"Run: {train} --val --npz", file=folder.parent)]
    ending = candidate.model.file_ending
    here = [path.name.removesuffix(ending) for path in sorted(folder.glob(f"[!.]*{ending}"))]
    problems = [
        Problem(f"fold {cases[name]} has validated this case too", "Choose folds of one split with -f.", name, folder)
        for name in here
        if name in cases
    ]
    cases.update(dict.fromkeys(here, str(fold)))
    if not averaged:
        return problems
    if any(not (folder / f"{name}.npz").is_file() for name in here):
        advice = f"Run: {train} --val --npz, or leave ensembles out with --disable_ensembling"
        return [*problems, Problem("its probabilities (.npz) are missing", advice, file=folder)]
    return problems + check_probabilities({name: [folder / f"{name}.npz"] for name in here})


# --- what to do with it ----------------------------------------------------------------------------------------------


def _commands(
    program: str, dataset: str, chosen: Sequence[Candidate], folds: Sequence[int], best: dict[str, Any]
) -> list[str]:
    """Predict, average where an ensemble won, post-process."""
    predict, average, postprocess = {
        "nnplug": ("nnplug predict", "nnplug ensemble", "nnplug postprocess"),
        "stock": ("nnUNetv2_predict", "nnUNetv2_ensemble", "nnUNetv2_apply_postprocessing"),
    }[program]
    is_ensemble = len(chosen) > 1
    lines, outputs = [], []
    for number, candidate in enumerate(chosen, 1):
        output = f"OUTPUT_FOLDER_MODEL_{number}" if is_ensemble else "OUTPUT_FOLDER"
        outputs.append(output)
        more: list[str] = []
        first_stage = candidate.model.previous_stage(candidate.configuration)
        if first_stage is not None:
            first_output = f"{output}_PREV_STAGE"
            trainer = _first_stage_trainer(candidate, folds[0])
            lines.append(_predict(predict, dataset, first_output, folds, trainer, first_stage, candidate.plans))
            more = ["-prev_stage_predictions", first_output]
        if is_ensemble:
            more.append("--save_probabilities")
        names = (candidate.trainer, candidate.configuration, candidate.plans)
        lines.append(_predict(predict, dataset, output, folds, *names, *more))
    if is_ensemble:
        lines.append(f"{average} -i {' '.join(outputs)} -o OUTPUT_FOLDER")
    files = shlex.join(["-pp_pkl_file", best["postprocessing_file"], "-plans_json", best["some_plans_file"]])
    lines.append(f"{postprocess} -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP {files}")
    return lines


def _write_instructions(results: Path, commands: dict[str, list[str]]) -> None:
    """In place of nnU-Net's, which have no line for the first stage of a cascade."""
    lines = ["# nnplug", *commands["nnplug"], "", "# nnU-Net's own commands", *commands["stock"], ""]
    replace_file(results / "inference_instructions.txt", lambda file: file.write("\n".join(lines).encode()))


def _predict(
    program: str,
    dataset: str,
    output: str,
    folds: Sequence[int],
    trainer: str,
    configuration: str,
    plans: str,
    *more: str,
) -> str:
    chosen = ["-f", *map(str, folds), "-tr", trainer, "-c", configuration, "-p", plans, *more]
    return f"{program} -i INPUT_FOLDER -o {output} -d {dataset} {shlex.join(chosen)}"


def _first_stage_trainer(candidate: Candidate, fold: int) -> str:
    """That whose predictions the second stage was trained on; without a record, as in stock, the same one."""
    record = read_json(candidate.model.path / f"fold_{fold}" / "nnplug_fold.json") or {}
    parts = Path(record.get("previous_stage") or "").parts
    names = next((part for part in parts if part.count("__") == 2), candidate.trainer)
    return names.split("__")[0]
