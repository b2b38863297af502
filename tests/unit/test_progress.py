"""The live display, the plain lines, and progress.png."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from nnplug.training import progress_plot
from nnplug.training.progress import TrainingProgress, duration_text
from nnplug.training.progress_plot import PLOTTED_KEYS, ThrottledPlot, plot_progress
from rich.file_proxy import FileProxy


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and knows what a person would see on it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The visible lines. Carriage return, cursor up and erase line are all that the display uses but colours."""
        lines, row = [""], 0
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.getvalue()):
            if part == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif part == "\x1b[2K":
                lines[row] = ""
            elif match := re.fullmatch(r"\x1b\[(\d*)A", part):
                row = max(0, row - int(match.group(1) or 1))
            elif part[0] not in "\r\x1b":
                lines[row] += part
        return [line.rstrip() for line in lines if line.strip()]


@pytest.fixture(autouse=True)
def _known_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def attach(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let stdout and stderr be the terminal. To be called in the test: pytest sets both itself after the fixtures."""

    def attach() -> None:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)

    return attach


@pytest.fixture
def live(terminal: Terminal) -> Iterator[tuple[TrainingProgress, Clock]]:
    clock = Clock()
    progress = TrainingProgress(200, 250, terminal, clock=clock)
    yield progress, clock
    progress.close()


def run_epoch(progress: TrainingProgress, epoch: int, seconds: float = 41.2) -> None:
    progress.start_epoch(epoch)
    progress.step(0.5)
    progress.start_validation(1)
    progress.validation_step()
    progress.end_epoch(0.43124, 0.4021, 0.8121, 0.7991, seconds, 0.03 * seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (725, "12 min 5 s"),
        (7899, "2 h 11 min"),
        (7200, "2 h"),
        (273600, "3 d 4 h"),
        (-5, "0 s"),
    ],
)
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


# Without a terminal


def test_plain_lines_are_one_an_epoch() -> None:
    stream = io.StringIO()
    progress = TrainingProgress(13, 1, stream)
    run_epoch(progress, 11)
    run_epoch(progress, 12)
    progress.close()
    assert stream.getvalue() == (
        "epoch 12/13  loss 0.4312  val 0.4021  dice 0.812 (ema 0.799)  41.2 s (data 3 %)  eta 41 s\n"
        "epoch 13/13  loss 0.4312  val 0.4021  dice 0.812 (ema 0.799)  41.2 s (data 3 %)\n"
    )


def test_plain_line_of_a_long_training() -> None:
    stream = io.StringIO()
    run_epoch(TrainingProgress(200, 1, stream), 11, seconds=41.9)
    assert stream.getvalue().endswith("eta 2 h 11 min\n")


def test_plain_line_is_flushed() -> None:
    unflushed: list[str] = []
    seen: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            unflushed.append(text)
            return len(text)

        def flush(self) -> None:
            seen.extend(unflushed)
            unflushed.clear()

    run_epoch(TrainingProgress(5, 1, Stream()), 0)
    assert seen
    assert not unflushed


def test_plain_line_without_values() -> None:
    stream = io.StringIO()
    progress = TrainingProgress(2, 1, stream)
    progress.start_epoch(0)
    progress.end_epoch(float("nan"), None, float("nan"), None, 10, None)
    assert stream.getvalue() == "epoch 1/2  loss nan  dice nan  10.0 s  eta 10 s\n"


def test_forced_colours_make_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    progress = TrainingProgress(2, 1, stream)
    run_epoch(progress, 0)
    assert not progress.is_live
    assert "\x1b" not in stream.getvalue()


def test_dumb_terminal_gets_plain_lines(
    terminal: Terminal, attach: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    attach()
    monkeypatch.setenv("TERM", "dumb")
    progress = TrainingProgress(2, 1, terminal)
    run_epoch(progress, 0)
    assert not progress.is_live
    assert "\x1b" not in terminal.getvalue()
    assert sys.stdout is terminal


def test_broken_pipe_does_not_reach_the_training() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(text)

    run_epoch(TrainingProgress(2, 1, Broken()), 0)


# With a terminal


def test_display_shows_the_epoch(live: tuple[TrainingProgress, Clock], terminal: Terminal) -> None:
    progress, clock = live
    run_epoch(progress, 10)
    progress.start_epoch(11)
    for _ in range(125):
        clock.now += 0.5
        progress.step(0.25)
    history, *display = terminal.screen()
    assert history.startswith("epoch 11/200  loss 0.4312")
    assert display == [
        f"epoch 12/200 {'━' * 20}{'─' * 20} training 125/250  loss 0.2500  eta 2 h 9 min",
        "last epoch: loss 0.4312  val 0.4021  dice 0.812 (ema 0.799)  41.2 s (data 3 %)",
    ]
    progress.start_validation(50)
    clock.now += 1
    progress.validation_step()
    assert "validation 1/50" in terminal.screen()[-2]


def test_prints_stay_above_the_display(
    live: tuple[TrainingProgress, Clock], terminal: Terminal, attach: Callable[[], None]
) -> None:
    attach()
    progress, clock = live
    progress.start_epoch(0)
    for step in range(3):
        clock.now += 1
        progress.step(0.5)
        print(f"2026-01-01 10:00:0{step}: train_loss [bold] -0.51")
    assert [line for line in terminal.screen() if "train_loss" in line] == terminal.screen()[:3]
    assert "training 3/250" in terminal.screen()[3]
    progress.close()
    assert terminal.screen() == [f"2026-01-01 10:00:0{step}: train_loss [bold] -0.51" for step in range(3)]


def test_closing_gives_the_streams_back(
    live: tuple[TrainingProgress, Clock], terminal: Terminal, attach: Callable[[], None]
) -> None:
    attach()
    progress, _ = live
    progress.start_epoch(0)
    assert isinstance(sys.stdout, FileProxy)
    progress.close()
    progress.close()
    assert sys.stdout is terminal
    assert sys.stderr is terminal
    show_cursor, hide_cursor = "\x1b[?25h", "\x1b[?25l"
    assert show_cursor in terminal.getvalue().rpartition(hide_cursor)[2]
    written = terminal.getvalue()
    progress.step(0.5)
    progress.start_epoch(1)
    assert terminal.getvalue() == written


def test_epoch_line_after_closing_is_plain(
    live: tuple[TrainingProgress, Clock], terminal: Terminal, attach: Callable[[], None]
) -> None:
    attach()
    progress, _ = live
    run_epoch(progress, 0)
    progress.close()
    run_epoch(progress, 1)
    assert terminal.screen()[-1].startswith("epoch 2/200  loss 0.4312")
    assert sys.stdout is terminal


def test_a_stream_into_a_file_stays_untouched(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    progress = TrainingProgress(2, 1, terminal)
    progress.start_epoch(0)
    print('{"status": "completed"}')
    progress.close()
    assert file.getvalue() == '{"status": "completed"}\n'
    assert sys.stdout is file


def test_at_most_two_drawings_a_second(live: tuple[TrainingProgress, Clock], terminal: Terminal) -> None:
    progress, clock = live
    progress.start_epoch(0)
    before = len(terminal.getvalue())
    for _ in range(1000):
        clock.now += 0.01
        progress.step(0.5)
    num_drawings = len(re.findall("training", terminal.getvalue()[before:]))
    assert 10 <= num_drawings <= 20


@pytest.mark.parametrize(("seconds_per_write", "max_share"), [(0.0001, 0.001), (0.0005, 0.001), (0.5, 0.5)])
def test_drawing_takes_a_thousandth_of_the_time_unless_that_stops_the_display(
    seconds_per_write: float,
    max_share: float,
    live: tuple[TrainingProgress, Clock],
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    progress, clock = live
    progress.start_epoch(0)
    spent, write_times = 0.0, [clock.now]
    write = terminal.write

    def slow_write(text: str) -> int:
        nonlocal spent
        spent += seconds_per_write
        clock.now += seconds_per_write
        write_times.append(clock.now)
        return write(text)

    monkeypatch.setattr(terminal, "write", slow_write)
    began = clock.now
    for _ in range(5000):
        clock.now += 0.1
        progress.step(0.5)
    assert 0 < spent < max_share * (clock.now - began)
    pauses = [later - earlier for earlier, later in itertools.pairwise(write_times)]
    assert max(pauses) < 2.2 + seconds_per_write


def test_step_costs_less_than_50_microseconds(terminal: Terminal) -> None:
    import numpy as np

    progress = TrainingProgress(10, 50_000, terminal)
    loss = np.array(0.5, dtype=np.float32)
    progress.start_epoch(0)
    began = time.perf_counter()
    for _ in range(50_000):
        progress.step(loss)
    seconds_per_step = (time.perf_counter() - began) / 50_000
    progress.close()
    assert seconds_per_step < 50e-6


def test_losses_are_read_only_for_a_drawing(live: tuple[TrainingProgress, Clock]) -> None:
    num_read = 0

    class OnDevice:
        def __float__(self) -> float:
            nonlocal num_read
            num_read += 1
            return 0.5

    progress, clock = live
    progress.start_epoch(0)
    for _ in range(100):
        progress.step(OnDevice())
    assert num_read == 0
    clock.now += 1
    progress.step(OnDevice())
    assert num_read == 101


def test_resuming_inside_an_epoch(live: tuple[TrainingProgress, Clock], terminal: Terminal) -> None:
    progress, clock = live
    progress.start_epoch(198, first_step=200)
    assert f"{'━' * 32}{'─' * 8} training 200/250" in terminal.screen()[-1]
    for _ in range(20):
        clock.now += 0.5
        progress.step(0.5)
    assert terminal.screen()[-1].endswith("training 220/250  loss 0.5000  eta 2 min 20 s")
    clock.now += 15
    progress.end_epoch(0.4, 0.4, 0.8, 0.8, 125, 0)
    assert terminal.screen()[0].endswith("125.0 s (data 0 %)  eta 2 min 5 s")
    progress.start_epoch(199, first_step=125)
    clock.now += 2
    progress.step(0.5)
    assert "training 126/250  loss 0.5000  eta 1 min" in terminal.screen()[-2]


def test_eta_before_the_first_epoch_is_over_leaves_out_the_first_step(
    live: tuple[TrainingProgress, Clock], terminal: Terminal
) -> None:
    progress, clock = live
    progress.num_epochs = 1
    progress.start_epoch(0)
    clock.now += 60
    progress.step(0.5)
    assert "eta" not in terminal.screen()[-1]
    for _ in range(49):
        clock.now += 1
        progress.step(0.5)
    assert terminal.screen()[-1].endswith("training 50/250  loss 0.5000  eta 3 min 20 s")


def test_more_epochs_than_were_told(live: tuple[TrainingProgress, Clock], terminal: Terminal) -> None:
    progress, clock = live
    progress.num_epochs = 1
    run_epoch(progress, 3)
    assert terminal.screen()[0].startswith("epoch 4/4  ")
    assert "eta" not in terminal.screen()[0]
    progress.num_epochs = 5
    clock.now += 1
    progress.start_epoch(4)
    assert terminal.screen()[1].startswith("epoch 5/5 ")


def test_terminal_that_goes_away_ends_the_display_only(
    live: tuple[TrainingProgress, Clock],
    terminal: Terminal,
    attach: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attach()
    progress, clock = live
    progress.start_epoch(0)

    def hang_up(text: str) -> int:
        raise OSError(5, "Input/output error", text)

    monkeypatch.setattr(terminal, "write", hang_up)
    clock.now += 1
    progress.step(0.5)
    run_epoch(progress, 1)
    progress.close()
    assert sys.stdout is terminal
    assert not progress.is_live


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_worker_leaves_the_display_alone(
    live: tuple[TrainingProgress, Clock], terminal: Terminal, attach: Callable[[], None]
) -> None:
    attach()
    progress, clock = live
    progress.start_epoch(0)
    child = os.fork()
    if child == 0:
        clock.now += 10
        before = len(terminal.getvalue())
        progress.step(0.5)
        silent = len(terminal.getvalue()) == before
        os._exit(0 if sys.stdout is terminal and silent and not progress.is_live else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert isinstance(sys.stdout, FileProxy)
    assert progress.is_live


# progress.png


def logging_of(num_epochs: int) -> dict[str, list[Any]]:
    """nnU-Net's logging dict after some epochs."""
    epochs = range(num_epochs)
    return {
        "mean_fg_dice": [0.5 + 0.01 * epoch for epoch in epochs],
        "ema_fg_dice": [0.4 + 0.01 * epoch for epoch in epochs],
        "dice_per_class_or_region": [[0.5, 0.6] for _ in epochs],
        "train_losses": [-0.01 * epoch for epoch in epochs],
        "val_losses": [-0.02 * epoch for epoch in epochs],
        "lrs": [0.01 / (epoch + 1) for epoch in epochs],
        "epoch_start_timestamps": [100.0 * epoch for epoch in epochs],
        "epoch_end_timestamps": [100.0 * epoch + 41 for epoch in epochs],
    }


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn instead of being saved."""
    drawn: list[Any] = []
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    return drawn


def test_panels_are_those_of_nnunet(figures: list[Any], tmp_path: Path) -> None:
    logging = logging_of(3)
    plot_progress(logging, tmp_path / "progress.png")
    losses, durations, rates, dice = figures[0].axes
    drawn = {line.get_label(): list(line.get_ydata()) for axes in figures[0].axes for line in axes.get_lines()}
    assert drawn == {
        "loss_tr": logging["train_losses"],
        "loss_val": logging["val_losses"],
        "pseudo dice": logging["mean_fg_dice"],
        "pseudo dice (mov. avg.)": logging["ema_fg_dice"],
        "epoch duration": [41, 41, 41],
        "learning rate": logging["lrs"],
    }
    labels = [axes.get_ylabel() for axes in (losses, dice, durations, rates)]
    assert labels == ["loss", "pseudo dice", "time [s]", "learning rate"]
    assert durations.get_ylim()[0] == 0


def test_plotted_keys_are_nnunets() -> None:
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    assert set(PLOTTED_KEYS) <= set(LocalLogger().my_fantastic_logging)


def test_epoch_that_is_not_complete_is_left_out(figures: list[Any], tmp_path: Path) -> None:
    logging = logging_of(3)
    logging["lrs"].append(0.001)
    logging["epoch_start_timestamps"].append(300.0)
    plot_progress(logging, tmp_path / "progress.png")
    assert {len(line.get_xdata()) for axes in figures[0].axes for line in axes.get_lines()} == {3}


@pytest.mark.parametrize("num_epochs", [1, 2, 400])
def test_picture_is_written_and_nothing_else(num_epochs: int, tmp_path: Path) -> None:
    from matplotlib.image import imread

    plot = ThrottledPlot(tmp_path)
    plot.finish(logging_of(num_epochs))
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]
    picture = imread(tmp_path / "progress.png")
    assert picture.shape[:2] == (1200, 900)
    assert picture.std() > 0.05
    assert plot.error is None


def test_no_epoch_no_picture(tmp_path: Path) -> None:
    ThrottledPlot(tmp_path).finish(logging_of(0))
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_drawn(tmp_path: Path) -> None:
    logging = logging_of(3)
    logging["mean_fg_dice"] = [float("nan")] * 3
    logging["train_losses"] = [float("inf"), float("nan"), 1.0]
    plot = ThrottledPlot(tmp_path)
    plot.finish(logging)
    assert plot.error is None
    assert (tmp_path / "progress.png").is_file()


@pytest.mark.parametrize(("seconds_per_plot", "seconds_per_epoch"), [(0.3, 40.0), (0.3, 2.0), (5.0, 40.0)])
def test_plotting_takes_a_hundredth_of_the_time(
    seconds_per_plot: float, seconds_per_epoch: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    began = clock.now
    spent = 0.0

    def draw(*_: object) -> None:
        nonlocal spent
        clock.now += seconds_per_plot
        spent += seconds_per_plot

    monkeypatch.setattr(progress_plot, "plot_progress", draw)
    plot = ThrottledPlot(tmp_path, clock=clock)
    num_drawn = 0
    for epoch in range(500):
        clock.now += seconds_per_epoch
        num_drawn += plot.update(logging_of(epoch + 1))
        plot._wait()
    # The first plot may cost more than expected; later ones make up for it.
    assert spent <= 0.01 * (clock.now - began) + seconds_per_plot
    affordable = 500 * seconds_per_epoch * 0.01 / seconds_per_plot
    assert num_drawn >= 0.9 * min(500, affordable)
    if seconds_per_plot < 0.01 * seconds_per_epoch:
        assert num_drawn >= 499


def test_training_does_not_wait_for_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    release, drawn = threading.Event(), []

    def draw(logging: dict[str, list[float]], _path: Path) -> None:
        assert release.wait(30)
        drawn.append(len(logging["lrs"]))

    monkeypatch.setattr(progress_plot, "plot_progress", draw)
    plot = ThrottledPlot(tmp_path, clock=clock)
    clock.now += 3600
    logging = logging_of(1)
    assert plot.update(logging)
    for values in logging.values():
        values.append(values[0])
    assert not plot.update(logging)
    release.set()
    plot.finish(logging)
    assert drawn == [1, 2]


def test_no_plot_before_it_can_be_afforded_but_at_the_end(tmp_path: Path) -> None:
    plot = ThrottledPlot(tmp_path)
    assert not plot.update(logging_of(1))
    assert list(tmp_path.iterdir()) == []
    plot.finish(logging_of(1))
    assert (tmp_path / "progress.png").is_file()


def test_failing_plot_does_not_reach_the_training(tmp_path: Path) -> None:
    plot = ThrottledPlot(tmp_path / "missing")
    plot.finish(logging_of(1))
    assert plot.error is not None
    assert plot.error.startswith(f"Could not write {tmp_path / 'missing' / 'progress.png'}: No such file or directory")


def test_full_disk_keeps_the_picture_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    plot = ThrottledPlot(tmp_path)
    plot.finish(logging_of(1))
    before = (tmp_path / "progress.png").read_bytes()

    def cut_short(_figure: Figure, file: IO[bytes], **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Figure, "savefig", cut_short)
        plot.finish(logging_of(2))
    assert plot.error is not None
    assert plot.error.startswith(f"Could not write {tmp_path / 'progress.png'}: No space left on device")
    assert (tmp_path / "progress.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]
    plot.finish(logging_of(2))
    assert plot.error is None


@pytest.mark.parametrize("setup", ["", "import matplotlib; matplotlib.rcParams['backend'] = 'tkagg'"])
def test_plotting_needs_no_pyplot(setup: str, tmp_path: Path) -> None:
    code = (
        f"import sys\n{setup}\nfrom pathlib import Path\n"
        "from nnplug.training.progress_plot import plot_progress, PLOTTED_KEYS\n"
        "plot_progress({key: [1.0, 2.0] for key in PLOTTED_KEYS}, Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "progress.png")], check=True)
    assert (tmp_path / "progress.png").is_file()
