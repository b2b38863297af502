"""Files that are whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from nnplug.errors import NnplugError
from nnplug.prediction.reader_writer import CarefulReaderWriter, PredictionPlans
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from support.models import make_plans, write_image


def no_worker(_message: str) -> None:
    """As in the main process."""


KILLED = """
import os, signal, sys
import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnplug.prediction.reader_writer import CarefulReaderWriter

class KilledWriter(SimpleITKIO):
    def write_seg(self, seg, output_fname, properties):
        super().write_seg(seg, output_fname, properties)
        os.truncate(output_fname, 100)
        os.kill(os.getpid(), signal.SIGKILL)

image, target = sys.argv[1:]
_, properties = SimpleITKIO().read_images([image])
CarefulReaderWriter(KilledWriter(), print).write_seg(np.ones((14, 16, 18), np.uint8), target, properties)
"""


def test_a_killed_process_leaves_no_half_a_file(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a_0000.nii.gz")
    target = tmp_path / "out" / "a.nii.gz"
    target.parent.mkdir()
    process = subprocess.run([sys.executable, "-c", KILLED, str(image), str(target)])
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in target.parent.iterdir()] == [".a.nii.gz.unfinished"]
    _, properties = SimpleITKIO().read_images([str(image)])
    writer = CarefulReaderWriter(SimpleITKIO(), no_worker)
    writer.write_seg(np.ones((14, 16, 18), np.uint8), str(target), properties)
    assert [path.name for path in target.parent.iterdir()] == ["a.nii.gz"]
    assert SimpleITKIO().read_seg(str(target))[0].sum() == 14 * 16 * 18


def test_files_beside_the_image_come_along(tmp_path: Path) -> None:
    writer = CarefulReaderWriter(Tiff3DIO(), no_worker)
    writer.write_seg(np.ones((4, 5, 6), np.uint8), str(tmp_path / "a.tif"), {"spacing": [1.0, 2.0, 3.0]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.tif"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"spacing": [1.0, 2.0, 3.0]}
    assert tifffile.imread(tmp_path / "a.tif").shape == (4, 5, 6)


def test_reading_is_nnunets(tmp_path: Path) -> None:
    path = str(write_image(tmp_path / "a_0000.nii.gz"))
    reader = PredictionPlans(make_plans(), tmp_path / "report").image_reader_writer_class()
    voxels, properties = reader.read_images([path])
    expected, expected_properties = SimpleITKIO().read_images([path])
    np.testing.assert_array_equal(voxels, expected)
    assert properties == expected_properties
    np.testing.assert_array_equal(reader.read_seg(path)[0], SimpleITKIO().read_seg(path)[0])


def test_what_can_not_be_read_is_named(tmp_path: Path) -> None:
    paths = [str(write_image(tmp_path / "a_0000.nrrd")), str(tmp_path / "a_0001.nrrd")]
    content = Path(paths[0]).read_bytes()
    Path(paths[1]).write_bytes(content[: len(content) // 2])
    told: list[str] = []
    with pytest.raises(NnplugError) as caught:
        CarefulReaderWriter(SimpleITKIO(), told.append).read_images(paths)
    assert str(caught.value).startswith(f"{paths[0]}, {paths[1]} can not be read: ")
    assert str(caught.value).endswith(". Mend or remove the case and use --continue_prediction.")
    assert told == [str(caught.value)]
    with pytest.raises(NnplugError, match=r"a_0001\.nrrd can not be read"):
        CarefulReaderWriter(SimpleITKIO(), no_worker).read_seg(paths[1])


def test_a_worker_leaves_its_reason_and_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reader = PredictionPlans(make_plans(), tmp_path / "report").image_reader_writer_class()
    path = str(tmp_path / "gone_0000.nii.gz")
    process = multiprocessing.get_context("spawn").Process(target=reader.read_images, args=([path],))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert (tmp_path / "report").read_text().startswith(f"{path} can not be read: ")
    assert "Traceback" not in capfd.readouterr().err
