"""docs/check.md: its tables list every check and plan, its code runs."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from nnplug import Component, TrainerConfig
from nnplug.testing import CASES, check_trainer, run_checks

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def first_column(section: str) -> list[str]:
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An importable module for the code of the page, as nnU-Net must find builders again."""
    made = types.ModuleType("code_of_check_page")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def run_block(index: int, module: types.ModuleType) -> dict[str, Any]:
    exec(compile(BLOCKS[index], "check.md", "exec"), vars(module))
    return vars(module)


def test_every_check_is_described() -> None:
    from nnplug.testing.selection import CHECK_NAMES

    assert sorted(first_column("Checks")) == sorted([*CHECK_NAMES, "plan"])


def test_every_plan_is_described() -> None:
    from nnplug.testing.plan_cases import PLAIN, REFERENCE, variants

    assert sorted(first_column("Plans")) == sorted(case.name for case in (*PLAIN, *variants(2), *REFERENCE))


def test_every_block_is_run() -> None:
    assert len(BLOCKS) == 4


def test_the_three_lines(module: types.ModuleType) -> None:
    test = run_block(0, module)["test_trainer"]
    [mark] = test.pytestmark
    ids = [parameter.id for parameter in mark.args[1]]
    assert "monai_dynunet-gradients[2d]" in ids
    assert f"test_trainer[{ids[ids.index('monai_dynunet-gradients[2d]')]}]" in PAGE
    assert "monai_tversky-loss_finite[regions]" in ids


def test_the_loop(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run_block(1, module)
    assert capsys.readouterr().out == "batches[2d] passed \ntrains[2d] passed \n"


def test_the_exemption(module: types.ModuleType) -> None:
    network = run_block(2, module)["FourierNet"]
    checks = dict(check_trainer(TrainerConfig(name="t", network_builder=network)))
    [outcome] = run_checks([checks["torch_compile[2d]"]])
    assert outcome.status == "exempt"
    assert outcome.message.startswith("inductor does not compile complex numbers")
    wanted = [checks[f"{name}[2d]"] for name in ("builds", "raw_logits", "gradients", "autocast")]
    assert [outcome.message for outcome in run_checks(wanted) if outcome.status == "failed"] == []


def test_the_sampler_with_a_file(module: types.ModuleType, tmp_path: Path) -> None:
    sampler = run_block(3, module)["OrderedCases"]
    sampler.write_example_inputs(tmp_path, CASES, order="order.json")
    assert (tmp_path / "order.json").read_text() == '["case_00", "case_01", "case_02"]'
    checks = dict(check_trainer(TrainerConfig(name="t", sampler=Component(sampler, order="order.json")), quick=True))
    assert [outcome.message for outcome in run_checks([checks["batches[2d]"]]) if outcome.status == "failed"] == []
