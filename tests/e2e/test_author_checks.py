"""The conformance suite as a plugin's author uses it: three lines in a test file, in a project of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.commands import clean_environment
from support.plugin_packages import PluginSite, trainers

NETWORK = """
from nnplug.testing import exempt
from torch import nn

@exempt("autocast", reason="its filters need float32")
def build_net(input_channels, num_classes, deep_supervision, conv_op):
    return nn.Sequential(conv_op(input_channels, 4, 3, padding=1), nn.LeakyReLU(), conv_op(4, num_classes, 1))

def bad_loss(output, target):
    return -nn.functional.cross_entropy(output, target[:, 0].long())
"""

TEST = """
from nnplug.testing import parametrize_with_checks

@parametrize_with_checks("acme_net", "acme_loss")
def test_trainer(check):
    check()
"""


def test_three_lines_in_an_authors_test(tmp_path: Path) -> None:
    site = PluginSite(tmp_path / "site")
    site.folder.mkdir()
    code = trainers(
        "name='acme_net', network_builder='acme.net:build_net'", "name='acme_loss', loss_fn='acme.net:bad_loss'"
    )
    site.add("acme", code=code, files={"net.py": NETWORK})
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_acme.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-rfs", "-m", "not nnplug_slow", "--strict-markers", "--tb=short"]
    command += ["-p", "no:cacheprovider"]
    env = clean_environment({"PYTHONPATH": str(site.folder), "OMP_NUM_THREADS": "1"})
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False, timeout=600)

    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed
    assert all("test_trainer[acme_loss-loss_" in line for line in failed)
    assert "expected: a higher loss for 'background everywhere' than for the right segmentation" in done.stdout
    assert "its filters need float32 (network_builder acme.net:build_net)" in done.stdout
    # what a failure shows ends in the author's own test, not inside nnplug
    assert "loss_checks.py" not in done.stdout
    assert f" {len(failed)} failed, " in f" {done.stdout.splitlines()[-1]}"
    assert " 1 skipped, " in done.stdout.splitlines()[-1]
    assert "deselected" in done.stdout.splitlines()[-1]
