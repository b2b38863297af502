"""Annotations: classes from files, a start by Otsu, what is on disk after each save, napari's layers."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnplug.annotation.classes import AnnotationClass, read_classes
from nnplug.annotation.session import AnnotationSession, find_image, open_session
from nnplug.annotation.start import segment_middle_slice
from nnplug.annotation.viewer import add_layers, autosave
from nnplug.cli import main
from nnplug.conversion.reading import read_image
from nnplug.errors import NnplugError
from support.inventories import save_image

CLASSES = (AnnotationClass("solid", "#a0522d"), AnnotationClass("pore", "#3070ff"))
TOML = '[[classes]]\nname = "solid"\ncolour = "#A0522D"\n[[classes]]\nname = "pore"\ncolour = "#3070ff"\n'
NO_KEY = "there is no such key; the keys are name, colour."
SHAPE = (5, 8, 9)
# of the libraries that napari brings
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def volume() -> np.ndarray:
    """Dark on the left, bright on the right, 16 bits."""
    grey = np.random.default_rng(0).normal(1000, 20, SHAPE)
    grey[..., 4:] += 3000
    return grey.astype(np.uint16)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    tifffile.imwrite(tmp_path / "scans" / "s1.tif", volume())
    (tmp_path / "scans" / "s1.json").write_text('{"spacing": [0.01, 0.005, 0.005]}')
    return tmp_path / "scans"


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    return tmp_path / "drawn"


def refused(scans: Path, drawn: Path, sample: str = "s1", **options: object) -> str:
    with pytest.raises(NnplugError) as caught, open_session(scans, drawn, sample, CLASSES, **options):  # type: ignore[arg-type]
        pass
    return str(caught.value)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")


def painted(labels: np.ndarray, number: int = 2) -> np.ndarray:
    labels = labels.copy()
    labels[0, :2, :2] = number
    return labels


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", TOML),
        (
            "a.json",
            json.dumps({"classes": [{"name": "solid", "colour": "#a0522d"}, {"name": "pore", "colour": "#3070ff"}]}),
        ),
        ("a.csv", "name,colour\nsolid,#a0522d\npore,#3070ff\n"),
    ],
)
def test_classes_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == CLASSES


def test_a_colour_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name\nsolid\npore\n")
    assert [one.colour for one in read_classes(tmp_path / "a.csv")] == ["#e69f00", "#56b4e9"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", TOML.replace("#3070ff", "blue"), "classes -> 2 -> colour: expected one as #ff8800, got 'blue'."),
        ("a.toml", TOML.replace('"pore"', '"solid"'), "classes -> 2 -> name: 'solid' is there twice."),
        ("a.toml", TOML.replace('"pore"', "3"), "classes -> 2 -> name: expected a text, got 3."),
        ("a.toml", TOML.replace("name =", "nam ="), f"classes -> 1 -> nam: {NO_KEY}"),
        ("a.toml", TOML.partition("[[classes]]\nname = \"pore\"")[0], "classes: expected 2 to 254 of them, got 1."),
        ("a.toml", "classes = 3", "classes: expected a list of name and colour, got 3."),
        ("a.json", '{"classes": ["solid", "pore"]}', "classes -> 1: expected a name and a colour, got 'solid'."),
        ("a.csv", "name,colour\nsolid,#a0522d\npore,#3070ff,1\n", f"classes -> 2 -> more: {NO_KEY}"),
        ("a.csv", "solid,#a0522d\n", "expected the columns name and colour in the first line."),
        ("a.txt", "solid\n", "classes are read from .toml, .json or .csv."),
    ],
)  # fmt: skip
def test_bad_classes(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(NnplugError) as caught:
        read_classes(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"classes = [", r"a\.toml is no valid TOML \(.+\)\.\Z"),
        ("a.json", b"{", r"a\.json is no valid JSON \(.+\)\.\Z"),
        ("a.csv", b"\xff\xfe\xff", r"a\.csv can not be read: it is no text in UTF-8\.\Z"),
        ("gone.toml", None, r"gone\.toml can not be read: No such file or directory\.\Z"),
    ],
)
def test_classes_that_can_not_be_read(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(NnplugError, match=message):
        read_classes(tmp_path / name)


# --- beginning -------------------------------------------------------------------------------------------------------


def test_the_middle_slice_is_segmented_by_otsu(scans: Path, drawn: Path) -> None:
    with open_session(scans, drawn, "s1", CLASSES) as session:
        assert not session.is_resumed
        assert np.all(session.labels[2, :, :4] == 1)
        assert np.all(session.labels[2, :, 4:] == 2)
        assert not session.labels[[0, 1, 3, 4]].any()
        assert session.image.spacing_mm == (0.01, 0.005, 0.005)
    with open_session(scans, drawn, "s1", CLASSES, ("pore", "solid")) as session:
        assert np.all(session.labels[2, :, :4] == 2)


def test_a_slice_of_one_value_has_no_threshold() -> None:
    assert not segment_middle_slice(np.full(SHAPE, 7, np.uint8), 1, 2).any()


def test_what_can_not_be_annotated(scans: Path, drawn: Path) -> None:
    assert refused(scans, drawn, "s11") == f"{scans} has no volume 's11'. Did you mean 's1'? It has s1."
    assert refused(scans / "no", drawn) == f"There is no folder {scans / 'no'}."
    assert refused(scans, scans) == f"-o {scans} is the folder of the images. Give the annotations one of their own."
    assert refused(scans, drawn, otsu=("pore", "sky")) == (
        "--otsu: there is no class 'sky'. The classes are solid, pore."
    )
    tifffile.imwrite(scans / "flat.tif", np.zeros((8, 9), np.uint8))
    assert refused(scans, drawn, "flat") == (
        f"{scans / 'flat.tif'}: expected a volume of one channel, and it is 1x8x9."
    )
    (scans / "broken.tif").write_bytes(b"II*\0")
    message = refused(scans, drawn, "broken")
    assert message.startswith(f"{scans / 'broken.tif'} can not be read: ")
    assert message.endswith(". Mend the file, or annotate another sample.")
    save_image(scans / "s1.nii.gz", volume())
    assert refused(scans, drawn) == f"{scans} has s1.nii.gz and s1.tif. Leave one of them."
    assert not drawn.exists()


def test_names_with_dots_are_found(scans: Path) -> None:
    (scans / "s1.tif").rename(scans / "s.1.ome.tif")
    assert find_image(scans, "s.1") == scans / "s.1.ome.tif"


# --- saving ----------------------------------------------------------------------------------------------------------


def test_saved_once_for_each_change(scans: Path, drawn: Path) -> None:
    with open_session(scans, drawn, "s1", CLASSES) as session:
        labels = session.labels
        assert session.save(labels)
        assert not session.save(labels)
        labels[0, 0, 0] = 1  # painting changes the array in its place
        assert session.save(labels)
    assert files(drawn) == ["s1.json", "s1.tif"]
    np.testing.assert_array_equal(tifffile.imread(drawn / "s1.tif"), labels)
    assert json.loads((drawn / "s1.json").read_text()) == {"spacing": [0.01, 0.005, 0.005]}


def test_resumed_and_kept_as_a_backup_once_a_session(scans: Path, drawn: Path) -> None:
    with open_session(scans, drawn, "s1", CLASSES) as session:
        session.save(session.labels)
    first = (drawn / "s1.tif").read_bytes()
    with open_session(scans, drawn, "s1", CLASSES) as session:
        assert session.is_resumed
        assert not session.save(session.labels)
        assert files(drawn) == ["s1.json", "s1.tif"], "nothing was changed, so nothing is kept"
        session.save(painted(session.labels))
        session.save(painted(session.labels, 1))
    [backup] = (drawn / "backups").iterdir()
    assert re.fullmatch(r"s1_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.tif", backup.name)
    assert backup.read_bytes() == first
    with open_session(scans, drawn, "s1", CLASSES) as session:
        assert session.labels[0, 0, 0] == 1
        session.save(painted(session.labels))
    assert len(list((drawn / "backups").iterdir())) == 2, "also where both were in one second"


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_geometry_is_kept(tmp_path: Path, drawn: Path, ending: str) -> None:
    turned = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    (tmp_path / "scans").mkdir()
    image = tmp_path / "scans" / f"s1{ending}"
    save_image(image, volume(), spacing=(0.5, 0.25, 3.0), origin=(10.5, -7.25, 3.0), direction=turned)
    with open_session(tmp_path / "scans", drawn, "s1", CLASSES) as session:
        session.save(session.labels)
        saved = session.labels
    one, other = sitk.ReadImage(str(image)), sitk.ReadImage(str(drawn / f"s1{ending}"))
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(other, what)(), getattr(one, what)(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(other), saved)
    with open_session(tmp_path / "scans", drawn, "s1", CLASSES) as session:
        assert session.is_resumed


def test_an_annotation_that_does_not_belong_to_the_volume(scans: Path, drawn: Path) -> None:
    drawn.mkdir()
    tifffile.imwrite(drawn / "s1.tif", np.zeros((5, 8, 8), np.uint8), photometric="minisblack")
    assert refused(scans, drawn) == (
        f"{drawn / 's1.tif'}: it has 5x8x8 voxels, the first channel has 5x8x9. Move the annotation away, or choose "
        "its image."
    )
    tifffile.imwrite(drawn / "s1.tif", np.full(SHAPE, 1.5, np.float32), photometric="minisblack")
    assert refused(scans, drawn).startswith(f"{drawn / 's1.tif'} holds 1.5, and the classes are 1 to 2. ")
    tifffile.imwrite(drawn / "s1.tif", np.full(SHAPE, 3, np.uint8), photometric="minisblack")
    assert refused(scans, drawn) == (
        f"{drawn / 's1.tif'} holds 3, and the classes are 1 to 2. Add the missing ones to the file of the classes, or "
        "erase those voxels."
    )


def test_one_window_a_sample(scans: Path, drawn: Path) -> None:
    with open_session(scans, drawn, "s1", CLASSES):
        assert (
            refused(scans, drawn) == f"{drawn / 's1.tif'} is being annotated in another window. Close that one first."
        )
    with open_session(scans, drawn, "s1", CLASSES):
        pass


def test_a_save_that_fails_leaves_the_last_one(scans: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(scans, drawn, "s1", CLASSES) as session:
        session.save(session.labels)
        before = (drawn / "s1.tif").read_bytes()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(NnplugError, match=r"Could not write .*: No space left on device"):
                session.save(painted(session.labels))
            copy = put_elsewhere(session)
        assert copy.parent.parent == drawn
        assert (drawn / "s1.tif").read_bytes() == before
    with open_session(scans, drawn, "s1", CLASSES, copy=copy) as session:
        np.testing.assert_array_equal(session.labels, np.load(copy)["labels"])
        assert session.save(session.labels)
    np.testing.assert_array_equal(tifffile.imread(drawn / "s1.tif"), session.labels)
    assert [path.read_bytes() for path in (drawn / "backups").iterdir()] == [before]


def test_a_copy_of_something_else(scans: Path, drawn: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.npz"
    for save, message in (
        (lambda: copy.write_text("no copy"), "no copy of an annotation can be read from it"),
        (lambda: np.save(copy.open("wb"), np.zeros(SHAPE)), "no copy of an annotation can be read from it"),
        (lambda: np.savez(copy, other=1), "no copy of an annotation can be read from it"),
        (lambda: np.savez(copy, labels=np.array([{}])), "no copy of an annotation can be read from it"),
        (lambda: np.savez(copy, labels=np.zeros((5, 8, 8))), "it has 5x8x8 voxels, the volume has 5x8x9. Name the"),
    ):
        save()
        with pytest.raises(NnplugError) as caught, open_session(scans, drawn, "s1", CLASSES, copy=copy):
            pass
        assert str(caught.value).startswith(f"--from {copy}: {message}")


def put_elsewhere(session: AnnotationSession) -> Path:
    with pytest.raises(NnplugError, match=r"The annotation is in .+ now\. To go on .+ --from that file\.\Z") as caught:
        session.save_finally(painted(session.labels))
    elsewhere = Path(str(caught.value).rpartition(" is in ")[2].partition(" now. ")[0])
    np.testing.assert_array_equal(np.load(elsewhere)["labels"], painted(session.labels))
    return elsewhere


def test_no_folder_for_temporary_files(scans: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(scans / "gone"))
    with open_session(scans, drawn, "s1", CLASSES) as session:
        with pytest.raises(NnplugError, match=r"\ACould not write .*s1\.tif: .*No such file.*\. It is unchanged\.\Z"):
            session.save(session.labels)
        assert put_elsewhere(session).parent.parent == drawn


def test_the_annotation_is_put_where_there_is_room(
    scans: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, home = tmp_path / "temporary", tmp_path / "home"
    temporary.mkdir()
    home.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("HOME", str(home))
    with open_session(scans, drawn, "s1", CLASSES) as session:
        drawn.rename(tmp_path / "unplugged")
        assert put_elsewhere(session).parent.parent == temporary
        temporary.rename(tmp_path / "removed")
        assert put_elsewhere(session).parent.parent == home
        home.rename(tmp_path / "away")
        with pytest.raises(NnplugError, match=r" Nor could it be put elsewhere, so what was painted .* is lost: .*\."):
            session.save_finally(painted(session.labels))


# --- napari ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def session(scans: Path, drawn: Path) -> AnnotationSession:
    with open_session(scans, drawn, "s1", CLASSES) as opened:
        return opened


def test_the_layers_of_the_window(session: AnnotationSession) -> None:
    from napari.components import ViewerModel

    viewer = ViewerModel()
    layer = add_layers(viewer, session)
    assert [one.name for one in viewer.layers] == ["volume", "annotation"]
    assert viewer.dims.current_step[0] == 2
    assert tuple(layer.scale) == (0.01, 0.005, 0.005)
    assert (layer.mode, layer.selected_label) == ("paint", 1)
    np.testing.assert_allclose(layer.get_color(2), [0x30 / 255, 0x70 / 255, 1, 1], atol=1e-3)
    assert layer.get_status((2 * 0.01, 0, 0))["value"] == "1; class: solid"


def test_what_is_painted_is_saved(session: AnnotationSession) -> None:
    from napari.components import ViewerModel

    layer = add_layers(ViewerModel(), session)
    layer.brush_size = 1
    layer.paint((0, 3, 3), 2)
    autosave(session, layer)
    assert tifffile.imread(session.path)[0, 3, 3] == 2
    layer.undo()
    autosave(session, layer)
    assert not tifffile.imread(session.path)[0].any()


def test_a_failing_autosave_is_shown_and_the_window_stays(session: AnnotationSession) -> None:
    from napari.components import ViewerModel
    from napari.utils.notifications import notification_manager

    layer = add_layers(ViewerModel(), session)
    layer.brush_size = 1
    layer.paint((0, 3, 3), 9)
    with notification_manager:
        autosave(session, layer)
        assert notification_manager.records[-1].message == (
            "s1.tif holds 9, and the classes are 1 to 2. Add the missing ones to the file of the classes, or erase "
            "those voxels."
        )
    assert not session.path.exists()


def test_any_error_is_shown_and_nothing_is_lost(session: AnnotationSession) -> None:
    from napari.components import ViewerModel
    from napari.utils.notifications import notification_manager

    session.image = replace(session.image, spacing_mm=(1.0, 1.0, np.float32(1)))  # JSON refuses it: a TypeError
    layer = add_layers(ViewerModel(), session)
    with notification_manager:
        autosave(session, layer)
        assert notification_manager.records[-1].message.startswith(f"Could not write {session.path}: TypeError(")
    assert put_elsewhere(session).parent.parent == session.path.parent


# --- the command -----------------------------------------------------------------------------------------------------


def command(scans: Path, drawn: Path, *more: str) -> list[str]:
    classes = scans.parent / "classes.toml"
    classes.write_text(TOML)
    return ["annotate", "-i", str(scans), "-o", str(drawn), "-id", "s1", "--classes", str(classes), *more]


def test_napari_is_an_extra(
    scans: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "napari", None)
    monkeypatch.delitem(sys.modules, "napari.qt", raising=False)
    assert main(command(scans, drawn)) == 2
    message = capsys.readouterr().err
    assert message.startswith("nnplug: error: nnplug annotate needs napari (")
    assert message.endswith("). Install it: pip install 'nnplug[annotate]'\n")
    assert not drawn.exists()


def test_a_screen_is_needed(
    scans: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert main(command(scans, drawn)) == 2
    assert capsys.readouterr().err == (
        "nnplug: error: nnplug annotate opens a window, and there is no screen here (DISPLAY is not set). Run it on a "
        "desktop, or log in with ssh -X.\n"
    )
    assert not drawn.exists()


def test_autosave_takes_minutes(scans: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(scans, drawn, "--autosave", "0")) == 2
    assert capsys.readouterr().err == "nnplug: error: --autosave 0: expected minutes, above 0.\n"


def test_convert_soil_takes_the_annotation(
    session: AnnotationSession, scans: Path, drawn: Path, tmp_path: Path
) -> None:
    session.save(painted(session.labels))
    (drawn / "backups").mkdir()
    (drawn / "backups" / "s1_2026-01-31_12-00-00.tif").write_bytes((drawn / "s1.tif").read_bytes())
    convert = ["convert", "soil", "--images", scans, "--annotations", drawn, "--classes", "solid", "pore", "--no-crop"]
    convert += ["--dataset-id", 13, "--dataset-name", "Soil", "--raw-dir", tmp_path / "raw", "-np", 0]
    assert main(list(map(str, convert))) == 0
    label = read_image(tmp_path / "raw" / "Dataset013_Soil" / "labelsTr" / "s1.nii.gz")
    assert label.spacing_mm == pytest.approx((0.01, 0.005, 0.005))
    expected = painted(session.labels).astype(int) - 1
    np.testing.assert_array_equal(label.voxels[0], np.where(expected < 0, 2, expected))
    description = json.loads((tmp_path / "raw" / "Dataset013_Soil" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "pore": 1, "ignore": 2}
