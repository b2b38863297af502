"""The lifecycle hooks of a training, called: those of plugins, which can not end it, and who else listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nnplug.discovery import registry as discovery
from nnplug.errors import NnplugError
from nnplug.hookspecs import LIFECYCLE_HOOKS

_log = logging.getLogger("nnplug")
_listeners: list[Callable[[str, Mapping[str, Any]], None]] = []

#: Only listeners are told of it, with ``run``.
VALIDATION_START = "validation_start"


@contextmanager
def listening(listener: Callable[[str, Mapping[str, Any]], None]) -> Iterator[None]:
    """Tell ``listener`` the name and arguments of every lifecycle hook while the block runs, after the plugins."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell_listeners(hook_name: str, arguments: Mapping[str, Any]) -> None:
    """Call what ``listening`` has registered."""
    for listener in tuple(_listeners):
        listener(hook_name, arguments)


def call_lifecycle(hook_name: str, **kwargs: Any) -> None:
    """Call a lifecycle hook of every plugin, one plugin at a time.

    A logger must not end a training: a plugin that raises is reported once and its lifecycle hooks are not called again
    in this process. Only ``train_start``, when nothing is spent yet, may refuse with a `NnplugError`.

    Args:
        hook_name: one of `LIFECYCLE_HOOKS`.
        **kwargs: the hook's arguments.
    """
    assert hook_name in LIFECYCLE_HOOKS, hook_name
    registry = discovery.get_registry()
    for record in registry.plugins:
        if not record.is_loaded or record.key in registry.silenced:
            continue
        try:
            registry.call_plugin(record, hook_name, **kwargs)
        except Exception as error:
            if hook_name == "train_start" and isinstance(error, NnplugError):
                raise  # the user asked for something that the plugin can not do
            registry.silenced.add(record.key)
            _log.warning(
                "Plugin %s failed in %s (%s: %s). Training goes on without its hooks.",
                record.title,
                hook_name,
                type(error).__name__,
                error,
                exc_info=_log.isEnabledFor(logging.DEBUG),
            )
    tell_listeners(hook_name, kwargs)
