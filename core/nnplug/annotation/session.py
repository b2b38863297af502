"""One sample's annotation on disk: begun or resumed, saved whole, never lost.

::

    ANNOTATIONS/
        SAMPLE.tif  SAMPLE.json                    the annotation; the spacing of a TIFF
        backups/SAMPLE_2026-01-31_12-00-00.tif     as it was before a session changed it
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout

from nnplug.annotation.classes import AnnotationClass
from nnplug.annotation.start import segment_middle_slice
from nnplug.conversion.images import check_same_grid
from nnplug.conversion.reading import ITK_ENDINGS, TIFF_ENDINGS, Image, read_image, split_ending
from nnplug.conversion.running import check_written
from nnplug.conversion.spacing import find_spacing
from nnplug.conversion.writing import WRITTEN_AS, side_cars, write_voxels
from nnplug.errors import NnplugError
from nnplug.files.atomic_file import create_file, replace_file, write_error
from nnplug.image_headers import UnreadableImageError
from nnplug.problems import shortened
from nnplug.processes.case_pool import CaseFailure


@dataclass
class AnnotationSession:
    """An annotation while it is worked on.

    Attributes:
        path: of the annotation.
        image: the volume, one channel.
        classes: in the order of their numbers, from 1.
        labels: D H W, uint8; what the session begins with.
        is_resumed: there was an annotation.
    """

    path: Path
    image: Image
    classes: tuple[AnnotationClass, ...]
    labels: np.ndarray
    is_resumed: bool
    _saved: np.ndarray | None = field(default=None, repr=False)
    _has_backup: bool = False

    def __post_init__(self) -> None:
        if self.is_resumed:
            self._saved = self.labels.copy()

    @property
    def volume(self) -> np.ndarray:
        """D H W."""
        return self.image.voxels[0]

    def save(self, labels: np.ndarray) -> bool:
        """Put an annotation into its place, whole; the first time, what was there before is kept as a backup.

        Args:
            labels: D H W, integers from 0 to the number of classes.

        Returns:
            Whether there was anything to save.

        Raises:
            NnplugError: it could not be written; what is there is unchanged. Values that are no class.
        """
        if self._saved is not None and np.array_equal(labels, self._saved):
            return False
        voxels = _checked(labels, self.classes, self.path.name)
        if not self._has_backup:
            _keep_backup(self.path)
            self._has_backup = True
        _write(self.path, voxels, self.image)
        self._saved = voxels.copy()
        return True

    def save_finally(self, labels: np.ndarray) -> bool:
        """As ``save``; where that fails, for whatever reason, the annotation is put elsewhere before the program ends.

        Raises:
            NnplugError: it is not in its place, and where it is.
        """
        try:
            return self.save(labels)
        except Exception as error:  # nobody can try again: the window is closed
            reason = str(error) if isinstance(error, NnplugError) else f"Could not write {self.path}: {error!r}."
            raise NnplugError(f"{reason} {_put_elsewhere(self.path, labels)}") from error


@contextmanager
def open_session(
    images: Path,
    annotations: Path,
    sample: str,
    classes: Sequence[AnnotationClass],
    otsu: Sequence[str] | None = None,
    copy: Path | None = None,
) -> Iterator[AnnotationSession]:
    """Begin or resume the annotation of a sample; nobody else can until the block ends.

    Args:
        images: folder of volumes.
        annotations: folder of annotations, which is made.
        sample: file name of the volume without its ending.
        classes: see ``read_classes``.
        otsu: names of the classes of dark and bright voxels in the middle slice; None takes the first two.
        copy: what ``save_finally`` has put elsewhere; taken in place of the annotation, which becomes a backup.

    Raises:
        NnplugError: no such sample, no volume of one channel, an annotation or a copy of another grid or with other
            classes, one that is being worked on.
    """
    numbers = {one.name: number for number, one in enumerate(classes, 1)}
    dark, bright = otsu or list(numbers)[:2]
    unknown = [name for name in (dark, bright) if name not in numbers]
    if unknown:
        raise NnplugError(f"--otsu: there is no class '{unknown[0]}'. The classes are {', '.join(numbers)}.")
    source = find_image(images, sample)
    ending = split_ending(source)[1]
    path = annotations / f"{sample}{WRITTEN_AS.get(ending, ending)}"
    if annotations.resolve() == images.resolve():
        raise NnplugError(f"-o {annotations} is the folder of the images. Give the annotations one of their own.")
    image = _read_volume(source)
    lock = _lock(path, sample)
    try:
        is_resumed = path.is_file() and copy is None
        if copy is not None:
            labels = _read_copy(copy, image, classes)
        elif is_resumed:
            labels = _resume(path, image, classes)
        else:
            labels = segment_middle_slice(image.voxels[0], numbers[dark], numbers[bright])
        yield AnnotationSession(path, image, tuple(classes), labels, is_resumed)
    finally:
        lock.release()


def _lock(path: Path, sample: str) -> FileLock:
    lock = FileLock(path.with_name(f".{sample}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise NnplugError(f"{path} is being annotated in another window. Close that one first.") from None
    except OSError as error:
        raise write_error(path, error) from error
    return lock


def find_image(folder: Path, sample: str) -> Path:
    """The volume of a sample.

    Raises:
        NnplugError: no such folder, no such sample (close names are given), several files.
    """
    if not folder.is_dir():
        raise NnplugError(f"There is no folder {folder}.")
    known: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        stem, ending = split_ending(path)
        if ending.endswith((*ITK_ENDINGS, *TIFF_ENDINGS)) and not path.name.startswith("."):
            known.setdefault(stem, []).append(path)
    found = known.get(sample, [])
    if len(found) > 1:
        raise NnplugError(f"{folder} has {' and '.join(path.name for path in found)}. Leave one of them.")
    if not found:
        near = get_close_matches(sample, known, n=1)
        meant = f" Did you mean '{near[0]}'?" if near else ""
        raise NnplugError(f"{folder} has no volume '{sample}'.{meant} It has {shortened(list(known)) or 'none'}.")
    return found[0]


def _read_volume(path: Path) -> Image:
    try:
        image = read_image(path)
        image = replace(image, spacing_mm=find_spacing(path, image, None, is_needed=False))
    except UnreadableImageError as error:
        raise NnplugError(f"{error}. Mend the file, or annotate another sample.") from None
    if len(image.voxels) != 1 or len(image.size) != 3:
        shape = "x".join(map(str, image.voxels.shape))
        raise NnplugError(f"{path}: expected a volume of one channel, and it is {shape}.")
    return image


def _resume(path: Path, image: Image, classes: Sequence[AnnotationClass]) -> np.ndarray:
    try:
        annotation = read_image(path, is_label=True)
        check_same_grid(path, annotation, image)
    except (UnreadableImageError, CaseFailure) as error:
        raise NnplugError(f"{error}. Move the annotation away, or choose its image.") from None
    return _checked(annotation.voxels[0], classes, str(path))


def _read_copy(path: Path, image: Image, classes: Sequence[AnnotationClass]) -> np.ndarray:
    try:
        labels = np.load(path, allow_pickle=False)["labels"]
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise NnplugError(f"--from {path}: no copy of an annotation can be read from it ({error}).") from None
    if labels.shape != image.size:
        found, expected = ("x".join(map(str, shape)) for shape in (labels.shape, image.size))
        raise NnplugError(
            f"--from {path}: it has {found} voxels, the volume has {expected}. Name the copy of this one."
        )
    return _checked(labels, classes, f"--from {path}")


def _checked(labels: np.ndarray, classes: Sequence[AnnotationClass], where: str) -> np.ndarray:
    if labels.dtype.kind in "ui" and labels.min() >= 0 and labels.max() <= len(classes):
        return labels.astype(np.uint8)  # without the sorting that takes seconds for a large volume
    wrong = [value for value in np.unique(labels).tolist() if value not in range(len(classes) + 1)]
    if wrong:
        raise NnplugError(
            f"{where} holds {shortened(list(map(str, wrong)))}, and the classes are 1 to {len(classes)}. "
            "Add the missing ones to the file of the classes, or erase those voxels."
        )
    return labels.astype(np.uint8)


# --- writing ---------------------------------------------------------------------------------------------------------


def _keep_backup(path: Path) -> None:
    if not path.is_file():
        return
    folder = path.parent / "backups"
    stem, ending = split_ending(path)
    date = time.strftime("%Y-%m-%d_%H-%M-%S")
    try:
        folder.mkdir(exist_ok=True)
        for number in itertools.count(1):
            name = f"{stem}_{date}{f'_{number}' if number > 1 else ''}{ending}"
            if create_file(folder / name, path.read_bytes()):
                return
    except OSError as error:
        raise write_error(folder, error) from error


def _write(path: Path, voxels: np.ndarray, image: Image) -> None:
    """The libraries go by the ending, so it is written elsewhere, checked, and copied into its place."""
    stem, ending = split_ending(path)
    try:
        with tempfile.TemporaryDirectory(prefix="nnplug-annotate-") as scratch:
            draft = Path(scratch, path.name)
            write_voxels(voxels, image, draft)
            if ending == ".nii.gz":
                check_written(draft)
            if image.spacing_mm is not None:
                for output in side_cars(stem, image, ending):
                    output.write(Path(scratch, output.file))
                    replace_file(path.with_name(output.file), partial(_copy, Path(scratch, output.file)))
            replace_file(path, partial(_copy, draft))
    except (OSError, RuntimeError, CaseFailure) as error:  # ITK's errors are RuntimeErrors
        raise NnplugError(f"Could not write {path}: {str(error).strip()}. It is unchanged.") from error


def _copy(source: Path, file: IO[bytes]) -> None:
    with source.open("rb") as content:
        shutil.copyfileobj(content, file)


def _put_elsewhere(path: Path, labels: np.ndarray) -> str:
    """Write an annotation into the first folder that takes it; tells where it is."""
    failures = []
    for choose in (lambda: path.parent, tempfile.gettempdir, Path.home):
        try:
            copy = _write_copy(Path(choose()), path.name, labels)
            return f"The annotation is in {copy} now. To go on with it give --from that file."
        except Exception as error:  # the next folder is tried
            failures.append(str(error))
    return f"Nor could it be put elsewhere, so what was painted since the last save is lost: {'; '.join(failures)}."


def _write_copy(folder: Path, name: str, labels: np.ndarray) -> Path:
    copy = Path(tempfile.mkdtemp(prefix="nnplug-annotation-", dir=folder), f"{name}.npz")
    try:
        with copy.open("xb") as file:
            np.savez_compressed(file, labels=labels)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(copy.parent, ignore_errors=True)
        raise
    return copy
