"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from support.plugin_packages import PluginSite

# How long one example takes says nothing on a machine that does other work at the same time.
hypothesis.settings.register_profile("nnplug", deadline=None)
hypothesis.settings.load_profile("nnplug")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginSite]:
    """An importable folder for made-up plugin packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    made = PluginSite(folder)
    yield made
    made.forget_modules()


@pytest.fixture
def installed(site: PluginSite, monkeypatch: pytest.MonkeyPatch) -> PluginSite:
    """As `site`; its packages are the only ones that nnplug finds, from when they are first asked for."""
    registries: list[object] = []

    def get_registry() -> object:
        if not registries:
            registries.append(site.registry())
        return registries[0]

    for module in ("discovery.registry", "composition.portability"):
        monkeypatch.setattr(f"nnplug.{module}.get_registry", get_registry)
    return site
