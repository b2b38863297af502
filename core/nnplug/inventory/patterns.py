"""Find the files of cases by patterns such as ``{case}/t1.nii.gz``, or in a table. Imports no torch."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnplug.errors import NnplugError
from nnplug.problems import Problem, shortened

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_CHANNEL = "channel"
EXAMPLES = (
    "--images '{case}_{channel}.nii.gz', --images '{case}/t1.nii.gz' '{case}/flair.nii.gz' --label '{case}/seg.nii.gz'"
)


@dataclass(frozen=True)
class FoundFiles:
    """What was found.

    Attributes:
        images: by case, in the order of the channels.
        labels: by case.
        channels: what the patterns or the table call them, "" where they do not.
        problems: cases that are not complete, and files that fit a pattern twice.
    """

    images: dict[str, list[Path]]
    labels: dict[str, Path]
    channels: tuple[str, ...]
    problems: tuple[Problem, ...]


def find_files(folder: Path, image_patterns: Sequence[str], label_pattern: str | None) -> FoundFiles:
    """Files of a folder by patterns.

    A pattern is a path from the folder on. ``{case}`` stands for a part of a name and may be there more than once,
    with the same text; other names in braces are parts of the case's name as well, joined with ``_``. ``*`` stands for
    anything within a name. Either there is a pattern for each channel, or one with ``{channel}``, which stands for a
    text without ``_``. Images to predict have no ``label_pattern``.

    Raises:
        NnplugError: no folder, or patterns that can not be used.
    """
    if not folder.is_dir():
        raise NnplugError(f"There is no folder {folder}.")
    _check_patterns(image_patterns, label_pattern or image_patterns[0].replace("{channel}", ""))
    problems: list[Problem] = []
    found_labels = _match(folder, label_pattern, problems) if label_pattern is not None else {}
    labels = {case: path for (case, _), path in found_labels.items()}
    taken = set(labels.values())
    by_channel: dict[str, dict[str, Path]] = {}
    for pattern in image_patterns:
        for (case, channel), path in _match(folder, pattern, problems, taken).items():
            by_channel.setdefault(channel if _CHANNEL in _names(pattern) else pattern, {})[case] = path
    keys = sorted(by_channel) if _CHANNEL in _names(image_patterns[0]) else list(image_patterns)
    if not any(by_channel.values()):
        raise NnplugError(f"No image in {folder} fits {' or '.join(image_patterns)}. Patterns look like {EXAMPLES}.")
    cases = sorted({case for found in by_channel.values() for case in found} | set(labels))
    images = {case: [by_channel[key][case] for key in keys if case in by_channel.get(key, {})] for case in cases}
    for case in cases:
        gone = [key for key in keys if case not in by_channel.get(key, {})]
        gone += [label_pattern] if label_pattern is not None and case not in labels else []
        if gone:
            problems.append(Problem(f"nothing fits {' and '.join(gone)}", "Mend the names or the patterns.", case))
    return FoundFiles(images, labels, tuple("" if key in image_patterns else key for key in keys), tuple(problems))


def default_patterns(folder: Path) -> tuple[list[str], str]:
    """Patterns of a folder with ``imagesTr`` and ``labelsTr``, or ``images`` and ``labels``.

    Raises:
        NnplugError: it has neither, or files of several formats.
    """
    for images, labels in (("imagesTr", "labelsTr"), ("images", "labels")):
        if (folder / images).is_dir() and (folder / labels).is_dir():
            endings = [_ending(folder / images), _ending(folder / labels)]
            names = [path.name.removesuffix(endings[0]) for path in (folder / images).glob(f"[!.]*{endings[0]}")]
            numbered = all(re.search(r"_\d{4}$", name) for name in names)
            channel = "_{channel}" if numbered else ""
            return [f"{images}/{{case}}{channel}{endings[0]}"], f"{labels}/{{case}}{endings[1]}"
    raise NnplugError(
        f"{folder} has neither imagesTr and labelsTr nor images and labels. Say where the files are: {EXAMPLES}; or "
        "give a table with --csv."
    )


def read_table(path: Path, *, labelled: bool = True) -> FoundFiles:
    """A CSV file with the columns ``case`` and ``label``; every other one is a channel. Paths count from its folder.

    Of images to predict, which are not ``labelled``, labels are not needed and not read.

    Raises:
        NnplugError: no such file, a column is missing or there twice, or a line is longer than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NnplugError(f"The table {path} can not be read ({error}).") from None
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    header, *rows = _read_rows(text, delimiter) or [[]]
    needed = ("case", "label") if labelled else ("case",)
    missing = [name for name in needed if name not in header]
    channels = [name for name in header if name not in ("case", "label")]
    if missing or not channels:
        lacks = " and ".join(f"column '{name}'" for name in missing) or "column of images"
        raise NnplugError(f"The table {path} has no {lacks}; its first line is {first_line.strip()!r}.")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise NnplugError(f"The table {path} has two columns '{twice[0]}'. Give each column a name of its own.")
    found = FoundFiles({}, {}, tuple(channels), ())
    problems = []
    for row in rows:
        cells = dict(zip(header, row, strict=False))
        case = cells.get("case", "")
        if len(row) > len(header):
            raise NnplugError(
                f"The table {path} has {len(header)} columns ({', '.join(header)}), and more in the line of case "
                f"{case}. Mend the line, or name its columns."
            )
        gone = [name for name in (*needed, *channels) if not cells.get(name)]
        if case in found.images:
            problems.append(Problem("it is there twice", "Give each case one line.", case, path))
            continue
        found.images[case] = [path.parent / cells[name] for name in channels if cells.get(name)]
        if labelled and cells.get("label"):
            found.labels[case] = path.parent / cells["label"]
        if gone:
            problems.append(Problem(f"nothing stands under {' and '.join(gone)}", "Fill the line.", case, path))
    return FoundFiles(found.images, found.labels, found.channels, tuple(problems))


def _read_rows(text: str, delimiter: str) -> list[list[str]]:
    """Lines that are not empty, each without the empty cells at its end, which spreadsheets write."""
    rows = []
    for row in csv.reader(text.splitlines(), delimiter=delimiter):
        cells = [cell.strip() for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            rows.append(cells)
    return rows


# --- patterns --------------------------------------------------------------------------------------------------------


def _names(pattern: str) -> list[str]:
    return list(dict.fromkeys(_PLACEHOLDER.findall(pattern)))


def _check_patterns(image_patterns: Sequence[str], label_pattern: str) -> None:
    wanted = [name for name in _names(label_pattern) if name != _CHANNEL]
    for pattern in [label_pattern, *image_patterns]:
        names = _names(pattern)
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise NnplugError(f"The pattern {pattern} leaves the folder. Give it from the folder on: {EXAMPLES}.")
        if not [name for name in names if name != _CHANNEL]:
            raise NnplugError(f"The pattern {pattern} has no {{case}}, which stands for the case's name: {EXAMPLES}.")
        if {name for name in names if name != _CHANNEL} != set(wanted):
            raise NnplugError(f"The patterns {label_pattern} and {pattern} do not name a case by the same parts.")
    several = len(image_patterns) > 1 and any(_CHANNEL in _names(pattern) for pattern in image_patterns)
    if several or _CHANNEL in _names(label_pattern):
        raise NnplugError("{channel} belongs into one pattern for the images, or there is a pattern for each channel.")


def _match(
    folder: Path, pattern: str, problems: list[Problem], taken: set[Path] | None = None
) -> dict[tuple[str, str], Path]:
    """Files by (case, channel)."""
    expression = _expression(pattern)
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob(_PLACEHOLDER.sub("*", pattern))):
        match = expression.fullmatch(path.relative_to(folder).as_posix())
        if match is None or path in (taken or ()) or not path.is_file():
            continue
        parts = match.groupdict()
        channel = parts.pop(_CHANNEL, "")
        key = ("_".join(parts.values()), channel)
        if key in found:
            fits = f"{pattern} fits {shortened([found[key].name, path.name])}"
            problems.append(Problem(fits, "Make the pattern narrower.", key[0], path))
        found.setdefault(key, path)
    return found


def _expression(pattern: str) -> re.Pattern[str]:
    text, seen = "", set()
    for piece in re.split(r"(\{\w+\}|\*)", pattern):
        placeholder = _PLACEHOLDER.fullmatch(piece)
        if piece == "*":
            text += "[^/]*"
        elif placeholder is None:
            text += re.escape(piece)
        elif placeholder[1] in seen:
            text += f"(?P={placeholder[1]})"
        else:
            seen.add(placeholder[1])
            text += f"(?P<{placeholder[1]}>{'[^/_]+' if placeholder[1] == _CHANNEL else '[^/]+?'})"
    return re.compile(text)


def _ending(folder: Path) -> str:
    names = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    endings = sorted({ending for name in names for ending in re.findall(r"(?:\.nii)?\.[A-Za-z]\w*$", name)} - {".json"})
    if len(endings) != 1:
        raise NnplugError(f"{folder} holds {', '.join(endings) or 'no files'}: say which with --images and --label.")
    return endings[0]
