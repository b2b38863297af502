"""An example of a plugin. It imports no torch: the strings are imported when a trainer is built."""

from pathlib import Path

import nnplug
from nnplug import Component, TrainerConfig

NNPLUG_API = 1


@nnplug.hookimpl
def register_trainers(register):
    register(
        TrainerConfig(
            name="acme_net",
            description="Dilated convolutions at full resolution",
            source="Yu and Koltun 2016, arXiv:1511.07122",
            network_builder=Component("nnplug_acme.network:DilatedNet", width=8, dilations=[1, 2, 4]),
        )
    )
    register(
        TrainerConfig(
            name="acme_loss",
            description="Soft Jaccard",
            source="Rahman and Wang 2016, doi:10.1007/978-3-319-50835-1_22",
            loss_fn="nnplug_acme.losses:SoftJaccard",
        )
    )
    register(
        TrainerConfig(
            name="acme_sampler",
            description="Every case once before one comes again",
            sampler="nnplug_acme.sampler:WithoutReplacement",
        )
    )


@nnplug.hookimpl
def register_preprocessors(register):
    register("nnplug_acme.preprocessing:AcmePreprocessor")


@nnplug.hookimpl
def register_recipes():
    return Path(__file__).parent / "recipes"
