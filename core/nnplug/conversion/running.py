"""Run a conversion: in parallel, file by file whole, going on where it stopped. Imports no torch.

What was done stands in a log beside the result; files that are not in it are another's. Files are written under another
name and moved into place, and ``dataset.json`` comes last: a conversion that was killed or has failed cases is never
taken for a whole one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from nnplug.conversion.log import Log, add_line, read_log, write_log
from nnplug.conversion.writing import Output
from nnplug.errors import NnplugError
from nnplug.files.atomic_file import write_error
from nnplug.files.disk import flush_to_disk, telling_when_full
from nnplug.files.json_files import as_plain_json
from nnplug.image_headers import UnreadableImageError
from nnplug.inventory import rules
from nnplug.problems import Problem, count, raise_problems, shortened
from nnplug.processes.case_pool import CaseFailure, Pool

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
        settings: what every case depends on, as JSON; ``numTraining`` in it does not count.
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
        waiting = _begin(conversion, overwrite).waiting
        _work_on(conversion, waiting, pool, overwrite=overwrite, is_dry=True)
        return Outcome(conversion.target, list(waiting), len(conversion.cases))
    is_new = not conversion.target.exists()
    try:
        conversion.target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(conversion.target, error) from None
    with _only_one(conversion.target), _leave_no_empty(conversion.target, is_new), _temporary_folder(conversion.target):
        waiting, lines, is_whole = _begin(conversion, overwrite)
        if not is_whole:
            if conversion.final_file is not None:
                conversion.final_file.unlink(missing_ok=True)
            write_log(conversion.target, lines)
            _work_on(conversion, waiting, pool, overwrite=overwrite, is_dry=False)
            if overwrite:
                _remove_leftovers(conversion)
            finished = read_log(conversion.target).finished
            conversion.finish({name: finished[name]["files"] for name in conversion.cases})
            add_line(conversion.target, {"whole": list(conversion.cases), "hash": _hash(conversion.final_file)})
    return Outcome(conversion.target, list(waiting), len(conversion.cases))


def _work_on(conversion: Conversion, waiting: Mapping[str, Case], pool: Pool, *, overwrite: bool, is_dry: bool) -> None:
    def take(name: str, files: list[str]) -> None:
        if not is_dry:
            add_line(conversion.target, {"case": name, "stamp": _stamp(conversion.cases[name]), "files": files})

    shared = _Shared(conversion.convert, conversion.shared, conversion.target, overwrite, is_dry)
    title = "Checking" if is_dry else "Converting"
    failures = pool.run(_convert_case, shared, {name: case.work for name, case in waiting.items()}, title, take)
    if failures:
        done = count(len(waiting) - len(failures), "other case")
        then = "" if is_dry else f" {done} converted; run it again when these are mended."
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


class _State(NamedTuple):
    """Where a conversion stands.

    Attributes:
        waiting: cases to convert.
        lines: that the log is to begin with.
        is_whole: nothing is left to do.
    """

    waiting: dict[str, Case]
    lines: list[dict[str, Any]]
    is_whole: bool


def _begin(conversion: Conversion, overwrite: bool) -> _State:
    """What is left to do.

    Raises:
        NnplugError: something else is in the target.
    """
    target, final_file = conversion.target, conversion.final_file
    others = sorted(path.name for path in target.iterdir() if not path.name.startswith(".")) if target.is_dir() else []
    if final_file is not None and final_file.parent != target and final_file.exists():
        others.append(final_file.name)
    log = read_log(target)
    _check_foreign(conversion)
    if log.settings is None and others and not overwrite:
        raise NnplugError(
            f"{target} is there already ({shortened(others)}) and not from this command. Give --overwrite to "
            "replace its files, or another target."
        )
    kept = _finished_before(conversion, log, overwrite)
    waiting = {name: case for name, case in conversion.cases.items() if name not in kept}
    is_whole = not waiting and set(log.whole) == set(conversion.cases) and (final_file is None or final_file.is_file())
    if final_file is not None and final_file.is_file() and not (is_whole or overwrite or log.hash == _hash(final_file)):
        raise NnplugError(
            f"{final_file} has been edited since, or is not from this command. Move it away to keep it, or give "
            "--overwrite to write it anew."
        )
    begun = {
        name: [file for file in files if (target / file).exists()]
        for name, files in log.files.items()
        if name not in kept
    }
    lines = [
        {"settings": as_plain_json(dict(conversion.settings))},
        *({"begin": name, "files": files} for name, files in begun.items() if files),
        *kept.values(),
    ]
    return _State(waiting, lines, is_whole)


def _finished_before(conversion: Conversion, log: Log, overwrite: bool) -> dict[str, dict[str, Any]]:
    """The log's lines of cases that need not be converted again, of cases that are left out now, too."""
    target = conversion.target
    if log.settings is None or not log.finished:
        return {}
    before, now = _without_count(log.settings), _without_count(as_plain_json(dict(conversion.settings)))
    differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if differing and not overwrite:
        raise NnplugError(
            f"{target} was made with other settings ({', '.join(differing)}). Give --overwrite to replace its files, "
            "or another target."
        )
    if differing:
        return {}
    whole = {
        name: line for name, line in log.finished.items() if all((target / file).is_file() for file in line["files"])
    }
    cases = conversion.cases
    changed = [name for name, line in whole.items() if name in cases and line["stamp"] != _stamp(cases[name])]
    if changed and not overwrite:
        raise NnplugError(
            f"{target}: the sources of {count(len(changed), 'case')} have changed since ({shortened(changed)}). Give "
            "--overwrite to convert them again."
        )
    return {name: line for name, line in whole.items() if name not in changed}


def _without_count(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Cases may be left out or added."""
    return {
        key: _without_count(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key != "numTraining"
    }


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
        for path in sorted((target / folder).glob("[!.]*")):
            stem = path.name.removesuffix(".gz").rpartition(".")[0]
            is_channel = folder.startswith("images") and len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdecimal()
            yield (stem[:-5] if is_channel else stem), path


def _remove_leftovers(conversion: Conversion) -> None:
    """Files of our cases that this conversion did not write: channels that are no more, another ending."""
    finished = read_log(conversion.target).finished
    written = {conversion.target / file for line in finished.values() for file in line["files"]}
    for _, path in _files(conversion.target):
        if path not in written:
            path.unlink()


def _stamp(case: Case) -> list[Any]:
    """Tells whether a case has to be converted again."""
    with contextlib.suppress(OSError):
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in case.sources]
        return [list(map(list, files)), repr(case.work)]
    return []


def _hash(path: Path | None) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None


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
        if is_new and not read_log(target).finished:
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


class _Shared(NamedTuple):
    convert: Convert
    shared: Any
    target: Path
    overwrite: bool
    is_dry: bool


def _convert_case(shared: _Shared, name: str, work: Any) -> list[str]:
    """Returns the files of the case."""
    outputs = shared.convert(shared.shared, name, work)
    files = [output.file for output in outputs]
    if not shared.overwrite:
        _check_not_there(shared.target, name, files)
    if not shared.is_dry:
        with telling_when_full(shared.target):
            add_line(shared.target, {"begin": name, "files": files})
            for output in outputs:
                _store(shared.target, output)
    return files


def _check_not_there(target: Path, name: str, files: list[str]) -> None:
    """What this case has not begun to write is another's."""
    there = [file for file in files if os.path.lexists(target / file)]
    strange = sorted(set(there) - set(read_log(target).files.get(name, []))) if there else []
    if strange:
        raise CaseFailure(
            f"{' and '.join(strange)} {'is' if len(strange) == 1 else 'are'} there already and not from this command; "
            f"move {'it' if len(strange) == 1 else 'them'} away, or give --overwrite"
        )


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
