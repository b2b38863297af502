"""The tests' own helpers: they must not hide a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import clean_environment, run_stock
from support.datasets import DatasetForTests, check_untouched


def test_results_folders_are_fresh_and_data_is_shared(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    other = tiny_dataset.with_results(tmp_path / "other")
    assert list(tiny_dataset.results.iterdir()) == []
    assert other.raw == tiny_dataset.raw
    assert other.env["nnUNet_results"] == str(tmp_path / "other")


def test_tiny_dataset_is_planned_preprocessed_and_split(tiny_dataset: DatasetForTests) -> None:
    folder = tiny_dataset.preprocessed_folder
    cases = sorted(path.name for path in (folder / "gt_segmentations").iterdir())
    assert len(cases) == 5
    for configuration in ("3d_fullres", "2d"):
        assert len(list((folder / f"nnUNetPlans_{configuration}").glob("*.pkl"))) == 5
    assert [len(split["val"]) for split in tiny_dataset.splits] == [1] * 5


def test_activated_sets_variables_only_inside(tiny_dataset: DatasetForTests) -> None:
    before = dict(os.environ)
    with tiny_dataset.activated(nnUNet_n_proc_DA="3"):
        assert os.environ["nnUNet_raw"] == str(tiny_dataset.raw)
        assert os.environ["nnUNet_n_proc_DA"] == "3"
    assert dict(os.environ) == before


def test_commands_do_not_inherit_nnunet_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "mine")
    assert "nnUNet_results" not in clean_environment()
    assert clean_environment({"nnUNet_results": "given"})["nnUNet_results"] == "given"


def test_writing_into_shared_data_is_noticed(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "x"
    shutil.copytree(tiny_dataset.raw.parent, cache)
    copy = DatasetForTests(901, tiny_dataset.name, cache / "raw", cache / "preprocessed", tmp_path)
    check_untouched(copy)
    (copy.preprocessed_folder / "stray.json").write_text("{}")
    with pytest.raises(AssertionError, match=r"wrote into the shared data set Dataset901_Tiny: .*stray\.json"):
        check_untouched(copy)
    assert not cache.exists()


def test_a_stock_command_that_fails_fails_the_test() -> None:
    with pytest.raises(AssertionError, match=r"(?s)returned 1.*no command nnUNetv2_nothing is installed"):
        run_stock("nnUNetv2_nothing")


def test_stock_finds_trainers_beside_any_torchvision(tiny_dataset: DatasetForTests) -> None:
    # a trainer other than nnUNetTrainer makes nnU-Net import every trainer module, timm and torchvision included
    result = run_stock(
        "nnUNetv2_train", 901, "2d", 0, "-tr", "nnUNetTrainer_5epochs", "-device", "cpu", "--val",
        env=tiny_dataset.env, check=False,
    )  # fmt: skip
    assert "Cannot run validation because the training is not finished yet!" in result.stderr
    assert tiny_dataset.model_folder("nnUNetTrainer_5epochs", "2d").is_dir()


@pytest.mark.parametrize(("is_ci", "outcome"), [(True, "1 error"), (False, "1 skipped")])
def test_missing_real_images_fail_only_where_ci_says_so(tmp_path: Path, is_ci: bool, outcome: str) -> None:
    tests = tmp_path / "project" / "tests"
    source = Path(__file__).resolve().parents[1]
    shutil.copytree(source / "support", tests / "support", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "conftest.py", tests)
    (tests / "test_it.py").write_text("def test_it(hippocampus):\n    assert hippocampus\n")
    environment = {**clean_environment({"PYTHONPATH": str(tests)}), "CI": "true" if is_ci else ""}
    command = [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:cacheprovider", "--rootdir", tests, tests]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tests, check=False)
    assert outcome in done.stdout, done.stdout + done.stderr
    assert "real images are missing: expected the folder ../shared/data beside the project" in done.stdout
    assert done.returncode == (1 if is_ci else 0)
