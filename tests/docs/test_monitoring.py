"""docs/monitoring.md: what it shows is what is written."""

from __future__ import annotations

import io
import re
from pathlib import Path

import nnplug_loggers
import pytest
from nnplug import EpochMetrics, TrainingRun
from nnplug.training.progress import TrainingProgress
from nnplug.training.progress_plot import MAX_SHARE_OF_PLOTTING

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
METRICS = EpochMetrics(
    epoch=0,
    learning_rate=0.01,
    train_loss=0.5,
    val_loss=0.4,
    mean_dice=0.6,
    ema_dice=0.55,
    dice_per_class=(0.5, 0.7),
    epoch_seconds=41.2,
    data_seconds=1.2,
)


@pytest.fixture
def fold_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where both loggers have written one epoch, switched on as the page says."""
    variables = re.findall(r"^export (nnplug_\w+)=(\w+)", PAGE, re.MULTILINE)
    assert len(variables) == 2
    for name, value in variables:
        monkeypatch.setenv(name, value)
    run = TrainingRun(
        trainer="nnUNetTrainer",
        dataset="Dataset004_Hippocampus",
        configuration="3d_fullres",
        plans="nnUNetPlans",
        fold="0",
        output_folder=tmp_path,
        num_epochs=1,
        device="cpu",
        is_resumed=False,
        config={},
        labels=("anterior", "posterior"),
    )
    nnplug_loggers.train_start(run)
    nnplug_loggers.epoch_end(run, METRICS)
    nnplug_loggers.train_end(run, {"status": "completed"})
    return tmp_path


def test_files_of_the_loggers_are_in_the_table(fold_folder: Path) -> None:
    table = PAGE.partition("\n\n## ")[0]
    for path in fold_folder.iterdir():
        assert f"| `{path.name}{'/' if path.is_dir() else ''}` |" in table


def test_columns_of_the_csv(fold_folder: Path) -> None:
    header = (fold_folder / "metrics.csv").read_text().splitlines()[0]
    assert f"```text\n{header}\n```" in PAGE


def test_tags_of_tensorboard(fold_folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(fold_folder / "tensorboard")).Reload().Tags()
    written = {*tags["scalars"], *(tag.removesuffix("/text_summary") for tag in tags["tensors"])}
    table = PAGE.partition("| tag | value |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([^`]+)`", table)) == written - {"dice_per_class/posterior"}


def test_line_of_an_epoch() -> None:
    stream = io.StringIO()
    progress = TrainingProgress(200, 250, stream)
    progress.start_epoch(10)
    progress.end_epoch(0.43121, 0.4021, 0.8121, 0.7991, 41.2, 1.2)
    assert f"```text\n{stream.getvalue()}```" in PAGE


def test_share_of_plotting() -> None:
    assert f"as often as it takes {100 * MAX_SHARE_OF_PLOTTING:.0f} % of the time" in PAGE


def test_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "monitoring.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("Sequential: 242 parameters (968 B)\n")
    assert f"('0', {2 * 32**3 * 8 * 27})" in printed


@pytest.mark.parametrize("page", re.findall(r"\]\((\w+\.md)\)", PAGE))
def test_pages_it_refers_to_exist(page: str) -> None:
    assert (Path(__file__).resolve().parents[2] / "docs" / page).is_file()
