"""The trainers of ``nnplug_sampling``: what they combine with, and the names that say the same."""

from __future__ import annotations

from typing import Any

import nnplug
import pytest
from nnplug import Component

LOADER = "nnplug_sampling.loader:SamplingLoader"
VARIANTS = {
    "": "better_ignore_sampling",
    "_noSmooth": "better_ignore_sampling+dice_ce_no_smooth_loss",
    "_DA5": "better_ignore_sampling+da5",
    "_10epochs": "better_ignore_sampling+num_epochs=10",
    "_100epochs": "better_ignore_sampling+num_epochs=100",
}


def fields_of(text: str) -> dict[str, Any]:
    values = nnplug.resolve(text).as_dict()
    assert values.pop("name") == text
    return values


@pytest.mark.parametrize("name", ["betterIgnoreSampling", "nnUNetTrainer_betterIgnoreSampling"])
@pytest.mark.parametrize("suffix", VARIANTS)
def test_a_name_is_its_composition(name: str, suffix: str) -> None:
    assert fields_of(name + suffix) == fields_of(VARIANTS[suffix])
    assert nnplug.resolve(name + suffix).config.description == f"Another name for {VARIANTS[suffix]}"


def test_the_two_parts_share_the_loader() -> None:
    assert nnplug.resolve("better_ignore_sampling+case_weights").config.sampler == Component(
        LOADER, better_ignore=True, case_weights="case_weights.json"
    )
    other = nnplug.resolve("better_ignore_sampling+case_weights+sampler.case_weights=hard.csv")
    assert other.config.sampler.kwargs["case_weights"] == "hard.csv"
    assert other.name == "better_ignore_sampling+case_weights+sampler.case_weights=hard.csv"


@pytest.mark.parametrize(
    "text",
    [
        "better_ignore_sampling+da5+num_epochs=100",
        "better_ignore_sampling+case_weights+dice_loss+monai_dynunet+probabilistic_oversampling",
        "batch_norm+better_ignore_sampling+mirror_01+no_deep_supervision",
        "adamw+betterIgnoreSampling_DA5+lr_1en3+num_epochs=7",
    ],
)
def test_they_combine_with_everything(text: str) -> None:
    resolved = nnplug.resolve(text)
    assert resolved.config.sampler.kwargs["better_ignore"] is True
    assert resolved.name == text
