"""Registers a trainer with the name of another plugin's: both are listed, and using the bare name is an error."""

import nnplug
from nnplug import TrainerConfig

NNPLUG_API = 1


@nnplug.hookimpl
def register_trainers(register):
    register(TrainerConfig(name="acme_net", description="Not the network of nnplug-acme", num_epochs=5))
