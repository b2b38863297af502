"""Check a data set: its description, the headers of its files, every voxel. In parallel, and all problems at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnplug.image_headers import UnreadableImageError
from nnplug.inventory import rules
from nnplug.inventory.case_check import CheckSettings, Headers, check_headers, check_voxels
from nnplug.inventory.loading import CaseFiles, Inventory
from nnplug.inventory.overview import draw_case
from nnplug.inventory.readers import choose_reader
from nnplug.problems import Problem
from nnplug.processes.case_pool import Pool


@dataclass(frozen=True)
class CaseReport:
    """What was found in a case.

    Attributes:
        headers: size, spacing and channels.
        problems: what is wrong, of the headers and the voxels.
        label_voxels: voxels of each label value but the background; None where they were not counted.
        picture: a slice with the label's outline, H W 3 uint8; None where none was asked for.
    """

    headers: Headers
    problems: tuple[Problem, ...]
    label_voxels: dict[int, int] | None = None
    picture: np.ndarray | None = None


def settings_of(inventory: Inventory) -> CheckSettings:
    """What the cases of a data set are compared with. Raises NnplugError as ``choose_reader``."""
    return CheckSettings(choose_reader(inventory), inventory.channel_names, tuple(rules.label_values(inventory.labels)))


def check_cases(
    inventory: Inventory,
    pool: Pool,
    *,
    voxels: bool,
    pictures: bool = False,
    cases: Sequence[str] | None = None,
) -> tuple[dict[str, CaseReport], list[Problem]]:
    """Check the files of cases.

    Args:
        inventory: the data set.
        pool: processes.
        voxels: read every voxel; otherwise the headers only.
        pictures: draw a slice of each case.
        cases: only these.

    Returns:
        What was found in each case, and every problem, in the order of the inventory.
    """
    settings = settings_of(inventory)
    chosen = {name: inventory.cases[name] for name in (inventory.cases if cases is None else cases)}
    reports: dict[str, CaseReport] = {}
    title = "Checking images" if voxels else "Checking headers"
    failures = pool.run(_check_case, (settings, voxels, pictures), chosen, title, reports.__setitem__)
    problems = []
    for name in chosen:
        if name in failures:
            problems.append(Problem(failures[name], "Mend the case, or leave it out.", name))
        else:
            problems += reports[name].problems
    reports = {name: reports[name] for name in chosen if name in reports}
    return reports, problems + _mixed_kinds({name: report.headers for name, report in reports.items()})


def _check_case(shared: tuple[CheckSettings, bool, bool], name: str, files: CaseFiles) -> CaseReport:
    settings, voxels, pictures = shared
    headers = check_headers(settings, name, files)
    if not voxels or not headers.is_readable:
        return CaseReport(headers, headers.problems)
    try:
        found = check_voxels(settings, name, files)
    except UnreadableImageError as error:
        problem = Problem(str(error), "Mend or replace the file, or leave the case out.", name)
        return CaseReport(headers, (*headers.problems, problem))
    picture = draw_case(found.image, found.label, found.spacing) if pictures else None
    counts = None
    if found.label is not None:
        counts = {value: int(np.count_nonzero(found.label == value)) for value in settings.label_values if value > 0}
    return CaseReport(headers, (*headers.problems, *found.problems), counts, picture)


def _mixed_kinds(headers: dict[str, Headers]) -> list[Problem]:
    """Grey and RGB images can not be in one data set; the rarer kind is taken for the wrong one."""
    kinds: dict[bool, list[str]] = {}
    for name, found in headers.items():
        if found.size is not None:
            kinds.setdefault(any((number or 3) in (3, 4) for number in found.channels if number != 1), []).append(name)
    if len(kinds) < 2:
        return []
    rare = min(kinds, key=lambda kind: len(kinds[kind]))
    this, others = ("RGB", "grey") if rare else ("grey", "RGB")
    advice = "Convert them all to the same kind."
    return [Problem(f"its images are {this}, those of other cases {others}", advice, name) for name in kinds[rare]]
