"""Data sets that tests train on: made once, kept between test sessions, shared between tests and never written to."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from filelock import FileLock
from nnplug.datasets import environment

DATA_FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data"
CONFIGURATIONS = ("3d_fullres", "2d")


@dataclass(frozen=True)
class DatasetForTests:
    """A planned and preprocessed nnU-Net data set, and a results folder of its own.

    Attributes:
        id: nnU-Net's number, for example 901.
        name: folder name, for example ``Dataset901_Tiny``.
        raw, preprocessed, results: nnU-Net's three root folders; the first two are shared and read-only.
    """

    id: int
    name: str
    raw: Path
    preprocessed: Path
    results: Path

    @property
    def raw_folder(self) -> Path:
        return self.raw / self.name

    @property
    def preprocessed_folder(self) -> Path:
        return self.preprocessed / self.name

    @property
    def results_folder(self) -> Path:
        return self.results / self.name

    @property
    def splits(self) -> list[dict[str, list[str]]]:
        return json.loads((self.preprocessed_folder / "splits_final.json").read_text())

    @property
    def env(self) -> dict[str, str]:
        """nnU-Net's variables for this data set: for a process, or for :meth:`activated`."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            # augmentation in the training process itself: starting workers costs more than a tiny run
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "0",
        }

    def model_folder(self, trainer: str, configuration: str = "3d_fullres", plans: str = "nnUNetPlans") -> Path:
        """Where nnU-Net puts a model."""
        return self.results_folder / f"{trainer}__{plans}__{configuration}"

    def with_results(self, results: Path) -> DatasetForTests:
        """The same data with another results folder, which is made."""
        results.mkdir(parents=True, exist_ok=True)
        return replace(self, results=results)

    def private_copy(self, folder: Path) -> DatasetForTests:
        """A copy that a test may change (splits, plans, cases), with a results folder beside it."""
        for root in ("raw", "preprocessed"):
            shutil.copytree(getattr(self, root) / self.name, folder / root / self.name)
        copy = replace(self, raw=folder / "raw", preprocessed=folder / "preprocessed")
        return copy.with_results(folder / "results")

    @contextlib.contextmanager
    def activated(self, **more: str) -> Iterator[DatasetForTests]:
        """Set the variables in this process for a ``with`` block; ``more`` adds to them or replaces some."""
        with environment(**{**self.env, **more}):
            yield self


# --- preparing -------------------------------------------------------------------------------------------------------


def prepared(name: str, write_raw: Callable[[Path], None], cache: Path) -> DatasetForTests:
    """The data set of this name from the cache, or made now.

    Args:
        name: ``DatasetXXX_NAME``.
        write_raw: writes nnU-Net's raw data set into the folder it is given.
        cache: folder kept between sessions. Two pytest processes may use it at once.

    Returns:
        The data set, with a results folder that does not exist.
    """
    key = _cache_key(name)
    folder = cache / f"{name}-{key}"
    dataset = DatasetForTests(
        id=int(name[7:10]), name=name, raw=folder / "raw", preprocessed=folder / "preprocessed", results=folder / "none"
    )
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}-{key}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"{name}-making-") as making:
                draft = replace(dataset, raw=Path(making, "raw"), preprocessed=Path(making, "preprocessed"))
                _prepare(draft, write_raw)
                Path(making, "files.json").write_text(json.dumps(_files(Path(making))))
                shutil.copytree(making, f"{folder}.copy", dirs_exist_ok=True)
            os.rename(f"{folder}.copy", folder)  # whole or not there at all
    return dataset


def check_untouched(dataset: DatasetForTests) -> None:
    """Fail where a test wrote into the shared data, and forget that data, so that the next session makes it again."""
    folder = dataset.raw.parent
    before, now = json.loads((folder / "files.json").read_text()), _files(folder)
    changed = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    if changed:
        os.rename(folder, tempfile.mkdtemp(dir=folder.parent, prefix="written-to-"))
        raise AssertionError(f"a test wrote into the shared data set {dataset.name}: {changed}. Use private_copy().")


def _cache_key(name: str) -> str:
    parts = [name, Path(__file__).read_text()]
    parts += [f"{package} {importlib.metadata.version(package)}" for package in ("nnunetv2", "numpy", "simpleitk")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _files(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "files.json" and path.suffix != ".use"  # who reads them, locked
    }


def _prepare(dataset: DatasetForTests, write_raw: Callable[[Path], None]) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    write_raw(dataset.raw_folder)
    # planning gives the number of augmentation processes to torch as its number of threads, which can not be 0
    log = io.StringIO()
    with dataset.activated(nnUNet_n_proc_DA="1"), _threads_for_processes(), contextlib.redirect_stdout(log):
        extract_fingerprints(
            [dataset.id], num_processes=1, check_dataset_integrity=True, verbose=False, show_progress_bar=False
        )
        plan_experiments([dataset.id])
        preprocess([dataset.id], configurations=CONFIGURATIONS, num_processes=(1,), show_progress_bar=False)
    cases = sorted(path.name.partition(".")[0] for path in (dataset.raw_folder / "labelsTr").iterdir())
    splits = generate_crossval_split(cases, seed=12345, n_splits=min(5, len(cases)))  # as nnU-Net's trainer does
    (dataset.raw.parent / "preparing.log").write_text(log.getvalue())
    (dataset.preprocessed_folder / "splits_final.json").write_text(json.dumps(splits, indent=2))


@contextlib.contextmanager
def _threads_for_processes() -> Iterator[None]:
    """Pools of threads in place of spawned processes: each would import torch for longer than the work takes."""

    class Context:
        Pool = ThreadPool

    original = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: Context if method == "spawn" else original(method)  # type: ignore
    try:
        yield
    finally:
        multiprocessing.get_context = original


# --- raw data --------------------------------------------------------------------------------------------------------


def write_dataset_json(
    folder: Path,
    *,
    labels: dict[str, int],
    num_cases: int,
    channels: tuple[str, ...] = ("MRI",),
    ending: str = ".nii.gz",
) -> None:
    content = {
        "channel_names": {str(index): channel for index, channel in enumerate(channels)},
        "labels": labels,
        "numTraining": num_cases,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2))


def write_tiny(folder: Path) -> None:
    """Five made-up volumes with a bright ball (label 1) and a brighter box (label 2) in noise: learnt in seconds."""
    import SimpleITK as sitk

    rng = np.random.default_rng(901)
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    shape = np.array((24, 28, 24))
    for index in range(5):
        grid = np.indices(shape)
        ball_centre = rng.integers(8, 11, 3)
        box_start = rng.integers(14, 17, 3)
        label = np.zeros(shape, np.uint8)
        label[
            sum((axis - centre) ** 2 for axis, centre in zip(grid, ball_centre, strict=True)) <= rng.uniform(22, 30)
        ] = 1
        label[tuple(slice(start, start + 5) for start in box_start)] = 2
        image = rng.normal(100, 10, shape) + 60 * (label == 1) + 120 * (label == 2)
        for array, path in (
            (image.astype(np.float32), f"imagesTr/tiny_{index:02d}_0000.nii.gz"),
            (label, f"labelsTr/tiny_{index:02d}.nii.gz"),
        ):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing((1.0, 1.0, 1.2))
            volume.SetOrigin((-11.0, 7.0, 3.0))
            sitk.WriteImage(volume, str(folder / path))
    write_dataset_json(folder, labels={"background": 0, "ball": 1, "box": 2}, num_cases=5)


def write_hippocampus(folder: Path, num_cases: int = 12) -> None:
    """The first cases of the Medical Segmentation Decathlon's Task04, files unchanged."""
    source = DATA_FOLDER / "Task04_Hippocampus"
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for label in sorted((source / "labelsTr").glob("*.nii.gz"))[:num_cases]:
        case = label.name.removesuffix(".nii.gz")
        shutil.copyfile(label, folder / "labelsTr" / label.name)
        shutil.copyfile(source / "imagesTr" / label.name, folder / "imagesTr" / f"{case}_0000.nii.gz")
    write_dataset_json(folder, labels={"background": 0, "anterior": 1, "posterior": 2}, num_cases=num_cases)


def write_ms_lesions(folder: Path) -> None:
    """Four cases with four channels (FLAIR, T1, T2, T1 with contrast) and many small lesions, files unchanged."""
    source = DATA_FOLDER / "ms_lesions_4ch"
    for sub, images in (("imagesTr", "images"), ("labelsTr", "labels")):
        shutil.copytree(source / images, folder / sub)
    channels = ("FLAIR", "T1", "T2", "T1_contrast")
    write_dataset_json(folder, labels={"background": 0, "lesion": 1}, num_cases=4, channels=channels)
