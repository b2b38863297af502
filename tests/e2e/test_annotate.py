"""``nnplug annotate`` as it is used: a real window of napari, on a screen that nobody sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from support.commands import clean_environment
from support.displays import has_virtual_display, virtual_display

CLASSES = "name,colour\nsolid,#a0522d\npore,#3070ff\n"
# paints, waits until that has been saved by itself, paints again, and is then ended like at a shutdown
HAND = """
import os, signal, sys
import napari.qt
from qtpy.QtCore import QTimer

napari.qt.get_qapp()
path = sys.argv[1]

def paint(index):
    layer = napari.current_viewer().layers["annotation"]
    layer.brush_size = 1
    layer.paint((index, 3, 3), layer.selected_label)

def choose():
    viewer = napari.current_viewer()
    layer, classes = viewer.layers["annotation"], viewer.window.dock_widgets["classes"]
    assert [classes.item(row).text() for row in range(classes.count())] == ["0 not annotated", "1 solid", "2 pore"]
    assert classes.currentRow() == layer.selected_label == 1
    classes.setCurrentRow(2)
    assert layer.selected_label == 2
    layer.selected_label = 0
    assert classes.currentRow() == 0
    layer.selected_label = 2

def begin():
    viewer = napari.current_viewer()
    if viewer is None or "annotation" not in viewer.layers:
        return QTimer.singleShot(100, begin)
    choose()
    viewer.screenshot(sys.argv[2], canvas_only=False, flash=False)
    paint(0)
    wait()

def wait():
    if not os.path.exists(path):
        return QTimer.singleShot(50, wait)
    paint(1)
    os.kill(os.getpid(), signal.SIGTERM)

QTimer.singleShot(100, begin)
from nnplug.cli import main
sys.exit(main(sys.argv[3:]))
"""


def test_a_window_is_opened_painted_in_and_ended(tmp_path: Path) -> None:
    if not has_virtual_display():
        reason = "Xvfb is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    (tmp_path / "scans").mkdir()
    grey = np.zeros((5, 8, 9), np.uint16)
    grey[..., 4:] = 3000
    tifffile.imwrite(tmp_path / "scans" / "s1.tif", grey, photometric="minisblack")
    (tmp_path / "classes.csv").write_text(CLASSES)
    path = tmp_path / "drawn" / "s1.tif"
    arguments = [path, tmp_path / "window.png", "annotate", "-i", "scans", "-o", "drawn", "-id", "s1"]
    arguments += ["--classes", "classes.csv", "--autosave", "0.002"]
    with virtual_display() as screen:
        done = subprocess.run(
            [sys.executable, "-c", HAND, *map(str, arguments)],
            cwd=tmp_path,
            env=clean_environment({**screen, "NAPARI_CONFIG": str(tmp_path / "settings.yaml")}),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"{Path('drawn/s1.tif')}: begun with the middle slice by Otsu's threshold.\n{Path('drawn/s1.tif')}: saved.\n"
    )
    expected = np.zeros(grey.shape, np.uint8)
    expected[2] = np.where(grey[2] > 0, 2, 1)
    expected[[0, 1], 3, 3] = 2
    np.testing.assert_array_equal(tifffile.imread(path), expected)
    assert not (path.parent / "backups").exists(), "it was begun in this session"
    assert (tmp_path / "window.png").stat().st_size > 1000
