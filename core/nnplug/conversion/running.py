"""Run a conversion: in parallel, file by file whole, going on where it stopped. Imports no torch.

A log beside the result, ``.nnplug_conversion.jsonl``, holds the settings and a line for each finished case with the
size and time of its sources. Files are written under another name and moved into place, and ``dataset.json`` comes
last: a conversion that was killed or has failed cases is never taken for a whole one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from nnplug.conversion.writing import Output
from nnplug.errors import NnplugError
from nnplug.files.atomic_file import write_error
from nnplug.files.json_files import as_plain_json
from nnplug.image_headers import UnreadableImageError
from nnplug.inventory import rules
from nnplug.inventory.problems import Problem, count, raise_problems, shortened
from nnplug.planning.disk import flush_to_disk, telling_when_full
from nnplug.processes.case_pool import CaseFailure, Pool

LOG = ".nnplug_conversion.jsonl"
_LOCK = ".nnplug_conversion.lock"
_TEMPORARY = ".nnplug_conversion"
PRELOAD = ("nnplug.conversion.running", "SimpleITK", "tifffile", "nibabel", "PIL.Image")

Convert = Callable[[Any, str, Any], list[Output]]


@dataclass(frozen=True)
class Case:
    """What a case is made of.

    Attributes:
        sources: the files that it is read from; where one changes, the case is converted again.
        work: what ``Conversion.convert`` gets; a change of it converts the case again, too.
    """

    sources: tuple[Path, ...]
    work: Any


@dataclass(frozen=True)
class Conversion:
    """What to convert.

    Attributes:
        target: folder of the result.
        settings: what every case depends on, as JSON.
        cases: by name.
        convert: function of a module, called with ``shared``, the name and ``Case.work``; reads and checks everything
            and returns what to write. Raises CaseFailure or UnreadableImageError.
        shared: the same for every case.
        finish: called after the last case with the files of each; writes what makes the result a whole one.
        final_file: that ``finish`` writes; None where there is none.
    """

    target: Path
    settings: Mapping[str, Any]
    cases: Mapping[str, Case]
    convert: Convert
    shared: Any
    finish: Callable[[dict[str, list[str]]], None]
    final_file: Path | None


class Outcome(NamedTuple):
    """What a run did: the folder of the result, the cases converted now (others were there), and all cases' number."""

    target: Path
    converted: list[str]
    num_cases: int


def run(conversion: Conversion, pool: Pool, *, overwrite: bool, dry_run: bool) -> Outcome:
    """Convert, or with ``dry_run`` only read and check everything.

    Raises:
        NnplugError: cases failed, all of which are named; there is another data set; the disk is full.
    """
    _check(conversion)
    if dry_run:
        finished = _begin(conversion, overwrite)
        waiting = {name: case for name, case in conversion.cases.items() if name not in finished}
        _work_on(conversion, waiting, pool, None)
        return Outcome(conversion.target, list(waiting), len(conversion.cases))
    is_new = not conversion.target.exists()
    try:
        conversion.target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(conversion.target, error) from None
    with _only_one(conversion.target), _leave_no_empty(conversion.target, is_new), _temporary_folder(conversion.target):
        finished = _begin(conversion, overwrite)
        waiting = {name: case for name, case in conversion.cases.items() if name not in finished}
        if waiting or not (conversion.final_file and conversion.final_file.is_file()):
            if conversion.final_file is not None:
                conversion.final_file.unlink(missing_ok=True)
            _write_log(conversion, finished)
            with (conversion.target / LOG).open("a", encoding="utf-8") as log:
                _work_on(conversion, waiting, pool, log)
            if overwrite:
                _remove_leftovers(conversion)
            _, lines = _read_log(conversion.target)
            conversion.finish({name: lines[name]["files"] for name in conversion.cases})
    return Outcome(conversion.target, list(waiting), len(conversion.cases))


def _work_on(conversion: Conversion, waiting: Mapping[str, Case], pool: Pool, log: Any) -> None:
    def take(name: str, files: list[str]) -> None:
        if log is not None:
            log.write(json.dumps({"case": name, "stamp": _stamp(conversion.cases[name]), "files": files}) + "\n")
            log.flush()

    shared = (conversion.convert, conversion.shared, None if log is None else conversion.target)
    title = "Checking" if log is None else "Converting"
    failures = pool.run(_convert_case, shared, {name: case.work for name, case in waiting.items()}, title, take)
    if failures:
        done = count(len(waiting) - len(failures), "other case")
        then = "" if log is None else f" {done} converted; run it again when these are mended."
        advice = "Mend the case, or leave it out."
        problems = [Problem(failures[name], advice, name) for name in waiting if name in failures]
        if then:
            problems[-1] = Problem(failures[problems[-1].case or ""], advice + then, problems[-1].case)
        raise_problems(conversion.target, problems)


# --- what is there already -------------------------------------------------------------------------------------------


def _check(conversion: Conversion) -> None:
    raise_problems(conversion.target, [problem for name in conversion.cases for problem in rules.check_case_name(name)])
    target = Path(os.path.realpath(conversion.target))
    for case in conversion.cases.values():
        for source in case.sources:
            if Path(os.path.realpath(source)).is_relative_to(target):
                raise NnplugError(
                    f"{source} lies in {conversion.target}, where the result goes. Choose another target."
                )


def _begin(conversion: Conversion, overwrite: bool) -> set[str]:
    """The cases that are finished.

    Raises:
        NnplugError: something else is in the target.
    """
    target = conversion.target
    others = sorted(path.name for path in target.iterdir() if not path.name.startswith(".")) if target.is_dir() else []
    if conversion.final_file is not None and conversion.final_file.parent != target and conversion.final_file.exists():
        others.append(conversion.final_file.name)
    settings, lines = _read_log(target)
    _check_foreign(conversion)
    if settings is None:
        if others and not overwrite:
            raise NnplugError(
                f"{target} is there already ({shortened(others)}) and not from this command. Give --overwrite to "
                "replace its files, or another target."
            )
        return set()
    if not lines:
        return set()
    wanted = as_plain_json(dict(conversion.settings))
    differing = sorted(key for key in {*settings, *wanted} if settings.get(key) != wanted.get(key))
    if overwrite and differing:
        return set()
    if differing:
        raise NnplugError(
            f"{target} was made with other settings ({', '.join(differing)}). Give --overwrite to replace its files, "
            "or another target."
        )
    finished, changed = set(), []
    for name, line in lines.items():
        whole = all((target / file).is_file() for file in line["files"])
        if name not in conversion.cases or not whole:
            continue
        if line["stamp"] == _stamp(conversion.cases[name]):
            finished.add(name)
        else:
            changed.append(name)
    if changed and not overwrite:
        raise NnplugError(
            f"{target}: the sources of {count(len(changed), 'case')} have changed since ({shortened(changed)}). Give "
            "--overwrite to convert them again."
        )
    return finished


def _check_foreign(conversion: Conversion) -> None:
    """Files of other cases would become part of the data set."""
    foreign = sorted({name for name, _ in _files(conversion.target) if name not in conversion.cases})
    if foreign:
        raise NnplugError(
            f"{conversion.target} holds files of other cases ({shortened(foreign)}). Remove them, or choose another "
            "target."
        )


def _files(target: Path) -> Iterator[tuple[str, Path]]:
    """Case and file of all that has a place in a data set."""
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        for path in sorted((target / folder).iterdir()) if (target / folder).is_dir() else ():
            stem = path.name.removesuffix(".gz").rpartition(".")[0]
            is_channel = folder.startswith("images") and len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdecimal()
            yield (stem[:-5] if is_channel else stem), path


def _remove_leftovers(conversion: Conversion) -> None:
    """Files of our cases that this conversion did not write: channels that are no more, another ending."""
    _, lines = _read_log(conversion.target)
    written = {conversion.target / file for line in lines.values() for file in line["files"]}
    for _, path in _files(conversion.target):
        if path not in written:
            path.unlink()


def _stamp(case: Case) -> list[Any]:
    """Tells whether a case has to be converted again."""
    with contextlib.suppress(OSError):
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in case.sources]
        return [list(map(list, files)), repr(case.work)]
    return []


def _read_log(target: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Settings and cases; the line that was being written when a run was killed is left out."""
    path = target / LOG
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    if not lines or "settings" not in lines[0]:
        return None, {}
    return lines[0]["settings"], {line["case"]: line for line in lines[1:] if "case" in line}


def _write_log(conversion: Conversion, finished: set[str]) -> None:
    _, lines = _read_log(conversion.target)
    kept = [
        {"settings": as_plain_json(dict(conversion.settings))},
        *(lines[name] for name in lines if name in finished),
    ]
    (conversion.target / LOG).write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")


@contextlib.contextmanager
def _only_one(target: Path) -> Iterator[None]:
    try:
        with FileLock(target / _LOCK, timeout=0):
            yield
    except Timeout:
        raise NnplugError(
            f"Another conversion is writing into {target}. Wait for it, or choose another target."
        ) from None


@contextlib.contextmanager
def _leave_no_empty(target: Path, is_new: bool) -> Iterator[None]:
    """A new folder into which no case was converted would only take its data set's id away."""
    try:
        yield
    except BaseException:
        if is_new and not _read_log(target)[1]:
            shutil.rmtree(target, ignore_errors=True)
        raise


@contextlib.contextmanager
def _temporary_folder(target: Path) -> Iterator[None]:
    folder = target / _TEMPORARY
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- in a worker -----------------------------------------------------------------------------------------------------


def _convert_case(shared: tuple[Convert, Any, Path | None], name: str, work: Any) -> list[str]:
    """Returns the files of the case; without a target nothing is written."""
    convert, settings, target = shared
    outputs = convert(settings, name, work)
    if target is not None:
        with telling_when_full(target):
            for output in outputs:
                _store(target, output)
    return [output.file for output in outputs]


def _store(target: Path, output: Output) -> None:
    path = target / output.file
    path.parent.mkdir(parents=True, exist_ok=True)
    # the library that writes goes by the ending
    temporary = target / _TEMPORARY / f"{os.getpid()}-{path.name}"
    try:
        output.write(temporary)
        if path.name.endswith(".nii.gz"):
            check_written(temporary)
        flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_written(path: Path) -> None:
    """ITK does not notice that a disk is full while it compresses."""
    from nnplug.image_headers import read_header

    try:
        read_header(path, "SimpleITKIO")
    except UnreadableImageError as error:
        raise CaseFailure(f"{path.name} was not written whole: {error}") from error
