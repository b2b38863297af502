"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.plugin_packages import PluginSite


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

    monkeypatch.setattr("nnplug.registry.get_registry", get_registry)
    return site
