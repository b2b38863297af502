"""The fingerprint of a data set: nnU-Net's analysis of each case, in parallel, resumable, in shards.

Each case's intensities go into a folder of their own until all are there; then they are merged one channel after the
other, as nnU-Net does with all of them in memory. The result is the same to the last bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import save_json
from filelock import FileLock
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from nnplug.case_pool import Pool
from nnplug.errors import NnplugError
from nnplug.inventory.case_check import CheckSettings, byte_problems, image_problems, label_problems
from nnplug.inventory.checking import check_cases, settings_of
from nnplug.inventory.loading import CaseFiles
from nnplug.inventory.problems import Problem, count, raise_problems
from nnplug.planning.classes import find_class
from nnplug.planning.data import PlanningData, write_dataset_json
from nnplug.planning.data_record import FINGERPRINT, file_states, nnunet_version, set_aside_splits, write_record
from nnplug.planning.disk import flush_to_disk, telling_when_full
from nnplug.planning.shards import WHOLE, Shard

_CASES_FOLDER = ".nnplug_fingerprint"
_ABOUT = "case.json"


def extract_fingerprint(
    data: PlanningData,
    pool: Pool,
    *,
    shard: Shard = WHOLE,
    clean: bool = False,
    verify: bool = False,
    extractor: str = "DatasetFingerprintExtractor",
    on_message: Callable[[str], None] = print,
) -> bool:
    """Extract the fingerprint, or the part of a shard; what is there already is kept.

    Args:
        data: the data set.
        pool: processes.
        shard: work on this part of the cases only; the one that finishes the last case merges.
        clean: begin anew.
        verify: check every rule; an inventory's always are.
        extractor: nnU-Net's class.
        on_message: receives what is to be told.

    Returns:
        Whether the fingerprint is whole now.

    Raises:
        NnplugError: cases that failed, with all their problems; those that did not are kept.
    """
    cases = list(shard.of(data.inventory.cases))
    is_there = (data.folder / FINGERPRINT).is_file() and not clean
    strict = data.is_inventory or verify
    if verify or (strict and not is_there):
        # while the fingerprint is taken every voxel is looked at anyway
        _, problems = check_cases(data.inventory, pool, voxels=is_there, cases=cases)
        raise_problems(data.name, problems)
    if is_there:
        return True
    made = find_class(extractor, DatasetFingerprintExtractor, "experiment_planning")
    if clean:
        _clean(data, shard, on_message)
    data.folder.mkdir(parents=True, exist_ok=True)
    if data.is_inventory:
        write_dataset_json(data)
    if made.run is not DatasetFingerprintExtractor.run:
        _run_own(made, data, pool, shard)
        return True
    with data.activated():
        job = _Job.make(data, made(data.name), strict)
    _extract_cases(data, pool, job, shard)
    missing = [name for name in data.inventory.cases if not job.is_done(name)]
    if missing:
        on_message(f"Fingerprint: shard {shard} is done, {count(len(missing), 'case')} of other shards are not yet.")
        return False
    _merge(data, job)
    return True


@dataclass(frozen=True)
class _Job:
    """What the workers need; ``keys`` tell what a case's result was made of."""

    settings: CheckSettings
    strict: bool
    num_samples: int
    folder: Path
    keys: dict[str, Any]

    @classmethod
    def make(cls, data: PlanningData, extractor: DatasetFingerprintExtractor, strict: bool) -> _Job:
        num_samples = int(extractor.num_foreground_voxels_for_intensitystats // len(data.inventory.cases))
        settings = settings_of(data.inventory)
        shared = [nnunet_version(), settings.reader.__name__, num_samples]
        # a case that passed a looser check is not taken for one that passed all
        shared += [strict, list(settings.label_values), list(settings.channel_names)]
        keys = {name: [*shared, files] for name, files in file_states(data).items()}
        return cls(settings, strict, num_samples, data.folder / _CASES_FOLDER, keys)

    def is_done(self, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return json.loads((self.folder / name / _ABOUT).read_text())["key"] == self.keys[name]
        return False


def _clean(data: PlanningData, shard: Shard, on_message: Callable[[str], None]) -> None:
    (data.folder / FINGERPRINT).unlink(missing_ok=True)
    for name in shard.of(data.inventory.cases):
        shutil.rmtree(data.folder / _CASES_FOLDER / name, ignore_errors=True)
    message = set_aside_splits(data)
    if message:
        on_message(message)


def _run_own(made: type[DatasetFingerprintExtractor], data: PlanningData, pool: Pool, shard: Shard) -> None:
    """An extractor that goes its own way is run as nnU-Net does."""
    if shard != WHOLE:
        raise NnplugError(f"{made.__name__} works on all cases in its own way: leave out --shard.")
    write_record(data)
    with data.activated():
        extractor = made(data.name, max(1, pool.num_processes), verbose=pool.verbose)
        extractor.show_progress_bar = pool.progress_bar
        extractor.run(overwrite_existing=True)


# --- cases -----------------------------------------------------------------------------------------------------------


def _extract_cases(data: PlanningData, pool: Pool, job: _Job, shard: Shard) -> None:
    job.folder.mkdir(exist_ok=True)
    pending = {name: files for name, files in shard.of(data.inventory.cases).items() if not job.is_done(name)}
    problems: list[Problem] = []

    def take(_name: str, found: list[Problem]) -> None:
        problems.extend(found)

    failures = pool.run(_extract_case, job, pending, f"Fingerprint of {data.name}", take)
    problems += [Problem(reason, "Mend the case, or leave it out.", name) for name, reason in failures.items()]
    if problems:
        order = {name: index for index, name in enumerate(pending)}
        problems.sort(key=lambda problem: order[problem.case or ""])
        number = len({problem.case for problem in problems})
        raise_problems(f"{data.name}: the fingerprint of {count(number, 'case')} failed, the others are kept", problems)


def _extract_case(job: _Job, name: str, files: CaseFiles) -> list[Problem]:
    """In a worker: nnU-Net's analysis; returns problems instead of a result where the rules are checked."""
    assert files.label is not None
    problems: list[Problem] = []
    reader: Any = job.settings.reader
    if job.strict:
        problems += byte_problems(name, files)
        reader = _CheckingReader(job.settings, name, files, problems)
    try:
        shape, spacing, intensities, _, relative_size = DatasetFingerprintExtractor.analyze_case(
            list(map(str, files.images)), str(files.label), reader, job.num_samples
        )
    except _FoundProblems:
        return list(dict.fromkeys(problems))
    about = {
        "key": job.keys[name],
        "shape": list(map(int, shape)),
        "spacing": [value.item() if hasattr(value, "item") else value for value in spacing],
        "relative_size": float(relative_size),
    }
    with telling_when_full(job.folder):
        _save(job.folder / name, intensities, about)
    return []


def _save(folder: Path, intensities: Sequence[Any], about: Mapping[str, Any]) -> None:
    """A folder that is there is whole."""
    draft = folder.with_name(f".{uuid.uuid4()}")
    draft.mkdir()
    try:
        for channel, values in enumerate(intensities):
            np.save(draft / f"{channel}.npy", np.asarray(values))
            flush_to_disk(draft / f"{channel}.npy")
        (draft / _ABOUT).write_text(json.dumps(about))
        flush_to_disk(draft / _ABOUT)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


class _CheckingReader:
    """nnU-Net's reader in the place of its class; what it reads is checked on the way."""

    def __init__(self, settings: CheckSettings, name: str, files: CaseFiles, problems: list[Problem]) -> None:
        self.settings, self.name, self.files, self.problems = settings, name, files, problems

    def __call__(self) -> _CheckingReader:
        return self

    def read_images(self, paths: list[str]) -> tuple[np.ndarray, dict]:
        images, properties = self.settings.reader().read_images(paths)
        single = len(images) == len(paths)
        channels = [1] * len(paths) if single else [len(images) // len(paths)] * len(paths)
        self.problems += image_problems(self.name, self.files.images, channels, images)
        return images, properties

    def read_seg(self, path: str) -> tuple[np.ndarray, dict]:
        label, properties = self.settings.reader().read_seg(path)
        self.problems += label_problems(self.name, Path(path), label, self.settings.label_values)
        if self.problems:
            raise _FoundProblems
        return label, properties


class _FoundProblems(Exception):
    """Ends the analysis of a case."""


# --- all of them -----------------------------------------------------------------------------------------------------


def _merge(data: PlanningData, job: _Job) -> None:
    """Write nnU-Net's file. Of several shards that are done at once, one does it."""
    file = data.folder / FINGERPRINT
    with FileLock(data.folder / f"{_CASES_FOLDER}.lock"):
        if not job.folder.is_dir():
            return
        cases = [(job.folder / name, json.loads((job.folder / name / _ABOUT).read_text())) for name in job.keys]
        num_channels = len(job.settings.channel_names)
        statistics = {index: _statistics([folder for folder, _ in cases], index) for index in range(num_channels)}
        fingerprint = {
            "spacings": [about["spacing"] for _, about in cases],
            "shapes_after_crop": [about["shape"] for _, about in cases],
            "foreground_intensity_properties_per_channel": statistics,
            "median_relative_size_after_cropping": np.median([about["relative_size"] for _, about in cases], 0),
        }
        write_record(data)
        draft = job.folder / FINGERPRINT
        save_json(fingerprint, str(draft))
        flush_to_disk(draft)
        os.replace(draft, file)
        shutil.rmtree(job.folder)


def _statistics(folders: Sequence[Path], channel: int) -> dict[str, float]:
    """nnU-Net's statistics of a channel, one copy of its intensities in memory."""
    paths = [folder / f"{channel}.npy" for folder in folders]
    sizes, dtypes = zip(*((array.size, array.dtype) for array in map(_mapped, paths)), strict=True)
    values = np.empty(sum(sizes), np.result_type(*dtypes))
    if not values.size:
        raise NnplugError("No case has a labelled voxel, so there are no intensities to plan with. See the labels.")
    for path, size, end in zip(paths, sizes, np.cumsum(sizes), strict=True):
        values[end - size : end] = _mapped(path)
    statistics = {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }
    # last, since it may then sort what the others have to add up in the cases' order
    low, median, high = np.percentile(values, np.array((0.5, 50.0, 99.5)), overwrite_input=True)
    return {**statistics, "median": float(median), "percentile_99_5": float(high), "percentile_00_5": float(low)}


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
