"""The docs name every trainer class of nnU-Net, and what they say of names and settings is so."""

from __future__ import annotations

import inspect
import re
from itertools import combinations
from pathlib import Path

import nnplug
import pytest
from nnplug import NnplugError
from nnplug.composition.references import load
from support.stock_trainers import stock_class_modules

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "stock_trainers.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `((?:nnUNet|_Primus|Abstract)\w+)` \| (?:`([^`]+)`|—) \|", TEXT, re.MULTILINE)
SETTINGS = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ((?:`\w+\.\w+`[^|`]*)+) \|$", TEXT, re.MULTILINE)

# parts that set the same thing: only one of each can be had
GROUPS = [
    ("no_mirroring", "mirror_0", "mirror_01"),
    ("da5", "da5_order0", "da5_seg_order0", "da_seg_order0", "no_da"),
    ("da5", "da5_order0", "da5_seg_order0", "no_da", "no_dummy_2d"),
    ("sgd", "adam", "adamw", "adan"),
    ("lr_1en3", "lr_3en4"),
    ("poly_lr", "cosine_lr", "warmup_lr"),
    (
        "dice_loss",
        "ce_loss",
        "topk10_loss",
        "topk10_smoothed_loss",
        "dice_topk10_loss",
        "dice_ce_loss",
        "dice_ce_no_smooth_loss",
    ),
    ("probabilistic_oversampling_033", "probabilistic_oversampling_010"),
]


def test_every_class_of_nnunet_has_one_row():
    named = [name for name, _ in ROWS]
    assert len(named) == len(set(named))
    assert set(named) == set(stock_class_modules())


@pytest.mark.parametrize(("name", "text"), ROWS)
def test_the_spelling_is_a_trainer_in_its_canonical_form(name, text):
    if not text:
        assert name == "AbstractPrimus"
        return
    assert nnplug.resolve(text).name == text


@pytest.mark.parametrize("name", [name for name, _ in ROWS])
def test_a_class_works_by_its_name_unless_private_or_abstract(name):
    if name.startswith(("_", "Abstract")):
        with pytest.raises(NnplugError):
            nnplug.resolve(name)
    else:
        assert nnplug.resolve(f"{name}+num_epochs=7").config.num_epochs == 7


@pytest.mark.parametrize("pair", {pair for group in GROUPS for pair in combinations(sorted(group), 2)}, ids="+".join)
def test_two_parts_of_one_kind_conflict(pair):
    with pytest.raises(NnplugError, match=f"'{pair[0]}' and '{pair[1]}' both set"):
        nnplug.resolve("+".join(pair))


def test_the_settings_in_the_docs_exist():
    assert len(SETTINGS) == 7
    for parts, settings in SETTINGS:
        for part in re.findall(r"`(\w+)`", parts):
            for field, setting in re.findall(r"`(\w+)\.(\w+)`", settings):
                component = getattr(nnplug.resolve(part).config, field)
                assert setting in inspect.signature(load(component.target, trusted=True)).parameters, (part, setting)
