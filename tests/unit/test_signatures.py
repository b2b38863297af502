"""Arguments read from sources are those that Python sees."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from functools import reduce
from pathlib import Path

import pytest
from nnplug.composition.signatures import Signature, read_signature


@pytest.mark.parametrize(
    "reference",
    [
        "torch.optim:Adam",
        "torch.optim:SGD",
        "torch.nn:CrossEntropyLoss",
        "monai.networks.nets:SegResNet",
        "nnunetv2.training.loss.robust_ce_loss:TopKLoss",
        "nnplug_instance_losses.losses:BlobDiceLoss",
        "nnplug_monai.networks.segresnet:build_segresnet",
        "nnplug_stock.losses:topk_loss",
    ],
)
def test_sources_say_what_python_says(reference: str) -> None:
    module, _, path = reference.partition(":")
    target = reduce(getattr, path.split("."), importlib.import_module(module))
    read, seen = read_signature(reference), read_signature(target)
    assert read is not None
    assert seen is not None
    assert (read.names, read.takes_any) == (seen.names, seen.takes_any)
    assert read.defaults.keys() == seen.defaults.keys()
    assert len(read.names) == len(inspect.signature(target).parameters)


SOURCE = """
    from elsewhere import missing
    from .below import Net as Renamed

    class Base:
        def __init__(self, a, /, b, c=3, *rest, d, e=None, **more): ...

    class Derived(Base):
        pass

    class Foreign(missing):
        pass
    """


def test_imports_and_base_classes_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "signature_sample").mkdir()
    (tmp_path / "signature_sample" / "__init__.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "signature_sample" / "below.py").write_text("class Net:\n    def __init__(self, width=8): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_signature("signature_sample:Derived") == Signature(("b", "c", "d", "e"), {"c": "3", "e": "None"}, True)
    assert read_signature("signature_sample:Renamed") == Signature(("width",), {"width": "8"}, False)
    assert "signature_sample" not in sys.modules
    for name in ("Foreign", "missing", "nothing"):
        assert read_signature(f"signature_sample:{name}") is None
    assert read_signature("there_is_no_such_package.module:name") is None
