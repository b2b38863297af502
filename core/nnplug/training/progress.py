"""How a training shows itself: a live display on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

MIN_SECONDS_BETWEEN_DRAWINGS = 0.5
MAX_SECONDS_BETWEEN_DRAWINGS = 2.0
SHARE_OF_DRAWING = 0.001
NUM_EPOCHS_FOR_ETA = 5


class Number(Protocol):
    """A float, or anything on the host that float() takes, such as a 0-d numpy array."""

    def __float__(self) -> float: ...


def duration_text(seconds: float) -> str:
    """A duration in its two largest units: ``41 s``, ``12 min 5 s``, ``2 h 11 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError(seconds)


class TrainingProgress:
    """Shows a training: on a terminal as a live display below everything printed, elsewhere as one line an epoch.

    Use it in the main thread of one process (rank 0), and call :meth:`close` in a ``finally``. A terminal that goes
    away ends the display, never the training.

    Args:
        num_epochs: epochs of the whole training; may be set again later (attribute of the same name).
        steps_per_epoch: training steps in one epoch.
        stream: where to write; None is ``sys.stdout``.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        num_epochs: int,
        steps_per_epoch: int,
        stream: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_epochs = num_epochs
        self.steps_per_epoch = steps_per_epoch
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._console = self._console_of_terminal()
        self._live: Live | None = None
        self._next_drawing = 0.0
        self._last_epoch_line = ""
        self._durations: deque[float] = deque(maxlen=NUM_EPOCHS_FOR_ETA)
        self._first_step_done_at: float | None = None
        self._begin_epoch(0, 0)
        _shown.add(self)

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal that a live display can be drawn on."""
        return self._console is not None

    def start_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Begin an epoch (0-based); ``first_step`` is the first step to run when training resumes inside it."""
        self._begin_epoch(epoch, first_step)
        if self._console is not None and self._live is None:
            self._start_live(self._console)
        self._draw_if_due()

    def step(self, loss: Number | None) -> None:
        """One training step is done. ``loss`` has to be on the host already; it is read when something is drawn."""
        self._done += 1
        if loss is not None:
            self._unread_losses.append(loss)
        if self._done == self._first_step + 1:
            self._first_step_done_at = self._clock()
        self._draw_if_due()

    def start_validation(self, num_steps: int) -> None:
        """Begin the validation of the epoch."""
        self._phase, self._done, self._total = "validation", 0, num_steps
        self._draw_if_due()

    def validation_step(self) -> None:
        """One validation step is done."""
        self._done += 1
        self._draw_if_due()

    def end_epoch(
        self,
        train_loss: Number | None,
        val_loss: Number | None,
        mean_dice: Number | None,
        ema_dice: Number | None,
        epoch_seconds: float,
        data_seconds: float | None,
    ) -> None:
        """Write the line of the epoch.

        Args:
            train_loss, val_loss, mean_dice, ema_dice: of the epoch; None is left out.
            epoch_seconds: of the whole epoch, what it took before an interruption included.
            data_seconds: the part of it that was spent waiting for data.
        """
        self._durations.append(epoch_seconds)
        parts = [
            _value_text("loss", train_loss, 4),
            _value_text("val", val_loss, 4),
            _value_text("dice", mean_dice, 3) + (f" (ema {float(ema_dice):.3f})" if ema_dice is not None else ""),
            f"{epoch_seconds:.1f} s" + _share_text(data_seconds, epoch_seconds),
        ]
        self._last_epoch_line = "  ".join(part for part in parts if part.strip())
        eta = (self.num_epochs - self._epoch - 1) * statistics.median(self._durations)
        line = f"epoch {self._epoch + 1}/{self._last_epoch()}  {self._last_epoch_line}"
        self._write_line(line + (f"  eta {duration_text(eta)}" if eta > 0 else ""))

    def close(self) -> None:
        """Take the live display away and give stdout and stderr back. May be called more than once."""
        live, self._live = self._live, None
        self._console = None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):
                live.stop()

    def _console_of_terminal(self) -> Console | None:
        # rich alone would also draw where FORCE_COLOR is set, as in many CI logs.
        if not _is_terminal(self._stream):
            return None
        console = Console(file=self._stream, highlight=False, markup=False)
        return console if console.is_terminal and not console.is_dumb_terminal else None

    def _begin_epoch(self, epoch: int, first_step: int) -> None:
        self._epoch = epoch
        self._epoch_began = self._clock()
        self._first_step = first_step
        self._first_step_done_at = None
        self._loss_sum = 0.0
        self._num_losses = 0
        self._unread_losses: list[Number] = []
        self._phase = "training"
        self._done = first_step
        self._total = self.steps_per_epoch

    def _share_to_run(self) -> float:
        """What a resumed epoch still runs of its training steps, above 0."""
        return max(1, self.steps_per_epoch - self._first_step) / max(1, self.steps_per_epoch)

    def _start_live(self, console: Console) -> None:
        self._streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        # A stream that does not go to the terminal (`> file`, `| program`) has to stay untouched.
        live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
        )
        self._live = live
        self._next_drawing = self._clock()
        self._guarded(live.start)

    def _draw_if_due(self) -> None:
        began = self._clock()
        live = self._live
        if live is None or began < self._next_drawing:
            return
        self._guarded(lambda: live.update(self._picture(began), refresh=True))
        if self._live is not None:
            now = self._clock()
            pause = max(MIN_SECONDS_BETWEEN_DRAWINGS, (now - began) / SHARE_OF_DRAWING)
            # A drawing that happened to be interrupted by other programs must not stop the display for long.
            self._next_drawing = now + min(MAX_SECONDS_BETWEEN_DRAWINGS, pause)

    def _write_line(self, line: str) -> None:
        console = self._console
        if console is not None and self._live is not None:
            self._guarded(lambda: console.print(line, soft_wrap=True))
            return
        # A log that can no longer be written (full disk, closed pipe) is no reason to lose a training.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    def _guarded(self, draw: Callable[[], None]) -> None:
        try:
            draw()
        except (OSError, ValueError):
            self.close()

    def _last_epoch(self) -> int:
        return max(self.num_epochs, self._epoch + 1)

    def _picture(self, now: float) -> Text:
        for loss in self._unread_losses:
            self._loss_sum += float(loss)
        self._num_losses += len(self._unread_losses)
        self._unread_losses = []
        assert self._console is not None
        width = max(8, min(40, self._console.width - 70))
        filled = round(width * min(1.0, self._done / max(1, self._total)))
        full, empty = ("#", "-") if self._console.options.ascii_only else ("━", "─")
        eta = self._eta(now)
        picture = Text.assemble(
            (f"epoch {self._epoch + 1}/{self._last_epoch()} ", "bold"),
            (full * filled, "green"),
            (empty * (width - filled), "dim"),
            f" {self._phase} {self._done}/{self._total}",
            f"  loss {self._loss_sum / self._num_losses:.4f}" if self._num_losses else "",
            "" if eta is None else f"  eta {duration_text(eta)}",
            f"\nlast epoch: {self._last_epoch_line}" if self._last_epoch_line else "",
        )
        picture.no_wrap, picture.overflow = True, "ellipsis"
        return picture

    def _eta(self, now: float) -> float | None:
        """Seconds to the end of the training, None while nothing is known."""
        num_later = max(0, self.num_epochs - self._epoch - 1)
        if self._durations:
            duration = statistics.median(self._durations)
            return num_later * duration + max(0.0, self._share_to_run() * duration - (now - self._epoch_began))
        # The first step pays for warming up (kernels, compilation), so it says nothing about the others.
        num_timed = self._done - self._first_step - 1
        if self._phase != "training" or self._first_step_done_at is None or num_timed < 1:
            return None
        per_step = (now - self._first_step_done_at) / num_timed
        return per_step * (self.steps_per_epoch - self._done + num_later * self.steps_per_epoch)


_shown: weakref.WeakSet[TrainingProgress] = weakref.WeakSet()


def _leave_display_to_parent() -> None:
    """A forked data worker must not draw; what it prints goes to the terminal as it is."""
    for progress in list(_shown):
        if progress._live is not None:
            progress._live = None
            progress._console = None
            for name, stream in progress._streams.items():
                if isinstance(getattr(sys, name), FileProxy):
                    setattr(sys, name, stream)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_display_to_parent)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError, OSError):
        return False


def _value_text(name: str, value: Number | None, digits: int) -> str:
    return "" if value is None else f"{name} {float(value):.{digits}f}"


def _share_text(part: float | None, whole: float) -> str:
    return "" if part is None or whole <= 0 else f" (data {100 * part / whole:.0f} %)"
