"""Checkpoints: plain values, files that survive kills, reading without running code."""

from __future__ import annotations

import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zipfile
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nnplug.errors import NnplugError
from nnplug.files import atomic_file
from nnplug.models import checkpoint
from nnplug.models.checkpoint import UntrustedCheckpointError, Writer, find_resumable, load, save, to_plain

Point = namedtuple("Point", "x y")


def content(**changes: Any) -> dict[str, Any]:
    """What a small run would store, with numpy scalars in the log as nnU-Net has them."""
    network = torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    values: dict[str, Any] = {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {
            "train_losses": [np.float32(0.5), np.float64(-0.25)],
            "dice_per_class_or_region": [[np.float64(0.1), np.float64("nan")]],
            "lrs": [0.01, 0.009],
        },
        "_best_ema": np.float64(0.75),
        "current_epoch": 2,
        "init_args": {"plans": {"plans_name": "p"}, "configuration": "2d", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    return {**values, **changes}


class RunsCode:
    """Unpickled, it would create a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def hidden_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# --- plain values


def plain_or_numpy() -> st.SearchStrategy[Any]:
    numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=5))
    arrays = hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint64, np.bool_, np.complex64, ">i4"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    )
    leaves = st.one_of(
        numbers,
        arrays,
        arrays.filter(lambda array: array.size > 0).map(lambda array: array.ravel()[0]),
        st.binary(max_size=5),
        st.just(torch.device("cpu")),
        st.just(Path("a/b")),
        st.just(torch.arange(3)),
        st.just(torch.Size((1, 2))),
    )
    keys = st.one_of(st.text(max_size=3), st.integers(0, 9), st.integers(0, 9).map(np.int64))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=8,
    )


def as_lists(value: Any) -> Any:
    """An independent way to compare: everything as nested lists of (type name, text)."""
    if isinstance(value, torch.Tensor):
        return ["tensor", value.tolist()]
    if isinstance(value, np.ndarray | np.generic):
        return as_lists(value.tolist())
    if isinstance(value, dict):
        return [[as_lists(key), as_lists(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [as_lists(item) for item in value]
    return repr(bytes(value)) if isinstance(value, bytes | bytearray) else repr(str(value))


@settings(max_examples=150, deadline=None)
@given(plain_or_numpy())
def test_plain_values_load_safely_and_keep_their_content(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    plain = to_plain(value)
    path = tmp_path_factory.getbasetemp() / "plain.pth"
    torch.save({"value": plain}, path)
    loaded = torch.load(path, weights_only=True)["value"]
    assert as_lists(loaded) == as_lists(value)
    assert as_lists(to_plain(plain)) == as_lists(plain), "once plain, nothing changes"


@settings(max_examples=100, deadline=None)
@given(plain_or_numpy())
def test_stock_pickles_of_numpy_values_load_with_their_content(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    """Written as stock nnU-Net would (no conversion), read by our loader."""
    path = tmp_path_factory.getbasetemp() / "stock.pth"
    value = _without_paths(value)
    torch.save(content(extra=value), path)
    assert as_lists(load(path)["extra"]) == as_lists(value)


def _without_paths(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_paths(item) for item in value) if type(value) is not torch.Size else value
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.longdouble(0.25), 0.25),
        (np.str_("a"), "a"),
        (Path("/a/b"), "/a/b"),
        (Point(1, np.int8(2)), (1, 2)),
        (Counter("aa"), {"a": 2}),
        ({1, 2}, {1, 2}),
        (frozenset((3,)), {3}),
        (b"\xff\x00", bytearray(b"\xff\x00")),
        ({np.int64(1): "x", (1, 2): "y"}, {1: "x", (1, 2): "y"}),
    ],
    ids=repr,
)
def test_conversions(value: Any, expected: Any) -> None:
    plain = to_plain(value)
    assert plain == expected
    assert type(plain) is type(expected)


def test_tensor_subclasses_become_tensors_without_gradient_and_keep_their_storage(tmp_path: Path) -> None:
    class Marked(torch.Tensor):
        pass

    tied = torch.nn.Parameter(torch.ones(1000, 1000))
    marked = torch.ones(3).as_subclass(Marked)
    marked.note = object()  # an attribute that could not be stored
    plain = to_plain({"a": tied, "b": tied, "c": marked})
    assert type(plain["a"]) is torch.Tensor
    assert not plain["a"].requires_grad
    assert type(plain["c"]) is torch.Tensor
    save(plain, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 4.5e6, "tied weights are stored once"


def test_versions_of_a_state_dict_are_kept(tmp_path: Path) -> None:
    weights = torch.nn.BatchNorm1d(2).state_dict()
    save({"weights": weights}, tmp_path / "a.pth")
    assert torch.load(tmp_path / "a.pth", weights_only=True)["weights"]._metadata == weights._metadata


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {"b": object()}]}, "Checkpoint entry 'a -> 1 -> b' is a builtins.object, which can not be stored"),
        ({"f": len}, "Checkpoint entry 'f' is a builtins.builtin_function_or_method, which can not be stored"),
        ({"x": np.array([None])}, "Checkpoint entry 'x' is an array of object, which can not be stored"),
        ({"t": np.datetime64("2020")}, "Checkpoint entry 't' is an array of datetime64[Y], which can not be stored"),
        ({object: 1}, "Checkpoint entry 'key <class 'object'>' is a builtins.type, which can not be stored"),
        ({np.arange(2).tobytes(): 1}, "is a builtins.bytes, which can not be stored"),
        (object(), "Checkpoint entry (the whole) is a builtins.object"),
    ],
)
def test_what_can_not_be_stored_is_named_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(NnplugError) as caught:
        to_plain(value)
    assert message in str(caught.value)


def test_a_loop_is_refused_and_a_shared_list_is_not() -> None:
    shared = [1]
    assert to_plain({"a": shared, "b": shared}) == {"a": [1], "b": [1]}
    loop: dict[str, Any] = {}
    loop["self"] = [loop]
    with pytest.raises(NnplugError, match="'self -> 0' contains itself"):
        to_plain(loop)


# --- saving


def test_saved_content_loads_in_stock_and_safely(tmp_path: Path) -> None:
    save(content(), tmp_path / "checkpoint_best.pth")
    stock = torch.load(tmp_path / "checkpoint_best.pth", map_location="cpu", weights_only=False)
    safe = load(tmp_path / "checkpoint_best.pth")
    assert stock.keys() == safe.keys() == content().keys()
    assert safe["logging"]["train_losses"] == [0.5, -0.25]
    assert safe["init_args"]["device"] == torch.device("cpu")
    assert safe["inference_allowed_mirroring_axes"] == (0, 1)
    assert os.listdir(tmp_path) == ["checkpoint_best.pth"]


def test_previous_file_is_kept_under_its_name(tmp_path: Path) -> None:
    latest, previous = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_previous.pth"
    for epoch in (1, 2, 3):
        save(content(current_epoch=epoch), latest, keep_previous=previous)
    assert load(latest)["current_epoch"] == 3
    assert load(previous)["current_epoch"] == 2
    assert sorted(os.listdir(tmp_path)) == [latest.name, previous.name]


def test_previous_file_is_kept_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", _refuse_link)
    latest, previous = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_previous.pth"
    for epoch in (1, 2, 3):
        save(content(current_epoch=epoch), latest, keep_previous=previous)
    assert (load(latest)["current_epoch"], load(previous)["current_epoch"]) == (3, 2)
    assert hidden_files(tmp_path) == []


def _refuse_link(*_args: Any) -> None:
    raise PermissionError(1, "no hard links here")


def test_previous_file_may_be_the_same_file(tmp_path: Path) -> None:
    """As after a kill between the two renames of a save."""
    latest, previous = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_previous.pth"
    save(content(current_epoch=1), latest)
    os.link(latest, previous)
    save(content(current_epoch=2), latest, keep_previous=previous)
    assert (load(latest)["current_epoch"], load(previous)["current_epoch"]) == (2, 1)
    assert sorted(os.listdir(tmp_path)) == [latest.name, previous.name]


def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A real failing write: the process may write 100 kB only, the checkpoint is larger."""
    path = tmp_path / "checkpoint_latest.pth"
    save(content(current_epoch=1), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(NnplugError) as caught:
            save(content(current_epoch=2, large=torch.zeros(100_000)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert message.startswith(f"Could not write {path}: File too large (")
    assert " GB free). What was there before is unchanged. Free some space and run it again." in message
    assert load(path)["current_epoch"] == 1
    assert os.listdir(tmp_path) == [path.name]


def test_full_file_system_is_told_by_its_name(tmp_path: Path) -> None:
    """On a small file system of its own, where this machine lets us mount one."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare command to mount a small file system")
    script = tmp_path / "save.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys, torch
        from pathlib import Path
        from nnplug.models.checkpoint import save
        from nnplug.errors import NnplugError
        folder = Path(sys.argv[1])
        save({"a": 1}, folder / "a.pth")
        try:
            save({"a": torch.zeros(1_000_000)}, folder / "a.pth")
        except NnplugError as error:
            print(error)
        print(torch.load(folder / "a.pth"), os.listdir(folder))
        """)
    )
    command = f"mount -t tmpfs -o size=1m none {tmp_path / 'small'} && {sys.executable} {script} {tmp_path / 'small'}"
    (tmp_path / "small").mkdir()
    done = subprocess.run([unshare, "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert "a.pth: No space left on device (0.00 GB free)." in done.stdout, done.stderr
    assert "{'a': 1} ['a.pth']" in done.stdout


def test_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(NnplugError) as caught:
        save({"a": 1}, tmp_path / "gone" / "a.pth")
    assert f"Could not write {tmp_path}/gone/a.pth: No such file or directory" in str(caught.value)
    assert "Check the folder and its permissions" in str(caught.value)


def test_unwritable_folder_is_told() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # tmp_path is hidden from other users
        os.chmod(name, 0o555)
        is_root = os.geteuid() == 0
        if is_root:  # root may write everywhere
            os.seteuid(65534)
        try:
            with pytest.raises(NnplugError) as caught:
                save({"a": 1}, Path(name, "a.pth"))
        finally:
            if is_root:
                os.seteuid(0)
            os.chmod(name, 0o755)
    assert f"Could not write {name}/a.pth: Permission denied (" in str(caught.value)


def test_leftovers_of_killed_processes_go_and_files_being_written_stay(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from nnplug.files.atomic_file import replace_file
        def write(file):
            file.write(b"half of it")
            file.flush()
            print("writing", flush=True)
            time.sleep(60)
        replace_file(Path(sys.argv[1]), write)
        """)
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        (unfinished,) = hidden_files(tmp_path)
        save({"a": 1}, path)
        assert hidden_files(tmp_path) == [unfinished], "it is being written"
        other.kill()
    assert hidden_files(tmp_path) == [unfinished]
    save({"a": 2}, path)
    assert os.listdir(tmp_path) == [path.name]


def test_leftovers_of_other_machines_go_after_a_day(tmp_path: Path) -> None:
    names = [f".a.pth.elsewhere.7.{number}.nnplug-tmp" for number in (0, 1)]
    for name in names:
        (tmp_path / name).touch()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / names[0], (two_days_ago, two_days_ago))
    stranger = tmp_path / "notes.nnplug-tmp"
    stranger.touch()
    removed = atomic_file.remove_stale(tmp_path)
    assert [path.name for path in removed] == [names[0]]
    assert stranger.exists()


def test_a_leftover_is_locked_until_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has just made the file would lock it else, and lose it while writing."""
    path = tmp_path / f".a.json.{atomic_file._HOST}.1.1.nnplug-tmp"
    path.touch()
    unlink = Path.unlink

    def tried(self: Path, missing_ok: bool = False) -> None:
        with self.open("rb") as file:
            assert not atomic_file._lock(file)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", tried)
    assert atomic_file.remove_stale(tmp_path) == [path]
    assert not path.exists()


def test_twenty_kills_at_random_moments_leave_a_readable_file(tmp_path: Path) -> None:
    """A process is forked, saves epoch after epoch and is killed, twenty times; files are checked after each kill."""
    script = textwrap.dedent("""
        import os, random, signal, sys, time
        from pathlib import Path
        import torch
        from nnplug.models.checkpoint import save
        torch.set_num_threads(1)
        folder, epoch = Path(sys.argv[1]), int(sys.argv[2])
        moments = random.Random(3)
        for line in sys.stdin:
            epoch = int(line)
            saved, tell = os.pipe()
            trainer = os.fork()
            if trainer:
                os.read(saved, 1)
                time.sleep(moments.uniform(0, 0.13))
                os.kill(trainer, signal.SIGKILL)
                os.waitpid(trainer, 0)
                print("killed", flush=True)
                continue
            while True:
                epoch += 1
                values = {key: {} for key in ("network_weights", "init_args", "trainer_name")}
                values |= {"current_epoch": epoch, "filler": torch.full((500_000,), float(epoch))}
                path = folder / "checkpoint_latest.pth"
                save(values, path, keep_previous=folder / "checkpoint_previous.pth")
                os.write(tell, b".")
        """)
    command = [sys.executable, "-c", script, str(tmp_path), "0"]
    last, num_leftovers = 0, 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killer:
        for _ in range(20):
            print(last, file=killer.stdin, flush=True)
            assert killer.stdout.readline() == "killed\n"
            num_leftovers += len(hidden_files(tmp_path))
            epochs = [_epoch_of_whole_file(tmp_path / f"checkpoint_{which}.pth") for which in ("latest", "previous")]
            assert epochs[0] >= last, "nothing that was complete is lost"
            assert epochs[1] in (epochs[0] - 1, epochs[0], 0)
            last = epochs[0]
        killer.stdin.close()
    assert last >= 20
    assert num_leftovers > 0, "no kill came in the middle of a write"
    save(content(), tmp_path / "checkpoint_latest.pth")
    assert hidden_files(tmp_path) == []


def _epoch_of_whole_file(path: Path) -> int:
    """0 if the file is not there yet."""
    if not path.exists():
        return 0
    values = load(path)
    assert torch.equal(values["filler"], torch.full((500_000,), float(values["current_epoch"])))
    return values["current_epoch"]


# --- the background writer


def test_writer_stores_what_was_given_though_training_goes_on(tmp_path: Path) -> None:
    weights, log = torch.zeros(1000), [1.0]
    writer = Writer()
    writer.write({"weights": weights, "log": log}, tmp_path / "a.pth")
    weights += 1
    log.append(2.0)
    writer.close()
    stored = torch.load(tmp_path / "a.pth", weights_only=True)
    assert stored["weights"].sum() == 0
    assert stored["log"] == [1.0]


def test_writer_keeps_tied_weights_tied_and_stores_no_more_than_a_view(tmp_path: Path) -> None:
    weights = torch.zeros(1000, 1000)
    writer = Writer()
    writer.write({"a": weights, "b": weights, "row": weights[3], "empty": torch.zeros(0)}, tmp_path / "a.pth")
    writer.close()
    assert (tmp_path / "a.pth").stat().st_size < 4.1e6
    stored = torch.load(tmp_path / "a.pth", weights_only=True)
    assert stored["a"].data_ptr() == stored["b"].data_ptr()
    assert stored["row"].shape == (1000,)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.zeros(0, 2),
        torch.ones(2, dtype=torch.bfloat16),
        torch.tensor([1 + 2j]).conj(),
        torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.arange(6).reshape(2, 3).T,
        torch.ones(3).to_sparse(),
        torch.zeros(3).expand(4, 3),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)} {tensor.layout}",
)
def test_writer_stores_every_kind_of_tensor(tmp_path: Path, tensor: torch.Tensor) -> None:
    writer = Writer()
    writer.write({"tensor": tensor}, tmp_path / "a.pth")
    writer.close()
    stored = torch.load(tmp_path / "a.pth", weights_only=True)["tensor"]
    assert (stored.dtype, stored.shape, stored.layout) == (tensor.dtype, tensor.shape, tensor.layout)
    assert torch.equal(stored.to_dense(), tensor.to_dense())


class SlowDisk:
    """Holds the writer at its first file until released, and notes what is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release, self.started = threading.Event(), threading.Event()
        self.written: list[tuple[str, int]] = []
        self._write = checkpoint._write
        monkeypatch.setattr(checkpoint, "_write", self.write)

    def write(self, plain: dict[str, Any], path: Path, keep_previous: Path | None) -> None:
        self.started.set()
        assert self.release.wait(20)
        self._write(plain, path, keep_previous)
        self.written.append((path.name, plain["epoch"]))


def test_writer_drops_a_waiting_checkpoint_for_a_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, writer = SlowDisk(monkeypatch), Writer()
    latest, previous, best = tmp_path / "latest", tmp_path / "previous", tmp_path / "best"
    writer.write({"epoch": 1}, latest, previous)
    assert disk.started.wait(20)
    writer.write({"epoch": 2}, latest, previous)
    writer.write({"epoch": 2}, best)
    writer.write({"epoch": 3}, latest, previous)
    disk.release.set()
    writer.flush()
    assert disk.written == [("latest", 1), ("best", 2), ("latest", 3)]
    assert torch.load(previous)["epoch"] == 1
    writer.close()


def test_writer_tells_which_files_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, writer = SlowDisk(monkeypatch), Writer()
    latest, best, nowhere = tmp_path / "latest", tmp_path / "best", tmp_path / "gone" / "latest"
    latest.write_text("of an epoch before")
    for epoch, path in ((1, latest), (1, best), (2, best), (2, nowhere)):
        writer.write({"epoch": epoch}, path)
    assert disk.started.wait(20)
    assert writer.take_finished() == []
    disk.release.set()
    with pytest.raises(NnplugError, match="Could not write"):
        writer.flush()
    assert writer.take_finished() == [latest, best]
    assert writer.take_finished() == []
    writer.close()


def test_writer_returns_before_the_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, writer = SlowDisk(monkeypatch), Writer()
    writer.write({"epoch": 1}, tmp_path / "a")
    assert disk.started.wait(20)
    assert not (tmp_path / "a").exists()
    disk.release.set()
    writer.close()
    assert (tmp_path / "a").exists()


def test_writer_reports_an_error_once_and_goes_on(tmp_path: Path) -> None:
    writer = Writer()
    writer.write({"epoch": 1}, tmp_path / "gone" / "a.pth")
    with pytest.raises(NnplugError, match=r"Could not write .*gone/a\.pth"):
        writer.flush()
    writer.flush()
    writer.write({"epoch": 2}, tmp_path / "gone" / "a.pth")
    time.sleep(0.3)
    with pytest.raises(NnplugError, match="Could not write"):
        writer.write({"epoch": 3}, tmp_path / "b.pth")
    writer.close()
    assert torch.load(tmp_path / "b.pth")["epoch"] == 3, "the new one is written all the same"


def test_writer_names_what_can_not_be_stored_at_once(tmp_path: Path) -> None:
    writer = Writer()
    with pytest.raises(NnplugError, match=r"'hook' is a builtins\.type"):
        writer.write({"hook": int}, tmp_path / "a.pth")
    writer.close()


def test_what_is_queued_is_written_when_the_process_ends(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from nnplug.models.checkpoint import Writer\n"
        "Writer().write({'a': torch.zeros(3_000_000)}, Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.pth")], check=True)
    assert torch.load(tmp_path / "a.pth")["a"].shape == (3_000_000,)


# --- loading


def test_stock_checkpoint_with_numpy_scalars_loads_as_plain_numbers(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save(content(), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    allowed_before = set(torch.serialization.get_safe_globals())
    loaded = load(path)
    assert type(loaded["_best_ema"]) is float
    assert loaded["logging"]["train_losses"] == [0.5, -0.25]
    assert np.isnan(loaded["logging"]["dice_per_class_or_region"][0][1])
    assert set(torch.serialization.get_safe_globals()) == allowed_before, "the allow-list does not outlive the load"


def test_checkpoint_that_nnunets_own_trainer_wrote_loads(tmp_path: Path) -> None:
    """nnU-Net's methods log an epoch and write the file; only its constructor, which needs a data set, is left out."""
    from nnunetv2.training.logging.nnunet_logger import MetaLogger
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = nnUNetTrainer.__new__(nnUNetTrainer)
    trainer.local_rank, trainer.is_ddp, trainer.disable_checkpointing = 0, False, False
    trainer.network = torch.nn.Conv3d(1, 2, 3)
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), 0.01, momentum=0.99, nesterov=True)
    trainer.lr_scheduler = PolyLRScheduler(trainer.optimizer, 0.01, 10)
    trainer.grad_scaler = torch.GradScaler("cpu")
    trainer.logger, trainer._best_ema, trainer.current_epoch = MetaLogger(tmp_path, False), None, 0
    trainer.my_init_kwargs = {"plans": {"plans_name": "p"}, "configuration": "3d", "fold": 0, "dataset_json": {}}
    trainer.my_init_kwargs["device"] = torch.device("cpu")
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer.log_file = str(tmp_path / "log.txt")
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([{"loss": np.float32(0.5)[None]}, {"loss": np.float32(0.7)[None]}])
    counts = {key: np.array([3.0, 0.0], dtype=np.float32) for key in ("tp_hard", "fp_hard", "fn_hard")}
    trainer.on_validation_epoch_end([{"loss": np.float32(0.25)[None], **counts}])
    trainer._best_ema = trainer.logger.get_value("ema_fg_dice", step=-1)
    trainer.save_checkpoint(str(tmp_path / "checkpoint_final.pth"))

    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)
    path, loaded, messages = find_resumable(tmp_path)
    assert (path.name, messages) == ("checkpoint_final.pth", [])
    assert torch.equal(loaded["network_weights"]["weight"], trainer.network.weight)
    assert loaded["current_epoch"] == 1
    assert loaded["_best_ema"] == 0.5
    assert loaded["logging"]["train_losses"] == [pytest.approx(0.6)]
    np.testing.assert_equal(loaded["logging"]["dice_per_class_or_region"], [[0.5, np.nan]])
    assert loaded["init_args"] == trainer.my_init_kwargs
    assert to_plain(loaded) is not None


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6, dtype=">i4").reshape(3, 2),
        np.arange(6, dtype="<u2")[::2],
        np.zeros((0, 3)),
        np.array(4.5),
        np.array([True, False]),
    ],
    ids=lambda array: f"{array.dtype.str} {array.shape}",
)
def test_numpy_arrays_of_a_stock_checkpoint_come_back_equal(tmp_path: Path, array: np.ndarray) -> None:
    torch.save(content(extra=[array, {"deep": (array,)}]), tmp_path / "a.pth")
    extra = load(tmp_path / "a.pth")["extra"]
    for loaded in (extra[0], extra[1]["deep"][0]):
        assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(loaded, array)
    loaded[...] = 1  # it may be changed


def test_numpy_1_and_2_names_are_known(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(content(), path)
    written = path.read_bytes()
    now, other = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert now in written or other in written
    loaded = load(_renamed(path, now, other)), load(_renamed(path, other, now))
    assert all(values["_best_ema"] == 0.75 for values in loaded)


def _renamed(path: Path, old: bytes, new: bytes) -> Path:
    """The same checkpoint with another module name in its pickle."""
    target = path.with_name(f"renamed_{len(new)}.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
        for name in source.namelist():
            data = source.read(name)
            copy.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
    return target


def test_malicious_checkpoint_does_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "checkpoint_final.pth"
    torch.save(content(extra=RunsCode(proof)), path)
    with pytest.raises(UntrustedCheckpointError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path} holds more than plain values and would run code when it is read: it wants posix.system. "
        "It was not read. If you trust whoever made it, add --trust-checkpoint."
    )
    assert not proof.exists()
    load(path, trust_checkpoint=True)
    assert proof.exists(), "the file would have run code"


def test_malicious_bare_pickle_does_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "checkpoint_final.pth"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(content(network_weights={}, extra=RunsCode(proof)), protocol))
        with pytest.raises(
            NnplugError, match=r"checkpoint_final\.pth (is damaged or not a checkpoint|holds more than)"
        ):
            load(path)
        assert not proof.exists()


def test_objects_inside_numpy_arrays_are_refused(tmp_path: Path) -> None:
    torch.save(content(extra=np.array([{}, 1], dtype=object)), tmp_path / "a.pth")
    with pytest.raises(UntrustedCheckpointError, match="it wants numpy values of type 'O8'"):
        load(tmp_path / "a.pth")


def test_foreign_classes_are_named_and_at_most_five(tmp_path: Path) -> None:
    wanted = [Counter, namedtuple, shutil.copy, textwrap.dedent, threading.Event, time.sleep]
    torch.save(content(extra=wanted), tmp_path / "a.pth")
    names = "collections.namedtuple, shutil.copy, textwrap.dedent, threading.Event, time.sleep"
    with pytest.raises(UntrustedCheckpointError, match=re.escape(f"it wants {names}. It was not read.")):
        load(tmp_path / "a.pth")
    torch.save(content(extra=[*wanted, tempfile.mkdtemp, zipfile.ZipFile]), tmp_path / "a.pth")
    with pytest.raises(UntrustedCheckpointError, match=re.escape("threading.Event and 2 more. It was not read.")):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("kept", [0, 3, 1000, -30, -1])
def test_truncated_checkpoint_is_told(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    save(content(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    with pytest.raises(NnplugError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} is damaged or not a checkpoint (")
    assert "weights_only" not in str(caught.value)


def test_flipped_bytes_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    save(content(large=torch.zeros(10_000)), path)
    data = bytearray(path.read_bytes())
    middle = data.rindex(bytes(20_000)) + 10_000
    data[middle] ^= 0xFF
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # torch alone takes it
    with pytest.raises(NnplugError, match=r"is damaged or not a checkpoint \(the checksum of .* is wrong"):
        load(path)


def test_checkpoint_in_torchs_older_format_loads(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert load(tmp_path / "a.pth")["current_epoch"] == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"state_dict": {}, "epoch": 3},
            "it has no network_weights, init_args, trainer_name (it has state_dict, epoch).",
        ),
        ([1], "is not an nnU-Net checkpoint: it holds a list, not a dictionary."),
        (content(init_args=3), "init_args and network_weights must be dictionaries."),
    ],
)
def test_foreign_checkpoint_is_told(tmp_path: Path, values: Any, message: str) -> None:
    torch.save(values, tmp_path / "a.pth")
    with pytest.raises(NnplugError) as caught:
        load(tmp_path / "a.pth")
    assert message in str(caught.value)


def test_text_file_and_missing_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:123\n")
    with pytest.raises(NnplugError, match="is damaged or not a checkpoint"):
        load(tmp_path / "a.pth")
    with pytest.raises(NnplugError, match=r"There is no checkpoint file .*b\.pth\."):
        load(tmp_path / "b.pth")


# --- what to continue from


def test_order_is_final_latest_previous_best(tmp_path: Path) -> None:
    order = ["checkpoint_best.pth", "checkpoint_previous.pth", "checkpoint_latest.pth", "checkpoint_final.pth"]
    for epoch, name in enumerate(order):
        save(content(current_epoch=epoch), tmp_path / name)
        path, values, messages = find_resumable(tmp_path)
        assert (path.name, values["current_epoch"], messages) == (name, epoch, [])


def test_unreadable_latest_falls_back_and_says_so(tmp_path: Path) -> None:
    latest = tmp_path / "checkpoint_latest.pth"
    for epoch in (7, 8):
        save(content(current_epoch=epoch), latest, keep_previous=tmp_path / "checkpoint_previous.pth")
    latest.write_bytes(latest.read_bytes()[:500])
    path, values, messages = find_resumable(tmp_path)
    assert path.name == "checkpoint_previous.pth"
    assert values["current_epoch"] == 7
    assert messages == [
        f"{latest} is damaged or not a checkpoint (its end is missing).",
        "Continuing from checkpoint_previous.pth (epoch 7) instead.",
    ]


def test_checkpoint_for_prediction_only_is_passed_over(tmp_path: Path) -> None:
    weights_only = {key: value for key, value in content().items() if key not in ("optimizer_state", "logging")}
    save(weights_only, tmp_path / "checkpoint_final.pth")
    save(content(), tmp_path / "checkpoint_best.pth")
    path, _, messages = find_resumable(tmp_path)
    assert path.name == "checkpoint_best.pth"
    assert "checkpoint_final.pth is not an nnU-Net checkpoint: it has no optimizer_state, logging" in messages[0]


def test_checkpoint_that_needs_trust_is_not_replaced_by_an_older_one(tmp_path: Path) -> None:
    torch.save(content(extra=threading.Event), tmp_path / "checkpoint_latest.pth")
    save(content(), tmp_path / "checkpoint_best.pth")
    with pytest.raises(UntrustedCheckpointError, match="--trust-checkpoint"):
        find_resumable(tmp_path)
    path, _, _ = find_resumable(tmp_path, trust_checkpoint=True)
    assert path.name == "checkpoint_latest.pth"


def test_nothing_to_continue_is_told(tmp_path: Path) -> None:
    with pytest.raises(NnplugError) as caught:
        find_resumable(tmp_path)
    assert str(caught.value).startswith(f"There is nothing to continue in {tmp_path}: no checkpoint_final.pth, ")
    (tmp_path / "checkpoint_best.pth").write_bytes(b"")
    with pytest.raises(NnplugError) as caught:
        find_resumable(tmp_path)
    assert str(caught.value) == (
        f"No checkpoint in {tmp_path} can be read. {tmp_path}/checkpoint_best.pth is damaged or not a checkpoint "
        "(it is empty). To start anew: --restart."
    )
