"""The example of docs/annotate.md: its classes are read, and its two commands use the same names."""

from __future__ import annotations

import re
from pathlib import Path

from nnplug.annotation.classes import read_classes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "annotate.md").read_text(encoding="utf-8")


def test_the_classes_are_those_of_the_conversion(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "classes.toml").write_text(text)
    names = [one.name for one in read_classes(tmp_path / "classes.toml")]
    assert f"--classes {' '.join(names)} --unlabelled 0" in PAGE
