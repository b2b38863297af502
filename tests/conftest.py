"""Fixtures for every test: prepared data sets, and the commands in processes of their own.

``tiny_dataset`` (made up) and ``hippocampus``, ``ms_lesions``, ``sparse_concrete`` (real) are prepared once, kept in
pytest's cache and shared; each test gets a fresh results folder. Fixtures of a wider scope start from ``tiny_prepared``
and the like, and add ``.with_results(folder)``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.commands import run_nnplug as _run_nnplug
from support.commands import run_stock as _run_stock
from support.datasets import (
    DATA_FOLDER,
    DatasetForTests,
    check_untouched,
    prepared,
    write_hippocampus,
    write_ms_lesions,
    write_tiny,
)
from support.sparse_data import write_sparse_concrete

# what the machine's owner has set for real work must not reach a test; nnU-Net reads some of these when it is imported
for _variable in [name for name in os.environ if name.startswith("nnUNet_")]:
    del os.environ[_variable]
os.environ["nnUNet_def_n_proc"] = "1"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real images beside the project. Without them a test is skipped; under CI=true it fails."""
    return require_data()


def require_data() -> Path:
    if not DATA_FOLDER.is_dir():
        reason = "real images are missing: expected the folder ../shared/data beside the project"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return DATA_FOLDER


def _prepared_fixture(name: str, write_raw: Callable[[Path], None], *, real: bool) -> Callable[..., object]:
    @pytest.fixture(scope="session")
    def fixture(request: pytest.FixtureRequest) -> Iterator[DatasetForTests]:
        if real:
            require_data()
        start = time.perf_counter()
        dataset = prepared(name, write_raw, Path(request.config.cache.mkdir("nnplug-datasets")))
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n[{name} ready in {time.perf_counter() - start:.1f} s]")
        yield dataset
        check_untouched(dataset)

    return fixture


tiny_prepared = _prepared_fixture("Dataset901_Tiny", write_tiny, real=False)
hippocampus_prepared = _prepared_fixture("Dataset004_Hippocampus", write_hippocampus, real=True)
ms_lesions_prepared = _prepared_fixture("Dataset007_MSLesions", write_ms_lesions, real=True)
sparse_concrete_prepared = _prepared_fixture("Dataset008_SparseConcrete", write_sparse_concrete, real=True)


@pytest.fixture
def tiny_dataset(tiny_prepared: DatasetForTests, tmp_path: Path) -> DatasetForTests:
    """Five made-up volumes, two labels that a network learns in seconds."""
    return tiny_prepared.with_results(tmp_path / "results")


@pytest.fixture
def hippocampus(hippocampus_prepared: DatasetForTests, tmp_path: Path) -> DatasetForTests:
    """Twelve real MR volumes of the hippocampus, two labels."""
    return hippocampus_prepared.with_results(tmp_path / "results")


@pytest.fixture
def ms_lesions(ms_lesions_prepared: DatasetForTests, tmp_path: Path) -> DatasetForTests:
    """Four real MR cases with four channels and many small lesions."""
    return ms_lesions_prepared.with_results(tmp_path / "results")


@pytest.fixture
def sparse_concrete(sparse_concrete_prepared: DatasetForTests, tmp_path: Path) -> DatasetForTests:
    """Four real CT blocks with an ignore label on nine slices of ten."""
    return sparse_concrete_prepared.with_results(tmp_path / "results")


@pytest.fixture(scope="session")
def run_nnplug() -> Callable[..., object]:
    """``run_nnplug("train", 901, ..., env=tiny_dataset.env)``; also ``from support import run_nnplug``."""
    return _run_nnplug


@pytest.fixture(scope="session")
def run_stock() -> Callable[..., object]:
    """``run_stock("nnUNetv2_train", 901, ..., env=tiny_dataset.env)``; also ``from support import run_stock``."""
    return _run_stock


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of nnU-Net's hundred million intensities, here and in what it is compared with."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    init = DatasetFingerprintExtractor.__init__

    def with_few(self: DatasetFingerprintExtractor, *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e5

    monkeypatch.setattr(DatasetFingerprintExtractor, "__init__", with_few)
