"""nnU-Net's ``progress.png`` at a bounded cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnplug.files.atomic_file import replace_file

MAX_SHARE_OF_PLOTTING = 0.01
EXPECTED_SECONDS_OF_FIRST_PLOT = 0.5
PLOTTED_KEYS = (
    "mean_fg_dice",
    "ema_fg_dice",
    "train_losses",
    "val_losses",
    "lrs",
    "epoch_start_timestamps",
    "epoch_end_timestamps",
)


class ThrottledPlot:
    """Draws nnU-Net's ``progress.png`` in a background thread, only as often as it stays below 1 % of the elapsed time.

    The first picture comes at the first end of an epoch that can afford it (within the first minute), the last with
    :meth:`finish`. A plot that fails (full disk) never reaches the training; ``error`` holds the reason.

    Args:
        output_folder: folder of the fold; the picture is replaced in one step.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        output_folder: Path | str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(output_folder) / "progress.png"
        self.error: str | None = None
        self._clock = clock
        self._began = clock()
        self._spent = 0.0
        self._expected = EXPECTED_SECONDS_OF_FIRST_PLOT
        self._thread: threading.Thread | None = None

    def update(self, logging: Mapping[str, Sequence[Any]]) -> bool:
        """Draw if it can be afforded now; returns at once. ``logging`` is nnU-Net's dict of lists, one value an epoch.

        Returns:
            Whether a picture was begun.
        """
        if self._thread is not None and self._thread.is_alive():
            return False
        if self._spent + self._expected > MAX_SHARE_OF_PLOTTING * (self._clock() - self._began):
            return False
        self._start(logging)
        return True

    def finish(self, logging: Mapping[str, Sequence[Any]]) -> None:
        """Draw in any case and wait for it: the end of the training, or its interruption."""
        self._wait()
        self._start(logging)
        self._wait()

    def _start(self, logging: Mapping[str, Sequence[Any]]) -> None:
        copy = {key: list(logging[key]) for key in PLOTTED_KEYS}
        self._thread = threading.Thread(target=self._draw, args=(copy,), name="nnplug-progress-png")
        self._thread.start()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _draw(self, logging: dict[str, list[float]]) -> None:
        began = self._clock()
        try:
            plot_progress(logging, self.path)
            self.error = None
        except Exception as error:
            self.error = str(error) or type(error).__name__
        self._expected = self._clock() - began
        self._spent += self._expected


def plot_progress(logging: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw losses and pseudo Dice, epoch durations, and learning rates over the epochs, as nnU-Net's own picture does.

    Args:
        logging: nnU-Net's lists, one value an epoch; an epoch that lacks a value in any of them is left out.
        path: PNG file, replaced in one step.
    """
    # pyplot's state belongs to the main thread; a Figure alone has none.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_epochs = min(len(logging[key]) for key in PLOTTED_KEYS)
    if num_epochs == 0:
        return
    values = {key: logging[key][:num_epochs] for key in PLOTTED_KEYS}
    epochs = range(num_epochs)
    figure = Figure(figsize=(9, 12))
    FigureCanvasAgg(figure)
    # Fixed margins: laying out text by measuring it draws everything twice.
    figure.subplots_adjust(left=0.11, right=0.91, bottom=0.05, top=0.96, hspace=0.3)
    losses, durations, rates = figure.subplots(3, 1)
    dice = losses.twinx()
    # A line through one point is nothing to see.
    marker = "o" if num_epochs < 10 else ""
    losses.plot(epochs, values["train_losses"], "b-", marker=marker, label="loss_tr")
    losses.plot(epochs, values["val_losses"], "r-", marker=marker, label="loss_val")
    dice.plot(epochs, values["mean_fg_dice"], "g:", marker=marker, label="pseudo dice")
    dice.plot(epochs, values["ema_fg_dice"], "g-", marker=marker, label="pseudo dice (mov. avg.)")
    dice.set_ylabel("pseudo dice")
    dice.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    seconds = [e - s for s, e in zip(values["epoch_start_timestamps"], values["epoch_end_timestamps"], strict=True)]
    durations.plot(epochs, seconds, "b-", marker=marker, label="epoch duration")
    durations.set_ylim(0, 1.1 * max(*seconds, 0.001))
    rates.plot(epochs, values["lrs"], "b-", marker=marker, label="learning rate")
    for axes, label in ((losses, "loss"), (durations, "time [s]"), (rates, "learning rate")):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=100))
