"""The fingerprint of a data set: nnU-Net's analysis of each case, in parallel, resumable, in shards.

Each case's foreground goes into a folder of its own until all are there; then nnU-Net's samples are drawn from it, one
channel after the other. The result is nnU-Net's to the last bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask
from batchgenerators.utilities.file_and_folder_operations import save_json
from filelock import FileLock
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from nnplug.datasets import environment
from nnplug.errors import NnplugError
from nnplug.files.disk import flush_to_disk, telling_when_full
from nnplug.inventory.case_check import CheckSettings, byte_problems, image_problems, label_problems
from nnplug.inventory.checking import check_cases, settings_of
from nnplug.inventory.loading import CaseFiles
from nnplug.planning.classes import find_class
from nnplug.planning.data import PlanningData, write_dataset_json
from nnplug.planning.data_record import FINGERPRINT, file_states, nnunet_version, set_aside_splits, write_record
from nnplug.planning.samples import Samples, keep_for_samples
from nnplug.planning.shards import WHOLE, Shard
from nnplug.problems import Problem, count, raise_problems
from nnplug.processes.case_pool import CaseFailure, Pool

_CASES_FOLDER = ".nnplug_fingerprint"
_ABOUT = "case.json"
_PIXELS = "foreground.npy"


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
        if problems and not is_there:  # then no fingerprint is taken, and what else is wrong is told at once
            _, problems = check_cases(data.inventory, pool, voxels=True, cases=cases)
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
    with data.described() as raw, environment(nnUNet_raw=raw):
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
    """In a worker: nnU-Net's ``analyze_case``; returns problems instead of a result where the rules are checked."""
    problems = byte_problems(name, files) if job.strict else []
    reader = job.settings.reader()
    images, properties = reader.read_images(list(map(str, files.images)))
    label, _ = reader.read_seg(str(files.label))
    if job.strict:
        assert files.label is not None
        held = len(images) // len(files.images)
        problems += image_problems(name, files.images, [held] * len(files.images), images)
        problems += label_problems(name, files.label, label, job.settings.label_values)
    if problems:
        return list(dict.fromkeys(problems))
    if len(images) != len(job.settings.channel_names):
        channels = ", ".join(job.settings.channel_names)
        raise CaseFailure(f"it has {count(len(images), 'channel')}, and channel_names has {channels}")
    if images.shape[1:] != label.shape[1:]:
        raise CaseFailure(f"its images have {images.shape[1:]} voxels, its label has {label.shape[1:]}")
    if not np.isfinite([images.min(), images.max(), label.min(), label.max()]).all():
        raise CaseFailure("the images or the label hold NaN or infinite voxels")
    # holes within the image have no influence on the box around it, so they need not be filled
    box = bounding_box_to_slice(get_bbox_from_mask(reduce(np.logical_or, (channel != 0 for channel in images))))
    cropped, foreground = images[(slice(None), *box)], label[0][box] > 0
    about = {
        "key": job.keys[name],
        "shape": list(cropped.shape[1:]),
        "spacing": [value.item() if hasattr(value, "item") else value for value in properties["spacing"]],
        "relative_size": float(np.prod(cropped.shape[1:]) / np.prod(images.shape[1:])),
    }
    pixels = np.stack([channel[foreground] for channel in cropped])
    with telling_when_full(job.folder):
        _save(job.folder / name, keep_for_samples(pixels, job.num_samples), about)
    return []


def _save(folder: Path, pixels: np.ndarray, about: Mapping[str, Any]) -> None:
    """A folder that is there is whole."""
    draft = folder.with_name(f".{uuid.uuid4()}")
    draft.mkdir()
    try:
        np.save(draft / _PIXELS, pixels)
        (draft / _ABOUT).write_text(json.dumps({**about, "num_pixels": pixels.shape[1]}))
        for path in draft.iterdir():
            flush_to_disk(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


# --- all of them -----------------------------------------------------------------------------------------------------


def _merge(data: PlanningData, job: _Job) -> None:
    """Write nnU-Net's file. Of several shards that are done at once, one does it."""
    file = data.folder / FINGERPRINT
    with FileLock(data.folder / f"{_CASES_FOLDER}.lock"):
        if not job.folder.is_dir():
            return
        cases = [(job.folder / name, json.loads((job.folder / name / _ABOUT).read_text())) for name in job.keys]
        samples = Samples([folder / _PIXELS for folder, _ in cases], job.num_samples)
        statistics = {index: _statistics(samples.draw(index)) for index in range(len(job.settings.channel_names))}
        fingerprint = {
            "spacings": [about["spacing"] for _, about in cases],
            "shapes_after_crop": [about["shape"] for _, about in cases],
            "foreground_intensity_properties_per_channel": statistics,
            "median_relative_size_after_cropping": np.median([about["relative_size"] for _, about in cases], 0),
        }
        write_record(data, is_verified=job.strict)
        draft = job.folder / FINGERPRINT
        save_json(fingerprint, str(draft))
        flush_to_disk(draft)
        os.replace(draft, file)
        shutil.rmtree(job.folder)


def _statistics(values: np.ndarray) -> dict[str, float]:
    """nnU-Net's statistics of a channel; orders its values anew."""
    statistics = {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }
    # last, since the others add the values up in the cases' order
    low, median, high = np.percentile(values, np.array((0.5, 50.0, 99.5)), overwrite_input=True)
    return {**statistics, "median": float(median), "percentile_99_5": float(high), "percentile_00_5": float(low)}
