"""The window: napari with the volume, the classes to choose from, and a save every now and then."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from nnplug.annotation.session import AnnotationSession
from nnplug.errors import NnplugError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels
    from qtpy.QtWidgets import QListWidget


#: Each of them tells Qt where to draw.
_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")


def require_window() -> None:
    """Say how to install napari where it, or its Qt, is missing, and that a screen is: Qt would abort.

    Raises:
        NnplugError: one of them is.
    """
    try:
        import napari.qt  # noqa: F401
    except Exception as error:  # qtpy has its own error for a missing Qt
        raise NnplugError(
            f"nnplug annotate needs napari ({error}). Install it: pip install 'nnplug[annotate]'"
        ) from None
    if sys.platform == "linux" and not any(os.environ.get(name) for name in _SCREENS):
        raise NnplugError(
            "nnplug annotate opens a window, and there is no screen here (DISPLAY is not set). Run it on a desktop, or "
            "log in with ssh -X."
        )


def annotate(session: AnnotationSession, autosave_minutes: float) -> None:
    """Open the window, save now and then, and once more when it is closed.

    Raises:
        NnplugError: there is no napari; the last save failed, and where the annotation is.
    """
    require_window()
    import napari
    from qtpy.QtCore import QTimer

    viewer = napari.Viewer(title=f"{session.path} - nnplug annotate")
    layer = add_layers(viewer, session)
    viewer.window.add_dock_widget(class_list(layer, session), name="classes", area="left")
    timer = QTimer()
    timer.timeout.connect(lambda: autosave(session, layer))
    timer.start(round(autosave_minutes * 60_000))
    try:
        with _closed_by_signals(viewer):
            napari.run()
    finally:
        timer.stop()
        session.save_finally(np.asarray(layer.data))


@contextmanager
def _closed_by_signals(viewer: Any) -> Iterator[None]:
    """Ctrl-C and a shutdown close the window, which saves, instead of ending the process."""
    from qtpy.QtCore import QTimer

    # Python looks for signals only when it runs, and Qt runs it for a timer
    waking = QTimer()
    waking.timeout.connect(lambda: None)
    waking.start(200)
    before = {number: signal.signal(number, lambda *_: viewer.close()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        waking.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def add_layers(viewer: ViewerModel, session: AnnotationSession) -> Labels:
    """The volume and, selected and ready to be painted, the annotation, at the middle slice."""
    from napari.utils.colormaps import DirectLabelColormap

    spacing = session.image.spacing
    viewer.add_image(session.volume, name="volume", scale=spacing)
    colours: dict[int | None, str] = {None: "transparent", 0: "transparent"}
    colours |= {number: one.colour for number, one in enumerate(session.classes, 1)}
    names = ["", *(one.name for one in session.classes)]
    layer = viewer.add_labels(
        session.labels,
        name="annotation",
        scale=spacing,
        colormap=DirectLabelColormap(color_dict=colours),
        # napari shows the row of the voxel under the pointer
        features={"index": list(range(len(names))), "class": names},
        opacity=0.5,
    )
    layer.mode = "paint"
    layer.selected_label = 1
    viewer.dims.set_current_step(0, len(session.labels) // 2)
    return layer


def class_list(layer: Labels, session: AnnotationSession) -> QListWidget:
    """Colours, numbers and names of the classes; the chosen one is painted with."""
    from qtpy.QtGui import QColor, QIcon, QPixmap
    from qtpy.QtWidgets import QListWidget, QListWidgetItem

    shown = QListWidget()
    rows = [("not annotated", "transparent"), *((one.name, one.colour) for one in session.classes)]
    for number, (name, colour) in enumerate(rows):
        square = QPixmap(16, 16)
        square.fill(QColor(colour))
        shown.addItem(QListWidgetItem(QIcon(square), f"{number} {name}"))
    shown.setCurrentRow(layer.selected_label)
    shown.currentRowChanged.connect(lambda row: setattr(layer, "selected_label", row))

    def follow() -> None:
        if layer.selected_label < len(rows):
            shown.setCurrentRow(layer.selected_label)

    layer.events.selected_label.connect(follow)
    return shown


def autosave(session: AnnotationSession, layer: Labels) -> None:
    """Save; a failure is shown in the window, and the next time it is tried again."""
    from napari.utils.notifications import show_warning

    try:
        session.save(np.asarray(layer.data))
    except NnplugError as error:
        show_warning(str(error))
    except Exception as error:
        show_warning(f"Could not write {session.path}: {error!r}.")
