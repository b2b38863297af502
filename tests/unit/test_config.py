"""TrainerConfig and Component: what each field takes, and what is said where it does not."""

from __future__ import annotations

import ast
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnplug import Component, NnplugError, TrainerConfig
from nnplug.composition.fields import CODE_FIELDS, FIELDS, SETTINGS
from nnplug.config import TrainerConfig as FromModule


def build(*args: object, **kwargs: object) -> tuple[object, ...]:
    return args, kwargs  # type: ignore[return-value]


class Loss:
    def __call__(self, *_: object) -> float:
        return 0.0


def test_every_field_but_the_name_may_be_left_out() -> None:
    config = TrainerConfig(name="bare")
    assert config.set_fields() == {"name": "bare"}
    assert FromModule is TrainerConfig


def test_the_field_table_and_the_dataclass_agree() -> None:
    assert list(FIELDS) == list(TrainerConfig.__dataclass_fields__)


BAD = [
    ("num_epochs", "many", "expected an integer >= 1, got 'many'."),
    ("num_epochs", 0, "expected an integer >= 1, got 0."),
    ("num_epochs", 5.0, "expected an integer >= 1, got 5.0."),
    ("num_epochs", True, "expected an integer >= 1, got True."),
    ("num_iterations_per_epoch", -1, "expected an integer >= 1, got -1."),
    ("num_val_iterations_per_epoch", [], "expected an integer >= 1, got []."),
    ("batch_size", "2", "expected an integer >= 1, got '2'."),
    ("save_every", 0, "expected an integer >= 1, got 0."),
    ("seed", -1, "expected an integer >= 0 and <= 4294967295, got -1."),
    ("seed", 2**32, "expected an integer >= 0 and <= 4294967295, got 4294967296."),
    ("initial_lr", 0, "expected a number > 0, got 0."),
    ("initial_lr", "fast", "expected a number > 0, got 'fast'."),
    ("initial_lr", float("nan"), "expected a number > 0, got nan."),
    ("initial_lr", float("inf"), "expected a number > 0, got inf."),
    ("weight_decay", -1e-5, "expected a number >= 0, got -1e-05."),
    ("oversample_foreground_percent", 33, "expected a number from 0 to 1, got 33."),
    ("oversample_foreground_percent", True, "expected a number from 0 to 1, got True."),
    ("probabilistic_oversampling", 1, "expected true or false, got 1."),
    ("compile", "no", "expected true or false, got 'no'."),
    ("amp", 0, "expected true or false, got 0."),
    ("enable_deep_supervision", "true", "expected true or false, got 'true'."),
    ("patch_size", (64,), "expected 2 or 3 integers >= 1, got (64,)."),
    ("patch_size", (64, 0, 64), "expected 2 or 3 integers >= 1, got (64, 0, 64)."),
    ("patch_size", 64, "expected 2 or 3 integers >= 1, got 64."),
    ("patch_size", "64x64", "expected 2 or 3 integers >= 1, got '64x64'."),
    ("spatial_dims", (), "expected dimensions out of 2 and 3, got ()."),
    ("spatial_dims", (2, 4), "expected dimensions out of 2 and 3, got (2, 4)."),
    ("spatial_dims", 3, "expected dimensions out of 2 and 3, got 3."),
    ("mirror_axes", (0, 3), "expected different axes out of 0, 1 and 2, got (0, 3)."),
    ("mirror_axes", (1, 1), "expected different axes out of 0, 1 and 2, got (1, 1)."),
    ("mirror_axes", "none", "expected different axes out of 0, 1 and 2, got 'none'."),
    ("description", 5, "expected text, got 5."),
    ("extends", ["a"], "expected text, got ['a']."),
    ("loss_fn", "losses.MyLoss", "expected 'package.module:attribute', got 'losses.MyLoss'."),
    ("loss_fn", "a:b:c", "expected 'package.module:attribute', got 'a:b:c'."),
    (
        "optimizer",
        5,
        "expected 'package.module:attribute', a table with the key use, a callable or a Component, got 5.",
    ),
    ("plans", [1], "expected a table with keys of the plan's configuration, got [1]."),
]


@pytest.mark.parametrize(("field", "value", "text"), BAD)
def test_a_bad_value_is_named_with_its_path(field: str, value: object, text: str) -> None:
    with pytest.raises(NnplugError) as error:
        TrainerConfig(name="mine", **{field: value})
    assert str(error.value) == f"trainer 'mine': {field}: {text}"


NESTED = [
    ({"loss_fn": {"weight": 1}}, "loss_fn.use: expected 'package.module:attribute', got None."),
    ({"loss_fn": {"use": "MyLoss"}}, "loss_fn.use: expected 'package.module:attribute', got 'MyLoss'."),
    (
        {"plans": {"spacing": [1, 1, 1]}},
        "plans.spacing: can not be changed: the data were preprocessed with the plan's. Derive a plans file "
        "with another name and preprocess with it.",
    ),
    (
        {"plans": {"architecture": {"network_class_name": "a.b"}}},
        "plans.architecture.network_class_name: can not be set here. Name the network in the field network_builder.",
    ),
    ({"plans": {"architecture": "unet"}}, "plans.architecture: expected a table, got 'unet'."),
    ({"plans": {"batch_size": 0}}, "plans.batch_size: expected an integer >= 1, got 0."),
    ({"plans": {"patch_size": "big"}}, "plans.patch_size: expected 2 or 3 integers >= 1, got 'big'."),
    (
        {"plans": {"batch_dise": True}},
        "plans.batch_dise: expected a key of the plan's configuration (did you mean batch_dice?), got True.",
    ),
    (
        {"plans": {"architecture": {"x": object}}},
        "plans.architecture.x: expected a plain value (number, text, true, false, list, table), got <class 'object'>.",
    ),
    (
        {"plans": {"batch_size": 2}, "batch_size": 3},
        "plans.batch_size: differs from the field batch_size. Set one of the two.",
    ),
    ({"unset": ("loss_fn",)}, "unset: nothing to drop without extends. Remove unset or name what this extends."),
    ({"extends": "a", "unset": ("seed",), "seed": 3}, "unset: 'seed' is also set here. Remove one of the two."),
    (
        {"extends": "a", "unset": ("lossfn",)},
        "unset: expected names of fields to drop (did you mean loss_fn?), got 'lossfn'.",
    ),
    ({"extends": "a", "unset": "loss_fn"}, "unset: expected a list of field names, got 'loss_fn'."),
]


@pytest.mark.parametrize(("fields", "text"), NESTED)
def test_a_bad_value_below_a_field(fields: dict[str, object], text: str) -> None:
    with pytest.raises(NnplugError) as error:
        TrainerConfig(name="mine", **fields)
    assert str(error.value) == f"trainer 'mine': {text}"


@pytest.mark.parametrize(
    "key", ["resampling_fn_data", "resampling_fn_seg_kwargs", "normalization_schemes", "inherits_from"]
)
def test_what_preprocessing_read_can_not_change(key: str) -> None:
    with pytest.raises(NnplugError, match=f"plans.{key}: can not be changed: the data were preprocessed"):
        TrainerConfig(name="mine", plans={key: None})


def test_resampling_of_probabilities_can_change() -> None:
    plans = {
        "resampling_fn_probabilities": "resample_torch_fornnunet",
        "resampling_fn_probabilities_kwargs": {"order": 1},
    }
    assert TrainerConfig(name="mine", plans=plans).plans == plans


@pytest.mark.parametrize("name", ["", "1a", "_a", "a_", "a__b", "a b", "a/b", "a+b", "a=b", "a@b", "ä", None, 5])
def test_names_that_can_not_be_folders_of_nnunet(name: object) -> None:
    with pytest.raises(NnplugError, match=r"name: (expected a name|missing)"):
        TrainerConfig(name=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a", "unet_r", "U-Net.v2", "a1_2-3"])
def test_names_that_can(name: str) -> None:
    assert TrainerConfig(name=name).name == name


def test_values_are_brought_into_one_form() -> None:
    config = TrainerConfig(
        name="mine",
        num_epochs=np.int64(5),
        initial_lr=np.float32(0.5),
        weight_decay=0,
        patch_size=np.array([64, 64, 32]),
        mirror_axes=[1, 0],
        spatial_dims=[3, 2],
        plans={"architecture": {"arch_kwargs": {"kernel_sizes": (3, 3)}}},
    )
    assert (config.num_epochs, type(config.num_epochs)) == (5, int)
    assert (config.initial_lr, type(config.initial_lr)) == (0.5, float)
    assert (config.weight_decay, type(config.weight_decay)) == (0.0, float)
    assert (config.patch_size, config.mirror_axes, config.spatial_dims) == ((64, 64, 32), (0, 1), (2, 3))
    assert config.plans == {"architecture": {"arch_kwargs": {"kernel_sizes": [3, 3]}}}


def test_no_mirroring_is_not_the_same_as_not_set() -> None:
    assert TrainerConfig(name="mine", mirror_axes=()).set_fields() == {"name": "mine", "mirror_axes": ()}


def test_plans_are_copied() -> None:
    plans = {"architecture": {"arch_kwargs": {}}}
    config = TrainerConfig(name="mine", plans=plans)
    plans["architecture"]["arch_kwargs"]["n_stages"] = 4
    assert config.plans == {"architecture": {"arch_kwargs": {}}}


@pytest.mark.parametrize("field", CODE_FIELDS)
def test_code_can_be_given_in_four_ways(field: str) -> None:
    table = TrainerConfig(name="a", **{field: {"use": "pkg.mod:attr", "weight": 2}})
    component = TrainerConfig(name="a", **{field: Component("pkg.mod:attr", weight=2)})
    assert getattr(table, field) == getattr(component, field) == Component("pkg.mod:attr", weight=2)
    assert getattr(TrainerConfig(name="a", **{field: "pkg.mod:attr"}), field) == Component("pkg.mod:attr")
    assert getattr(TrainerConfig(name="a", **{field: build}), field) == Component(build)


def test_a_finished_loss_stays_what_it_is() -> None:
    loss = Loss()
    assert TrainerConfig(name="a", loss_fn=loss).loss_fn is loss
    assert TrainerConfig(name="a", loss_fn=Loss).loss_fn == Component(Loss)
    assert TrainerConfig(name="a", sampler=loss).sampler == Component(loss)


def test_a_config_can_not_be_changed_but_copied() -> None:
    config = TrainerConfig(name="a", num_epochs=5, loss_fn="m:f")
    with pytest.raises(AttributeError):
        config.num_epochs = 6  # type: ignore[misc]
    copied = config.copy(name="b", num_epochs=6, loss_fn=None)
    assert copied.set_fields() == {"name": "b", "num_epochs": 6}
    assert config.num_epochs == 5


def test_copy_refuses_what_is_no_field() -> None:
    with pytest.raises(NnplugError) as error:
        TrainerConfig(name="a").copy(num_epoch=5)
    assert str(error.value) == "trainer 'a': num_epoch: no such field (did you mean num_epochs?)."


def test_copy_checks_values() -> None:
    with pytest.raises(NnplugError, match="trainer 'a': num_epochs: expected an integer >= 1, got 'x'"):
        TrainerConfig(name="a").copy(num_epochs="x")


def test_component_holds_target_and_arguments() -> None:
    component = Component("torch.optim:AdamW", betas=(0.9, 0.98))
    assert component.target == "torch.optim:AdamW"
    assert component.kwargs == {"betas": (0.9, 0.98)}
    assert repr(component) == "Component('torch.optim:AdamW', betas=(0.9, 0.98))"
    assert repr(Component(build)) == "Component(build)"
    assert component != Component("torch.optim:AdamW")
    assert component != "torch.optim:AdamW"
    assert hash(component) == hash(Component("torch.optim:AdamW", betas=(0.9, 0.98)))


def test_component_can_not_be_changed() -> None:
    component = Component("a:b", x=1)
    with pytest.raises(AttributeError, match="can not be changed"):
        component.target = "c:d"  # type: ignore[misc]
    with pytest.raises(TypeError):
        component.kwargs["x"] = 2  # type: ignore[index]


def test_component_takes_arguments_of_any_name() -> None:
    assert Component("a:b", target=1, self=2, kwargs=3).kwargs == {"target": 1, "self": 2, "kwargs": 3}


@pytest.mark.parametrize(
    ("target", "kwargs", "text"),
    [
        ("a.b", {}, "Component: expected a reference 'package.module:attribute', got 'a.b'."),
        (5, {}, "Component: expected a callable or 'package.module:attribute', got 5."),
        ("a:b", {"use": 1}, "Component: the argument name 'use' is taken: it holds the reference in recipes."),
    ],
)
def test_component_refuses(target: object, kwargs: dict[str, object], text: str) -> None:
    with pytest.raises(NnplugError) as error:
        Component(target, **kwargs)  # type: ignore[arg-type]
    assert str(error.value) == text


def test_configs_travel_to_other_processes() -> None:
    config = TrainerConfig(name="a", loss_fn=Component("a:b", x=1), plans={"batch_dice": True}, network_builder=build)
    assert pickle.loads(pickle.dumps(config)) == config


STRATEGIES = {
    "integer": st.integers(1, 2**31),
    "seed": st.integers(0, 2**32 - 1),
    "positive": st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    "not_negative": st.floats(min_value=0, allow_infinity=False),
    "share": st.floats(0, 1),
    "boolean": st.booleans(),
    "size": st.lists(st.integers(1, 9999), min_size=2, max_size=3).map(tuple),
    "axes": st.sets(st.integers(0, 2)).map(sorted).map(tuple),
    "dimensions": st.sampled_from([(2,), (3,), (2, 3)]),
}
KINDS = {
    "enable_deep_supervision": "boolean",
    "spatial_dims": "dimensions",
    "mirror_axes": "axes",
    "initial_lr": "positive",
    "weight_decay": "not_negative",
    "num_epochs": "integer",
    "num_iterations_per_epoch": "integer",
    "num_val_iterations_per_epoch": "integer",
    "batch_size": "integer",
    "patch_size": "size",
    "oversample_foreground_percent": "share",
    "probabilistic_oversampling": "boolean",
    "save_every": "integer",
    "compile": "boolean",
    "amp": "boolean",
    "seed": "seed",
}


def test_every_plain_field_has_a_strategy() -> None:
    assert set(KINDS) == set(SETTINGS) - set(CODE_FIELDS) - {"plans"}


@given(st.data())
def test_the_text_of_a_value_reads_back_as_the_value(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(KINDS)))
    value = data.draw(STRATEGIES[KINDS[name]])
    text = FIELDS[name].format(FIELDS[name].check(value))
    assert FIELDS[name].parse(text, name) == value
    assert FIELDS[name].format(FIELDS[name].parse(text, name)) == text


def test_the_defaults_that_show_names_are_those_of_nnunet() -> None:
    spec = importlib.util.find_spec("nnunetv2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], "training/nnUNetTrainer/nnUNetTrainer.py").read_text()
    found = {}
    definitions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for node in ast.walk(next(node for node in definitions if node.name == "__init__")):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is not None:
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr in FIELDS:
                    found.setdefault(target.attr, node.value.value)
    assert len(found) == 9, sorted(found)
    for name, value in found.items():
        assert FIELDS[name].parse(FIELDS[name].stock, name) == value
