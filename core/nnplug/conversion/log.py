"""What a conversion has done, ``.nnplug_conversion.jsonl`` beside its result. Imports no torch.

First come the settings, then a line with its files for each case that is begun, and one with the size and time of its
sources when it is finished. The last line tells that the conversion was whole, with the hash of ``dataset.json``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nnplug.files.atomic_file import replace_file, write_error

_NAME = ".nnplug_conversion.jsonl"


class Log(NamedTuple):
    """What the log tells.

    Attributes:
        settings: None where there is no log.
        finished: the line of each finished case.
        files: that each case has written, or was about to.
        whole: the cases when the conversion was whole last.
        hash: of the final file then.
    """

    settings: dict[str, Any] | None
    finished: dict[str, dict[str, Any]]
    files: dict[str, list[str]]
    whole: list[str]
    hash: str | None


def read_log(target: Path) -> Log:
    """The log of a folder; the line that was being written when a run was killed is left out."""
    path = target / _NAME
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    if not lines or "settings" not in lines[0]:
        return Log(None, {}, {}, [], None)
    finished = {line["case"]: line for line in lines if "case" in line}
    files = {line["begin"] if "begin" in line else line["case"]: line["files"] for line in lines if "files" in line}
    # killed after the last case: dataset.json may be there, and its line here not yet
    none: dict[str, Any] = {"whole": list(finished), "hash": None}
    last = next((line for line in reversed(lines) if "whole" in line), none)
    return Log(lines[0]["settings"], finished, files, last["whole"], last["hash"])


def write_log(target: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Begin the log anew."""
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    replace_file(target / _NAME, lambda file: file.write(text.encode()))


def add_line(target: Path, line: Mapping[str, Any]) -> None:
    """Add a line; several processes may at once."""
    try:
        with (target / _NAME).open("ab", buffering=0) as log:
            log.write(f"{json.dumps(line)}\n".encode())
    except OSError as error:
        raise write_error(target, error) from None
