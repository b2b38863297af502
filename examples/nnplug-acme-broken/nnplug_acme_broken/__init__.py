"""Imports a package that is not installed: nnplug shows why this plugin is not there, and goes on with the others."""

import acme_missing_library
import nnplug
from nnplug import TrainerConfig

NNPLUG_API = 1


@nnplug.hookimpl
def register_trainers(register):
    register(TrainerConfig(name="acme_broken", network_builder=acme_missing_library.build))
