"""Code behind the recipes for what nnU-Net varies by trainer class: losses, learning rate schedules, an optimiser.

The recipes (``configs/nnplug_configs/trainers``) refer to it by import string. It registers nothing itself.
"""
