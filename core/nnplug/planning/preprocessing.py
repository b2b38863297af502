"""Preprocessed cases: nnU-Net's work on each case, in parallel, resumable, in shards.

The cases of a configuration are collected in ``DATA_IDENTIFIER.unfinished``, which gets its final name when every
case is there, so that neither nnplug nor stock nnU-Net can train on a part of them. ``.done/CASE`` in it says what a
case was made of; where that still holds it is not made again.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnplug.datasets import read_plans
from nnplug.errors import NnplugError
from nnplug.files.disk import flush_to_disk, telling_when_full
from nnplug.files.folder_use import FolderUse
from nnplug.files.json_files import as_plain_json, read_required_json
from nnplug.inventory.loading import CaseFiles
from nnplug.inventory.readers import choose_reader
from nnplug.planning.classes import find_preprocessor, plugin_of_preprocessor
from nnplug.planning.data import PlanningData, write_dataset_json
from nnplug.planning.data_record import file_states, nnunet_version
from nnplug.planning.ground_truth import write_ground_truth
from nnplug.planning.shards import WHOLE, Shard
from nnplug.problems import Problem, count, raise_problems
from nnplug.processes.case_pool import Pool

_UNFINISHED = ".unfinished"
_DONE = ".done"
_REPLACED = "replaced_"
_PATIENCE_S = 10  # other shards begin at the same time
_SHORT_PATIENCE_S = 2  # others end at the same time
# entries of a configuration that a preprocessed case does not depend on
_NOT_READ = (
    "architecture",
    "patch_size",  # only decides in which blocks a case is stored
    "batch_size",
    "batch_dice",
    "median_image_size_in_voxels",
    "resampling_fn_probabilities",
    "resampling_fn_probabilities_kwargs",
    "inherits_from",
    "next_stage",
    "previous_stage",
)


def preprocessing_key(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> str:
    """A hash of what preprocessed cases are made by, but the images and the versions of the code."""
    manager = PlansManager(dict(plans))
    settings = manager.get_configuration(configuration).configuration
    parts: list[Any] = [
        what_cases_depend_on(settings),
        [plans.get(key) for key in ("transpose_forward", "image_reader_writer", "label_manager")],
        manager.foreground_intensity_properties_per_channel,
        [dataset_json.get(key) for key in ("labels", "regions_class_order")],
    ]
    return hashlib.sha256(json.dumps(as_plain_json(parts), sort_keys=True).encode()).hexdigest()


def what_cases_depend_on(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that preprocessed cases are made by."""
    return {key: value for key, value in settings.items() if key not in _NOT_READ}


def preprocess(
    data: PlanningData,
    plans_name: str,
    configuration: str,
    pool: Pool,
    *,
    shard: Shard = WHOLE,
    clean: bool = False,
    on_message: Callable[[str], None] = print,
) -> bool:
    """Preprocess the cases for a configuration, or those of a shard; what is there and still holds is kept.

    Args:
        data: the data set.
        plans_name: its plans.
        configuration: of the plans.
        pool: processes.
        shard: this part of the cases only.
        clean: make all anew.
        on_message: receives what is to be told.

    Returns:
        Whether every case of the data set is there now.

    Raises:
        NnplugError: no plans; cases that failed, all of them; those that did not are kept.
    """
    plans = PlansManager(read_plans(data.folder, plans_name))
    manager = plans.get_configuration(configuration)
    made = find_preprocessor(plans.plans, manager.preprocessor_name)
    dataset_json = data.dataset_json
    if made.run is not DefaultPreprocessor.run:
        _run_own(made, data, plans_name, configuration, pool, shard)
        write_ground_truth(data, data.inventory.cases, choose_reader(data.inventory))
        return True
    key = preprocessing_key(plans.plans, configuration, dataset_json)
    versions = [nnunet_version(), plugin_of_preprocessor(manager.preprocessor_name)]
    folder = _CaseFolder(
        data.folder / manager.data_identifier,
        {name: [key, as_plain_json(versions), *files] for name, files in file_states(data).items()},
    )
    cases = shard.of(data.inventory.cases)
    if folder.open(list(cases) if clean else []):
        write_ground_truth(data, data.inventory.cases, plans.image_reader_writer_class)
        return True
    pending = {name: files for name, files in cases.items() if not folder.is_done(name)}
    job = _Job(made(verbose=pool.verbose), plans, manager, dataset_json, folder)
    failures = pool.run(_preprocess_case, job, pending, f"Preprocessing {configuration}")
    missing = folder.missing()
    if (failures or missing) and folder.is_made_elsewhere(_SHORT_PATIENCE_S if failures else 0):
        write_ground_truth(data, data.inventory.cases, plans.image_reader_writer_class)
        return True
    problems = [Problem(reason, "Mend the case, or leave it out.", name) for name, reason in failures.items()]
    subject = f"{data.name}: the preprocessing of {count(len(problems), 'case')} failed, the others are kept"
    raise_problems(subject, problems)
    if missing:
        left = count(len(missing), "case")
        on_message(f"{configuration}: shard {shard} is done, {left} of other shards are not yet.")
        return False
    write_ground_truth(data, data.inventory.cases, plans.image_reader_writer_class)
    write_dataset_json(data)  # plans that were moved here come without
    folder.finish()
    return True


def is_own(folder: Path) -> bool:
    """Whether the cases in a folder were preprocessed here; else nothing says what they were made of."""
    return (folder / _DONE).is_dir()


def check_made_for(folder: Path, plans: Mapping[str, Any], configuration: str) -> None:
    """Refuse cases that were preprocessed in another way than plans say; nnU-Net's own do not tell how they were.

    Args:
        folder: ``nnUNet_preprocessed/DatasetXXX_NAME``.
        plans: of the data set.
        configuration: of the plans.
    """
    cases = folder / PlansManager(dict(plans)).get_configuration(configuration).data_identifier
    record = next((cases / _DONE).glob("*"), None)
    if record is None:
        return
    dataset_json = read_required_json(folder / "dataset.json", "The data set file")
    if _read(record)["key"][0] != preprocessing_key(plans, configuration, dataset_json):
        name = plans["plans_name"]
        raise NnplugError(
            f"The cases in {cases} were preprocessed in another way than '{configuration}' of {name} says. Run: "
            f"nnplug preprocess -d {folder.name} -plans_name {name} -c {configuration}, with the same --inventory or "
            "--cache-dir if there is one."
        )


def _run_own(
    made: type[DefaultPreprocessor], data: PlanningData, plans: str, configuration: str, pool: Pool, shard: Shard
) -> None:
    """A preprocessor that goes its own way is run as nnU-Net does."""
    if shard != WHOLE:
        raise NnplugError(f"{made.__name__} works on all cases in its own way: leave out --shard.")
    with data.activated():
        preprocessor = made(verbose=pool.verbose)
        preprocessor.show_progress_bar = pool.progress_bar
        preprocessor.run(data.name, configuration, plans, num_processes=max(1, pool.num_processes))


# --- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CaseFolder:
    """The folder of a configuration; ``keys`` tell what each case has to be made of."""

    path: Path
    keys: dict[str, list[Any]]
    unfinished: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unfinished", self.path.with_name(self.path.name + _UNFINISHED))

    def open(self, anew: Sequence[str]) -> bool:
        """Prepare it for work, cases in ``anew`` to be made again; True where nothing is to do."""
        is_whole = self.path.is_dir()
        if is_whole and not anew and set(self._made(self.path)) == set(self.keys) and not self.missing(self.path):
            return True
        with contextlib.suppress(FileNotFoundError), FolderUse(self.path.parent) as use:  # another shard was faster
            if is_whole:
                use.make_anew(patience_s=_PATIENCE_S)
            if is_whole and not is_own(self.path):
                # nnU-Net itself made it: kept until the new cases are whole
                now = time.strftime("%Y-%m-%d_%H-%M-%S")
                os.rename(self.path, self.path.with_name(f"{_REPLACED}{self.path.name}.{now}"))
            elif is_whole and self.unfinished.exists():
                shutil.rmtree(self.path)
            elif is_whole:
                os.rename(self.path, self.unfinished)
        (self.unfinished / _DONE).mkdir(parents=True, exist_ok=True)
        for name in self._made(self.unfinished):
            if name in anew or not self.is_done(name):
                (self.unfinished / _DONE / name).unlink(missing_ok=True)
        return False

    def is_done(self, name: str) -> bool:
        return self._holds(self.unfinished, name)

    def missing(self, folder: Path | None = None) -> list[str]:
        """Cases that are not there yet."""
        return [name for name in self.keys if not self._holds(folder or self.unfinished, name)]

    def is_made_elsewhere(self, patience_s: float) -> bool:
        """Whether the same command, run elsewhere, was faster; it takes away drafts before the folder has its name."""
        until = time.monotonic() + patience_s
        while self.missing(self.path):
            if time.monotonic() >= until:
                return False
            time.sleep(0.1)
        return True

    def finish(self) -> None:
        """Remove what belongs to no case and give the folder its name. Of several shards, the last one does it."""
        if self.is_made_elsewhere(0):
            shutil.rmtree(self.unfinished, ignore_errors=True)
            return
        with contextlib.suppress(FileNotFoundError):  # another shard was faster
            files = {name for case in self.keys for name in _read(self.unfinished / _DONE / case)["files"]}
            for path in self.unfinished.iterdir():
                if path.name not in files and path.name != _DONE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name in set(self._made(self.unfinished)) - set(self.keys):
                (self.unfinished / _DONE / name).unlink()
            os.rename(self.unfinished, self.path)
            for replaced in self.path.parent.glob(f"{_REPLACED}{glob.escape(self.path.name)}.*"):
                shutil.rmtree(replaced, ignore_errors=True)

    def put(self, draft: Path, name: str) -> None:
        """Move the files of a case here; its record comes last."""
        files = sorted(path.name for path in draft.iterdir())
        for file in files:
            flush_to_disk(draft / file)
            os.replace(draft / file, self.unfinished / file)
        record = draft / "record"
        record.write_text(json.dumps({"key": self.keys[name], "files": files}))
        flush_to_disk(record)
        os.replace(record, self.unfinished / _DONE / name)

    def _holds(self, folder: Path, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            record = _read(folder / _DONE / name)
            return record["key"] == self.keys[name] and all((folder / file).is_file() for file in record["files"])
        return False

    @staticmethod
    def _made(folder: Path) -> list[str]:
        return os.listdir(folder / _DONE) if (folder / _DONE).is_dir() else []


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@dataclass(frozen=True)
class _Job:
    """What the workers need."""

    preprocessor: DefaultPreprocessor
    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    folder: _CaseFolder


def _preprocess_case(job: _Job, name: str, files: CaseFiles) -> None:
    """In a worker: nnU-Net's work on one case, into a folder of its own, then into its place."""
    draft = job.folder.unfinished / f".{uuid.uuid4()}"
    draft.mkdir()
    try:
        with telling_when_full(draft):
            job.preprocessor.run_case_save(
                str(draft / name),
                list(map(str, files.images)),
                str(files.label),
                job.plans,
                job.configuration,
                job.dataset_json,
            )
            job.folder.put(draft, name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
