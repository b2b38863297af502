"""Which patches a network is trained on: ``better_ignore_sampling``, ``case_weights`` and names for them."""

from __future__ import annotations

from collections.abc import Callable

from nnplug import Component, TrainerConfig, TrainingRun, hookimpl

NNPLUG_API = 1

_LOADER = "nnplug_sampling.loader:SamplingLoader"
_PART = "better_ignore_sampling"
# suffix of the trainer class that the names come from -> what it adds
_VARIANTS = {
    "": "",
    "_noSmooth": "+dice_ce_no_smooth_loss",
    "_DA5": "+da5",
    "_10epochs": "+num_epochs=10",
    "_100epochs": "+num_epochs=100",
}


@hookimpl
def register_trainers(register: Callable[[TrainerConfig], None]) -> None:
    """Two parts that share one loader, so that they combine, and the names of the class and its variants."""
    register(
        TrainerConfig(
            name=_PART,
            description="Sparse annotations with an ignore label: annotated voxels anywhere in the patch",
            source="After the trainer class nnUNetTrainer_betterIgnoreSampling; see docs/sampling.md",
            sampler=Component(_LOADER, better_ignore=True),
        )
    )
    register(
        TrainerConfig(
            name="case_weights",
            description="Cases drawn with the probabilities in case_weights.json beside the data set's splits",
            source="sampling_probabilities of nnU-Net's data loader",
            sampler=Component(_LOADER, case_weights="case_weights.json"),
        )
    )
    for name in ("betterIgnoreSampling", "nnUNetTrainer_betterIgnoreSampling"):
        for suffix, addition in _VARIANTS.items():
            register(
                TrainerConfig(
                    name=name + suffix,
                    description=f"Another name for {_PART}{addition}",
                    extends=_PART + addition,
                )
            )


@hookimpl
def train_start(run: TrainingRun) -> None:
    """Keep the case weights with the fold; refuse to go on with others."""
    sampler = run.config.get("sampler", {})
    if sampler.get("use") == _LOADER and sampler.get("case_weights") is not None:
        from nnplug_sampling.case_weights import keep_with_fold

        keep_with_fold(run, sampler["case_weights"])
