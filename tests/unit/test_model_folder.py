"""Model and fold folders: whose they are, who trains them, what is moved aside."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnplug.composition.differences import list_differences
from nnplug.errors import NnplugError
from nnplug.files import json_files
from nnplug.models.model_folder import Manifest, check_claim, claim, differences
from nnplug.training import fold_folder
from nnplug.training.fold_folder import (
    FoldRecord,
    begins_with_weights,
    check_fold,
    check_previous_stage,
    claim_fold,
    fold_lock,
    read_result,
    set_aside,
    write_result,
)

CONFIG = {"name": "small_net", "description": "A net.", "num_epochs": 100, "loss_fn": {"use": "a.b:C", "weight": 1.0}}
PLANS = {"plans_name": "p", "configurations": {"2d": {"patch_size": [40, 56], "batch_size": 9}}}
DATASET = {"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


def manifest(config: dict[str, Any] | None = None, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "small_net",
        "config": {**CONFIG, **(config or {})},
        "distributions": {"acme-nets": "1.0"},
        "plans": PLANS,
        "dataset_json": DATASET,
        "configuration": "2d",
    }
    return Manifest(**{**values, **changes})


def add_checkpoint(folder: Path, fold: int = 0) -> None:
    (folder / f"fold_{fold}").mkdir(parents=True)
    (folder / f"fold_{fold}" / "checkpoint_latest.pth").touch()


# --- the manifest


def test_manifest_survives_its_file(tmp_path: Path) -> None:
    ours = manifest()
    claim(tmp_path / "model", ours)
    assert Manifest.read(tmp_path / "model") == ours
    written = json.loads((tmp_path / "model" / "nnplug.json").read_text())
    assert list(written) == [
        "format",
        "hash",
        "name",
        "config",
        "distributions",
        "plans",
        "dataset_json",
        "configuration",
    ]
    assert (written["format"], written["hash"]) == (1, ours.hash)
    assert Manifest.read(tmp_path) is None


def test_hash_leaves_out_texts_and_versions() -> None:
    ours = manifest()
    assert manifest({"description": "Other words.", "source": "A paper"}).hash == ours.hash
    assert manifest(distributions={"acme-nets": "2.0"}).hash == ours.hash
    assert manifest(plans={**PLANS, "continue_training": True}).hash == ours.hash


def test_other_configurations_of_the_plans_come_and_go(tmp_path: Path) -> None:
    derived = {"inherits_from": "2d", "batch_size": 2}
    plans = {**PLANS, "configurations": {**PLANS["configurations"], "derived": derived}}
    folder = tmp_path / "small_net__p__2d"
    claim(folder, manifest())
    claim(folder, manifest(plans=plans))
    assert manifest(plans=plans).hash == manifest().hash
    of_derived = manifest(plans=plans, configuration="derived")
    base = {"2d": {**PLANS["configurations"]["2d"], "batch_size": 3}, "derived": derived}
    assert manifest(plans={**PLANS, "configurations": base}, configuration="derived").hash != of_derived.hash


def test_a_folder_of_before_tells_its_configuration_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "small_net__p__2d"
    claim(folder, manifest())
    written = json.loads((folder / "nnplug.json").read_text())
    del written["configuration"]
    (folder / "nnplug.json").write_text(json.dumps(written))
    assert Manifest.read(folder) == manifest()


def test_hash_does_not_depend_on_order_or_python_types() -> None:
    ours = manifest({"patch_size": (1, 2)})
    other = manifest(dict(reversed(list({**CONFIG, "patch_size": [np.int64(1), 2]}.items()))))
    assert other.hash == ours.hash
    assert other == ours


@pytest.mark.parametrize(
    "changed",
    [
        manifest({"num_epochs": 101}),
        manifest({"seed": 0}),
        manifest(plans={**PLANS, "image_reader_writer": "x"}),
        manifest(dataset_json={**DATASET, "labels": {"background": 0, "b": 1}}),
    ],
)
def test_hash_depends_on_config_plans_and_dataset(changed: Manifest) -> None:
    assert changed.hash != manifest().hash


def test_hash_stays_the_same_between_versions() -> None:
    """Folders outlive releases: a change of this number is a change of the format."""
    assert manifest().hash == "6e9f9fd64d7f0eef5fce50e29745d8131c20aea71e43f7e6d0051813447c335f"


def test_manifest_of_a_newer_nnplug_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nnplug.json").write_text('{"format": 2, "everything": "else"}')
    with pytest.raises(NnplugError) as caught:
        check_claim(tmp_path, manifest())
    assert str(caught.value) == (
        f"{tmp_path}/nnplug.json was written by a newer nnplug (format 2, this one knows 1). "
        "Update it: pip install -U nnplug"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "nnplug.json is not readable JSON ("),
        ("[]", "nnplug.json does not hold a JSON object."),
        ("{}", "nnplug.json is not an nnplug manifest: check config, or move the folder away."),
        ('{"name": 1, "config": {}, "distributions": {}, "plans": {}, "dataset_json": {}}', "check name, or"),
        ('{"name": "a", "config": {}, "distributions": {}, "plans": 3, "dataset_json": {}}', "check plans, or"),
    ],
)
def test_damaged_manifest_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "nnplug.json"
    path.write_text(text)
    os.utime(path, (1, 1))
    with pytest.raises(NnplugError) as caught:
        Manifest.read(tmp_path)
    assert message in str(caught.value)


# --- differences


def test_differences_name_the_path_and_both_values() -> None:
    new = manifest(
        {"num_epochs": 200, "seed": 3, "loss_fn": {"use": "a.b:C", "weight": 2.0}},
        plans={**PLANS, "configurations": {"2d": {"patch_size": [40, 64]}}},
        dataset_json={**DATASET, "file_ending": ".png"},
    )
    assert differences(manifest(), new) == [
        "num_epochs: 100 in the folder, 200 now",
        "loss_fn -> weight: 1.0 in the folder, 2.0 now",
        "plans.json -> configurations -> 2d -> patch_size: [40, 56] in the folder, [40, 64] now",
        "plans.json -> configurations -> 2d -> batch_size: 9 in the folder, not set now",
        'dataset.json -> file_ending: ".nii.gz" in the folder, ".png" now',
        "seed: not set in the folder, 3 now",
    ]


def test_many_differences_are_counted() -> None:
    found = list_differences({str(i): i for i in range(20)}, {str(i): -i - 1 for i in range(20)})
    assert len(found) == 13
    assert found[-1] == "and 8 more differences"


def test_long_values_are_shortened_around_their_difference() -> None:
    one = "x" * 200 + "one" + "y" * 200
    (line,) = list_differences({"text": one}, {"text": one.replace("one", "two")})
    assert len(line) < 200
    assert "one" in line.split(" in the folder, ")[0]
    assert "two" in line.split(" in the folder, ")[1]
    (line,) = list_differences({"text": one}, {})
    assert line.endswith("... in the folder, not set now")


def test_long_lists_are_told_by_entry_or_length() -> None:
    cases = [{"image": f"case_{i}.nii.gz"} for i in range(30)]
    changed = [*cases[:3], {"image": "other.nii.gz"}, *cases[4:]]
    assert list_differences({"training": cases}, {"training": changed}) == [
        'training -> 3 -> image: "case_3.nii.gz" in the folder, "other.nii.gz" now'
    ]
    assert list_differences({"training": cases}, {"training": cases[1:]}) == [
        "training: 30 entries in the folder, 29 now"
    ]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
JSON_OBJECTS = st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=4)


@settings(max_examples=150, deadline=None)
@given(JSON_OBJECTS, JSON_OBJECTS, st.booleans())
def test_there_are_differences_exactly_if_the_hashes_differ(
    one: dict[str, Any], other: dict[str, Any], is_same: bool
) -> None:
    old = manifest(plans=one)
    new = manifest(plans=json.loads(json.dumps(one if is_same else other)))
    found = differences(old, new)
    assert bool(found) == (old.hash != new.hash)
    assert len(found) <= 13
    assert all(len(line) < 400 for line in found)
    assert len(found) == len(differences(new, old))


@settings(max_examples=50, deadline=None)
@given(JSON_OBJECTS, st.integers(0, 3), st.integers(4, 9))
def test_one_change_is_one_difference(plans: dict[str, Any], before: int, after: int) -> None:
    old = manifest(plans={**plans, "the setting": {"deep": before}})
    new = manifest(plans={**plans, "the setting": {"deep": after}})
    assert differences(old, new) == [f"plans.json -> the setting -> deep: {before} in the folder, {after} now"]


# --- claiming a model folder


def test_claim_writes_what_nnunet_reads(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "model"
    assert claim(folder, manifest()) == []
    assert json.loads((folder / "plans.json").read_text()) == PLANS
    assert (folder / "dataset.json").read_text() == json.dumps(DATASET, indent=4)
    assert sorted(os.listdir(folder)) == ["dataset.json", "nnplug.json", "plans.json"]
    assert claim(folder, manifest()) == [], "the same again"


def test_claim_leaves_files_that_hold_what_they_should(tmp_path: Path) -> None:
    claim(tmp_path, manifest())
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    claim(tmp_path, manifest())
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (tmp_path / "plans.json").write_text('{"edited": 1}')
    claim(tmp_path, manifest())
    assert json.loads((tmp_path / "plans.json").read_text()) == PLANS


def test_check_claim_writes_nothing(tmp_path: Path) -> None:
    assert check_claim(tmp_path / "new", manifest()) == []
    assert os.listdir(tmp_path) == []


def test_folder_of_another_config_is_refused_with_the_differences(tmp_path: Path) -> None:
    claim(tmp_path, manifest())
    add_checkpoint(tmp_path)
    for refuse in (check_claim, claim):
        with pytest.raises(NnplugError) as caught:
            refuse(tmp_path, manifest({"num_epochs": 200, "seed": 1}))
        assert str(caught.value) == (
            f"{tmp_path} belongs to a model with other settings: num_epochs: 100 in the folder, 200 now; "
            "seed: not set in the folder, 1 now. "
            "Use those settings, give the new ones a name of their own, or move the folder away."
        )
    assert Manifest.read(tmp_path) == manifest()


def test_folder_without_a_checkpoint_may_be_deleted(tmp_path: Path) -> None:
    claim(tmp_path, manifest())
    with pytest.raises(NnplugError, match="There is no checkpoint in it yet: if nothing is training there, it can be"):
        claim(tmp_path, manifest({"num_epochs": 3}))


def test_other_versions_of_plugins_warn(tmp_path: Path) -> None:
    claim(tmp_path, manifest())
    warnings = claim(tmp_path, manifest(distributions={"acme-nets": "1.1", "acme-losses": "0.3"}))
    assert warnings == [
        "acme-losses (not used) was used in this folder before, 0.3 now.",
        "acme-nets 1.0 was used in this folder before, 1.1 now.",
    ]


def test_stock_run_is_taken_only_with_its_own_plans_and_dataset(tmp_path: Path) -> None:
    add_checkpoint(tmp_path)
    with pytest.raises(
        NnplugError, match=r"that nnplug did not train, .*plans\.json is missing; dataset\.json is miss"
    ):
        claim(tmp_path, manifest())
    (tmp_path / "plans.json").write_text(json.dumps(PLANS))
    (tmp_path / "dataset.json").write_text(json.dumps({**DATASET, "numTraining": 4}))
    with pytest.raises(
        NnplugError, match=r"settings: dataset\.json -> numTraining: 4 in the folder, not set now\. Use"
    ):
        check_claim(tmp_path, manifest())
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    assert claim(tmp_path, manifest()) == []
    assert Manifest.read(tmp_path) == manifest()


def test_leftovers_without_a_checkpoint_are_replaced(tmp_path: Path) -> None:
    """As a stock training leaves them that was killed before its first checkpoint."""
    (tmp_path / "plans.json").write_text('{"old": 1}')
    (tmp_path / "dataset.json").write_text('{"cut of')
    assert claim(tmp_path, manifest()) == []
    assert json.loads((tmp_path / "plans.json").read_text()) == PLANS
    assert json.loads((tmp_path / "dataset.json").read_text()) == DATASET


def test_unwritable_results_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(NnplugError) as caught:
        claim(tmp_path / "results" / "model", manifest())
    assert str(caught.value) == (
        f"Could not create {tmp_path}/results/model: Not a directory. Check the results folder."
    )


def _claim_at_once(folder: Path, epochs: int, barrier: Any, outcomes: Any) -> None:
    barrier.wait()
    try:
        claim(folder, manifest({"num_epochs": epochs}))
        outcomes.put(epochs)
    except NnplugError as error:
        outcomes.put(str(error))


def test_folds_that_start_at_once_agree_on_one_config(tmp_path: Path) -> None:
    """Five processes, two configs, at the same moment: all of one config win, all of the other are refused."""
    context = multiprocessing.get_context("fork")
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        barrier, outcomes = context.Barrier(5), context.Queue()
        folds = [
            context.Process(target=_claim_at_once, args=(folder, 1 + fold % 2, barrier, outcomes)) for fold in range(5)
        ]
        for fold in folds:
            fold.start()
        found = [outcomes.get(timeout=20) for _ in folds]
        for fold in folds:
            fold.join()
        owner = Manifest.read(folder).config["num_epochs"]
        assert [outcome for outcome in found if isinstance(outcome, int)] == [owner] * (3 if owner == 1 else 2)
        refusals = [outcome for outcome in found if isinstance(outcome, str)]
        assert all(f"num_epochs: {owner} in the folder, {3 - owner} now" in refusal for refusal in refusals)
        assert sorted(os.listdir(folder)) == ["dataset.json", "nnplug.json", "plans.json"]


def test_claim_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    assert claim(tmp_path, manifest()) == []
    with pytest.raises(NnplugError, match="belongs to a model with other settings"):
        claim(tmp_path, manifest({"num_epochs": 5}))


def test_reader_waits_for_a_file_that_is_being_filled(tmp_path: Path) -> None:
    path = tmp_path / "nnplug.json"
    path.touch()
    script = f"import time, pathlib; time.sleep(0.5); pathlib.Path({str(path)!r}).write_text('{{\"a\": 1}}')"
    with subprocess.Popen([sys.executable, "-c", script]):
        assert json_files.read_json(path) == {"a": 1}


# --- folds


def record(**changes: Any) -> FoldRecord:
    values = {"train": ["c1", "c2", "c3"], "val": ["c4"], "fingerprint_hash": "f"}
    return FoldRecord(**{**values, **changes})


def test_fold_accepts_its_own_split_in_any_order(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    claim_fold(fold, record())
    (fold / "checkpoint_latest.pth").touch()
    claim_fold(fold, record(train=["c3", "c1", "c2"]))
    assert json.loads((fold / "nnplug_fold.json").read_text()) == {
        "train": ["c1", "c2", "c3"],
        "val": ["c4"],
        "fingerprint_hash": "f",
        "pretrained_weights": None,
        "previous_stage": None,
    }


def test_other_split_or_data_is_refused_with_the_cases(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    claim_fold(fold, record())
    (fold / "checkpoint_latest.pth").touch()
    for refuse in (check_fold, claim_fold):
        with pytest.raises(NnplugError) as caught:
            refuse(fold, record(train=["c1", "c4"], val=["c2", "c5", "c6", "c7", "c8", "c9"], fingerprint_hash="g"))
        assert str(caught.value) == (
            f"{fold} was trained on other data: c2, c3 left training; c4 joined training; c4 left validation; "
            "c2, c5, c6, c7 and 2 more cases joined validation; the data set's fingerprint is another one. "
            "Restore the splits, data and options that it began with, or start anew with --restart."
        )


def test_pretrained_weights_are_remembered_and_compared(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    claim_fold(fold, record(pretrained_weights="w"))
    assert begins_with_weights(fold)
    (fold / "checkpoint_latest.pth").touch()
    claim_fold(fold, record(pretrained_weights="w"))
    claim_fold(fold, record())  # the checkpoint holds what came of them
    assert begins_with_weights(fold)
    with pytest.raises(NnplugError, match=r"on other data: it did not start from these pretrained weights\. Restore"):
        check_fold(fold, record(pretrained_weights="others"))
    (fold / "nnplug_fold.json").unlink()
    with pytest.raises(NnplugError, match="it did not start from these pretrained weights"):
        check_fold(fold, record(pretrained_weights="w"))


def test_another_previous_stage_is_refused(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    claim_fold(fold, record(previous_stage="a/predicted"))
    (fold / "checkpoint_latest.pth").touch()
    check_fold(fold, record(previous_stage="a/predicted"))
    with pytest.raises(NnplugError, match="the previous stage's predictions were a/predicted, now b/predicted"):
        check_fold(fold, record(previous_stage="b/predicted"))


def test_cases_that_the_previous_stage_did_not_predict_are_named(tmp_path: Path) -> None:
    for name in ("a.b2nd", "case.1.npz"):
        (tmp_path / name).touch()
    check_previous_stage(tmp_path, ["a", "case.1"])
    with pytest.raises(NnplugError) as caught:
        check_previous_stage(tmp_path, ["b", "c", "a"])
    assert str(caught.value) == (
        f"The second stage of a cascade needs a prediction of every case, and {tmp_path} has none of b, c. "
        "Train those folds of the first stage that validate them."
    )


def test_fold_without_a_checkpoint_or_a_record_is_free(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    claim_fold(fold, record())
    claim_fold(fold, record(val=["c9"]))
    assert json.loads((fold / "nnplug_fold.json").read_text())["val"] == ["c9"]
    (fold / "nnplug_fold.json").unlink()
    (fold / "checkpoint_final.pth").touch()
    check_fold(fold, record())


def test_result_survives_its_file_with_null_for_nan(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    result = {"status": "finished", "model": tmp_path, "dice": np.float32(0.5), "per_class": np.array([0.25, np.nan])}
    path = write_result(tmp_path, result)
    assert path.name == "nnplug_result.json"
    assert read_result(tmp_path) == {
        "status": "finished",
        "model": str(tmp_path),
        "dice": 0.5,
        "per_class": [0.25, None],
    }


# --- one training a fold


HOLD_LOCK = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    from nnplug.training.fold_folder import fold_lock
    with fold_lock(Path(sys.argv[1])):
        if len(sys.argv) > 2:  # a data worker, forked while the lock is held
            worker = os.fork()
            if not worker:
                time.sleep(float(sys.argv[2]))
                os._exit(0)
        print("held", flush=True)
        time.sleep(60)
    """)


def hold_lock(fold: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD_LOCK, str(fold), *arguments]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


def test_second_training_of_a_fold_is_refused_with_the_first(tmp_path: Path) -> None:
    fold = tmp_path / "model" / "fold_0"
    with hold_lock(fold) as first:
        with pytest.raises(NnplugError) as caught, fold_lock(fold):
            pass
        expected = f"{fold} is being trained by process {first.pid} on {socket.gethostname()} (since 20"
        assert str(caught.value).startswith(expected)
        assert str(caught.value).endswith("). Wait until it ends, or stop it.")
        with fold_lock(fold.with_name("fold_1")):
            pass  # other folds are free
        first.kill()
    with fold_lock(fold):
        pass


@pytest.mark.parametrize("worker_lives_s", [3, 60])
def test_lock_ends_with_a_killed_training_though_its_workers_live_on(tmp_path: Path, worker_lives_s: int) -> None:
    fold = tmp_path / "model" / "fold_0"
    with hold_lock(fold, str(worker_lives_s)) as first:
        first.kill()
    started = time.monotonic()
    with fold_lock(fold):
        assert time.monotonic() - started < 20


def test_lock_is_free_again_after_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    fold = tmp_path / "results" / "dataset" / "model" / "fold_0"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), fold_lock(fold):
            1 / 0  # noqa: B018
    assert list((tmp_path / "results").iterdir()) == []


def test_lock_stays_where_it_was_used(tmp_path: Path) -> None:
    fold = tmp_path / "model" / "fold_0"
    with fold_lock(fold):
        fold.mkdir()
    with fold_lock(fold.with_name("fold_1")):
        pass
    assert sorted(path.name for path in fold.parent.iterdir()) == [".nnplug_fold_0.lock", "fold_0"]


def test_lock_in_an_unwritable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / ".nnplug_fold_0.lock").mkdir()
    with pytest.raises(NnplugError, match=r"Could not write .*\.nnplug_fold_0\.lock: "), fold_lock(tmp_path / "fold_0"):
        pass


# --- starting anew


def test_old_fold_is_moved_where_nnunet_sees_no_fold(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    names = set()
    for content in ("first", "second"):
        fold.mkdir()
        (fold / "checkpoint_final.pth").write_text(content)
        moved = set_aside(fold)
        assert not fold.exists()
        assert moved.name.startswith("replaced_fold_0_20")
        assert (moved / "checkpoint_final.pth").read_text() == content
        names.add(moved.name)
    assert len(names) == 2, "twice in a second"
    assert not any(name.startswith("fold_") for name in os.listdir(tmp_path))


def test_nothing_to_set_aside(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "fold_0") is None


def test_fold_that_can_not_be_moved_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "fold_0").mkdir()
    monkeypatch.setattr(fold_folder.Path, "rename", refuse)
    with pytest.raises(NnplugError, match=r"Could not move .*fold_0 to .*replaced_fold_0_.*: Permission denied\."):
        set_aside(tmp_path / "fold_0")


def test_no_torch_is_imported() -> None:
    script = "import sys, nnplug.models.model_folder; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
