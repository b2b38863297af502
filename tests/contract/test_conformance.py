"""Every trainer that ships with nnplug passes the conformance suite, and exempts itself from little."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pytest
import torch
from nnplug.discovery.registry import get_registry
from nnplug.testing import Check, check_trainer, run_checks

# what depends on the machine: a compiler, several GPUs
MAY_BE_EXEMPT = {"torch_compile", "ddp", "step_time"}


def built_in() -> list[str]:
    registrations = get_registry().registrations
    return [name for name, found in registrations.items() if any(one.distribution == "nnplug" for one in found)]


def distinct() -> list[str]:
    """The names but those that stand for the same config as one before."""
    seen: dict[str, str] = {}
    for name in built_in():
        seen.setdefault(json.dumps({**get_registry().resolve(name).as_dict(), "name": ""}), name)
    return list(seen.values())


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small wait for their threads longer than they compute
    yield
    torch.set_num_threads(num_threads)


def passes(checks: Iterable[Check]) -> None:
    outcomes = list(run_checks(checks))
    assert outcomes
    failed = [f"{one.check.name}\n{one.message}" for one in outcomes if one.status == "failed"]
    assert not failed, "\n\n".join(failed)


@pytest.mark.parametrize("name", distinct())
def test_passes(name: str) -> None:
    passes(check for _, check in check_trainer(name, quick=True))


@pytest.mark.full
@pytest.mark.parametrize("name", distinct())
def test_passes_slow_checks(name: str) -> None:
    checks = [check for _, check in check_trainer(name) if check.is_slow]
    if checks:
        passes(checks)


@pytest.mark.parametrize("name", distinct())
def test_exemptions_are_few(name: str) -> None:
    exempt = {check_name: check for check_name, check in check_trainer(name) if check.exemption is not None}
    assert {check_name.partition("[")[0] for check_name in exempt} <= MAY_BE_EXEMPT
    assert all(check.exemption for check in exempt.values())


def test_dimensions_are_left_out_for_a_reason() -> None:
    """One that leaves a dimension out says what method it comes from."""
    configs = [get_registry().resolve(name).config for name in built_in()]
    assert all(config.source for config in configs if config.spatial_dims is not None)
