"""Composition: order does not matter, conflicts are errors, assignments win, equal trainers have equal names."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnplug import Component, NnplugError, TrainerConfig
from nnplug.composition.compose import Registration, ResolvedConfig, resolve, resolve_config
from nnplug.composition.terms import NameTerm
from nnplug.discovery.registry import stock_registration
from nnplug.discovery.stock_names import find_trainer

DA5 = "nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5:nnUNetTrainerDA5"


class Finished:
    def __call__(self, *_: object) -> float:
        return 0.0

    def __repr__(self) -> str:
        return "Finished()"


def build(*_: object) -> None:
    """Stands for a factory."""


class Names:
    """A catalogue without plugins."""

    def __init__(self, *configs: TrainerConfig, files: tuple[TrainerConfig, ...] = ()) -> None:
        self.known = {
            config.name: Registration(config, config.name, "acme-nets", "2.1", f"acme/{config.name}", 3)
            for config in configs
        }
        for config in files:
            where = f"{config.name}.toml"
            self.known[config.name] = Registration(config, config.name, file=where, is_file=True)

    def find(self, term: NameTerm) -> Registration:
        if term.name not in self.known:
            stock = find_trainer(term.name)
            if stock is None:
                raise NnplugError(f"Unknown trainer '{term}'.")
            return stock_registration(stock)
        return self.known[term.name]

    def distribution_of(self, package: str) -> tuple[str, str] | None:
        return ("acme-code", "0.3") if package == "acme_code" else None


NAMES = Names(
    TrainerConfig(name="net", network_builder=Component("acme.net:Net", width=8), enable_deep_supervision=False),
    TrainerConfig(
        name="net2", network_builder="acme.net:Net2", loss_fn="acme.loss:blob", description="Two", source="A paper"
    ),
    TrainerConfig(name="blob", loss_fn=Component("acme.loss:blob", weight=1)),
    TrainerConfig(name="topk", loss_fn=Component("acme.loss:topk", k=10)),
    TrainerConfig(name="topk_again", loss_fn=Component("acme.loss:topk", k=10)),
    TrainerConfig(name="long", num_epochs=4000),
    TrainerConfig(name="short", num_epochs=5),
    TrainerConfig(name="adam", optimizer="torch.optim:Adam", initial_lr=1e-3),
    TrainerConfig(name="cosine", lr_scheduler="acme.schedules:cosine"),
    TrainerConfig(name="plain", mirror_axes=()),
    TrainerConfig(name="wide", plans={"architecture": {"arch_kwargs": {"n_stages": 4}}, "batch_dice": True}),
    TrainerConfig(name="deep", plans={"architecture": {"arch_kwargs": {"conv_bias": False}}}),
    TrainerConfig(name="deeper", plans={"architecture": {"arch_kwargs": {"n_stages": 8}}}),
    TrainerConfig(name="flat", plans={"architecture": {"arch_kwargs": 3}}),
    TrainerConfig(name="four", plans={"batch_size": 4, "patch_size": [32, 32]}),
    TrainerConfig(name="no_sizes", extends="four", unset=("plans",), seed=3),
    TrainerConfig(name="no_batch", extends="four", unset=("plans.batch_size",)),
    TrainerConfig(name="only3d", spatial_dims=(3,)),
    TrainerConfig(name="only2d", spatial_dims=(2,)),
    TrainerConfig(name="both", spatial_dims=(2, 3)),
    TrainerConfig(name="finished", loss_fn=Finished()),
    TrainerConfig(name="child", extends="net+topk+num_epochs=7+topk_again", num_epochs=8),
    TrainerConfig(name="grandchild", extends="child+loss_fn.k=3", unset=("enable_deep_supervision",), seed=1),
    TrainerConfig(name="thinner", extends="wide", unset=("plans.batch_dice",), plans={"architecture": {"x": 1}}),
    TrainerConfig(name="loop_a", extends="loop_b"),
    TrainerConfig(name="loop_b", extends="loop_a"),
    TrainerConfig(name="clash", extends="blob+topk"),
    TrainerConfig(name="unsets_nothing", extends="blob", unset=("optimizer",)),
    TrainerConfig(name="extends_file", extends="./other.toml"),
    TrainerConfig(name="da5", base_trainer=DA5),
    TrainerConfig(name="da5_too", base_trainer=DA5, training_transforms="acme.t:transforms"),
    TrainerConfig(name="transforms", training_transforms="acme.t:transforms"),
    TrainerConfig(name="code", sampler="acme_code.loader:Loader"),
    TrainerConfig(name="by_case", sampler=Component("acme.loader:Loader", file="a")),
    TrainerConfig(name="near", sampler=Component("acme.loader:Loader", near=True, margin=2)),
    TrainerConfig(name="nearer", sampler=Component("acme.loader:Loader", near=True, margin=1)),
)


def named(text: str, names: Names = NAMES, **kwargs: Any) -> ResolvedConfig:
    return resolve(text, names, **kwargs)


def fields_of(text: str, names: Names = NAMES) -> dict[str, Any]:
    values = named(text, names).as_dict()
    del values["name"]
    return values


def message(text: str, names: Names = NAMES) -> str:
    with pytest.raises(NnplugError) as error:
        named(text, names)
    return str(error.value)


def test_parts_compose() -> None:
    resolved = named("num_epochs=9+net+adam+blob")
    assert resolved.name == "adam+blob+net+num_epochs=9"
    assert resolved.config.name == resolved.name
    assert resolved.as_dict() == {
        "name": "adam+blob+net+num_epochs=9",
        "network_builder": {"use": "acme.net:Net", "width": 8},
        "enable_deep_supervision": False,
        "loss_fn": {"use": "acme.loss:blob", "weight": 1},
        "optimizer": {"use": "torch.optim:Adam"},
        "initial_lr": 0.001,
        "num_epochs": 9,
    }
    json.dumps(resolved.as_dict())
    assert resolved.config.loss_fn == Component("acme.loss:blob", weight=1)
    assert resolved.config.extends is None
    assert resolved.distributions == {"acme-nets": "2.1"}


def test_where_values_came_from() -> None:
    origins = named("adam+num_epochs=9+blob+loss_fn.weight=4").origins
    origin = origins["optimizer"]
    assert (origin.term, origin.distribution, origin.version, origin.file) == (
        "adam",
        "acme-nets",
        "2.1",
        "acme/adam:3",
    )
    assert (origins["num_epochs"].term, origins["num_epochs"].distribution) == ("num_epochs=9", None)
    assert origins["loss_fn"].term == "blob"
    assert origins["loss_fn.weight"].term == "loss_fn.weight=4"
    assert set(origins) == {"optimizer", "initial_lr", "num_epochs", "loss_fn", "loss_fn.weight"}


def test_the_distribution_of_referenced_code_counts() -> None:
    assert named("code+short").distributions == {"acme-code": "0.3", "acme-nets": "2.1"}


def test_description_is_that_of_a_single_name() -> None:
    assert (named("net2").config.description, named("net2").config.source) == ("Two", "A paper")
    assert named("net2+num_epochs=5").config.description is None
    assert "description" not in named("net2").as_dict()


def test_only_assignments() -> None:
    resolved = named("num_epochs=5+initial_lr=1e-3")
    assert resolved.name == "initial_lr=0.001+num_epochs=5"
    assert resolved.config.base_trainer is None
    assert resolved.distributions == {}


def test_stock_class_names_compose() -> None:
    resolved = named("num_epochs=100+nnUNetTrainerDA5")
    assert resolved.as_dict() == {
        "name": "nnUNetTrainerDA5+num_epochs=100",
        "base_trainer": {"use": DA5},
        "num_epochs": 100,
    }


def test_the_base_class_adds_nothing_to_a_name() -> None:
    assert named("nnUNetTrainer").name == "nnUNetTrainer"
    assert named("nnUNetTrainer").as_dict() == {"name": "nnUNetTrainer"}
    assert named("nnUNetTrainer+num_epochs=5").name == "num_epochs=5"
    assert named("nnUNetTrainer+net").name == "net"


def test_equal_values_are_no_conflict() -> None:
    assert fields_of("topk+topk_again") == {"loss_fn": {"use": "acme.loss:topk", "k": 10}}


CONFLICTS = [
    (
        "net+net2",
        "'net' and 'net2' both set network_builder; '-tr net+net2' can have only one. "
        "To take one part of the other: net+loss_fn=@net2",
    ),
    (
        "topk+blob",
        "'blob' and 'topk' both set loss_fn; '-tr topk+blob' can have only one. To decide: topk+blob+loss_fn=@topk",
    ),
    (
        "long+short",
        "'long' and 'short' both set num_epochs; '-tr long+short' can have only one. "
        "To decide: long+short+num_epochs=5",
    ),
    (
        "wide+deeper",
        "'deeper' and 'wide' both set plans.architecture.arch_kwargs.n_stages; '-tr wide+deeper' can have only one. "
        "To decide: wide+deeper+plans.architecture.arch_kwargs.n_stages=4",
    ),
    (
        "wide+flat",
        "'flat' and 'wide' both set plans.architecture.arch_kwargs.n_stages; '-tr wide+flat' can have only one. "
        "To decide: wide+flat+plans.architecture.arch_kwargs.n_stages=4",
    ),
    (
        "only2d+only3d",
        "'only2d' and 'only3d' both set spatial_dims; '-tr only2d+only3d' can have only one. "
        "To decide: only2d+only3d+spatial_dims=3",
    ),
    (
        "blob+nnUNetTrainerDiceLoss",
        "'blob' and 'nnUNetTrainerDiceLoss' both set loss_fn (nnUNetTrainerDiceLoss decides it in its class); "
        "'-tr blob+nnUNetTrainerDiceLoss' can have only one. To decide: blob+nnUNetTrainerDiceLoss+loss_fn=@blob",
    ),
    (
        "nnUNetTrainer_250epochs+short",
        "'nnUNetTrainer_250epochs' and 'short' both set num_epochs (nnUNetTrainer_250epochs decides it in its class); "
        "'-tr nnUNetTrainer_250epochs+short' can have only one. To decide: nnUNetTrainer_250epochs+short+num_epochs=5",
    ),
    (
        "blob+base_trainer=@nnUNetTrainerDiceLoss",
        "'base_trainer=@nnUNetTrainerDiceLoss' and 'blob' both set loss_fn (nnUNetTrainerDiceLoss decides it in its "
        "class); '-tr blob+base_trainer=@nnUNetTrainerDiceLoss' can have only one. "
        "To decide: blob+base_trainer=@nnUNetTrainerDiceLoss+loss_fn=@blob",
    ),
    (
        "short+base_trainer=@nnUNetTrainer_250epochs",
        "'base_trainer=@nnUNetTrainer_250epochs' and 'short' both set num_epochs (nnUNetTrainer_250epochs decides it "
        "in its class); '-tr short+base_trainer=@nnUNetTrainer_250epochs' can have only one. "
        "To decide: short+base_trainer=@nnUNetTrainer_250epochs+num_epochs=5",
    ),
    (
        "nnUNetTrainerDA5+nnUNetTrainerDiceLoss",
        "'nnUNetTrainerDA5' and 'nnUNetTrainerDiceLoss' both set base_trainer; "
        "'-tr nnUNetTrainerDA5+nnUNetTrainerDiceLoss' can have only one. "
        "Leave one out, or name parts in place of classes: nnplug trainers",
    ),
    (
        "clash",
        "acme/clash:3: extends: 'blob' and 'topk' both set loss_fn; '-tr blob+topk' can have only one. "
        "To decide: blob+topk+loss_fn=@topk",
    ),
]


@pytest.mark.parametrize(("text", "expected"), CONFLICTS)
def test_conflicts_name_both_owners_the_field_and_the_cure(text: str, expected: str) -> None:
    assert message(text) == expected


@pytest.mark.parametrize("text", [text for text, cure in CONFLICTS if text != "clash" and "To decide" in cure])
def test_the_proposed_cure_works(text: str) -> None:
    cure = message(text).rpartition(": ")[2]
    assert named(cure).config is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adam+optimizer.lr=3e-4", "sets optimizer.lr, which the field initial_lr decides: initial_lr=0.0003."),
        (
            "cosine+lr_scheduler.num_epochs=9",
            "sets lr_scheduler.num_epochs, which the field num_epochs decides: num",
        ),
        ("blob+loss_fn.context=x", "sets loss_fn.context, which every run gives it. Leave it out."),
        ("net+network_builder.patch_size=8x8", "sets network_builder.patch_size, which the field patch_size decides"),
        (
            "net+network_builder.deep_supervision=false",
            "which the field enable_deep_supervision decides: enable_",
        ),
        (
            "nnUNetTrainerDA5+base_trainer.num_epochs=5",
            "sets base_trainer.num_epochs, and a trainer class is taken without settings. Fields change it, as num_ep",
        ),
    ],
)
def test_settings_that_would_be_written_over(text: str, expected: str) -> None:
    assert expected in message(text)


def test_assignments_win() -> None:
    assert fields_of("long+num_epochs=3") == {"num_epochs": 3}
    assert fields_of("nnUNetTrainer_250epochs+num_epochs=3")["num_epochs"] == 3
    assert fields_of("four+patch_size=64x64+plans.batch_size=2") == {"patch_size": [64, 64], "batch_size": 2}
    assert fields_of("wide+plans.batch_dice=false")["plans"]["batch_dice"] is False


def test_settings_of_a_component() -> None:
    assert fields_of("net+network_builder.width=16+network_builder.act.name=relu")["network_builder"] == {
        "use": "acme.net:Net",
        "width": 16,
        "act": {"name": "relu"},
    }
    assert fields_of("adam+optimizer.betas=0.9x0.98")["optimizer"]["betas"] == [0.9, 0.98]
    assert NAMES.known["net"].config.network_builder.kwargs == {"width": 8}


def test_a_part_by_reference() -> None:
    resolved = named("net2+loss_fn=@topk+loss_fn.k=5")
    assert resolved.name == "net2+loss_fn.k=5+loss_fn=@topk"
    assert resolved.as_dict()["loss_fn"] == {"use": "acme.loss:topk", "k": 5}
    origin = resolved.origins["loss_fn"]
    assert (origin.term, origin.distribution, origin.file) == ("loss_fn=@topk", "acme-nets", "acme/topk:3")


def test_a_part_of_plans_replaces_plans() -> None:
    assert fields_of("wide+plans=@deep") == {"plans": {"architecture": {"arch_kwargs": {"conv_bias": False}}}}


def test_the_sizes_of_plans_go_with_plans() -> None:
    assert fields_of("wide+plans=@four") == {"batch_size": 4, "patch_size": [32, 32]}
    assert fields_of("no_sizes") == {"seed": 3}
    assert fields_of("no_batch") == {"patch_size": [32, 32]}


def test_a_new_optimizer_must_not_lose_the_schedule_of_a_class() -> None:
    assert message("nnUNetTrainerCosAnneal+optimizer=@adam") == (
        "'nnUNetTrainerCosAnneal+optimizer=@adam' sets optimizer, and nnUNetTrainerCosAnneal decides optimizer and "
        "lr_scheduler together in its class. Say which schedule the new optimizer gets: lr_scheduler=@NAME"
    )
    assert "lr_scheduler" in fields_of("nnUNetTrainerCosAnneal+optimizer=@adam+lr_scheduler=@cosine")


def test_finished_losses_with_other_settings_are_others() -> None:
    import torch
    from torch import nn

    class Both(nn.Module):
        def __init__(self, *parts: nn.Module, powers: tuple[int, ...] = ()) -> None:
            super().__init__()
            self.parts, self.powers = nn.ModuleList(parts), powers

    def identity(loss: nn.Module) -> object:
        return resolve_config(Registration(TrainerConfig(name="t", loss_fn=loss), "t"), NAMES).as_dict()["loss_fn"]

    weighted = [nn.CrossEntropyLoss(weight=torch.tensor(w)) for w in ([1.0, 1.0], [0.1, 5.0])]
    made = [*weighted, *map(Both, weighted), Both(powers=(1, 2)), Both(powers=(1, 3)), nn.CrossEntropyLoss()]
    identities = [json.dumps(identity(loss), sort_keys=True) for loss in made]
    assert len(set(identities)) == len(made)
    again = Both(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0])))
    assert json.dumps(identity(again), sort_keys=True) == identities[2]


def test_a_part_over_a_base_trainer() -> None:
    assert fields_of("nnUNetTrainerDiceLoss+loss_fn=@topk")["loss_fn"] == {"use": "acme.loss:topk", "k": 10}


def test_values_and_bases_can_be_taken_as_parts() -> None:
    assert fields_of("net+num_epochs=@long+base_trainer=@nnUNetTrainerDA5") == {
        "base_trainer": {"use": DA5},
        "network_builder": {"use": "acme.net:Net", "width": 8},
        "enable_deep_supervision": False,
        "num_epochs": 4000,
    }


REFUSED = [
    ("net+loss_fn=@adam", "loss_fn=@adam: 'adam' does not set loss_fn. It sets: optimizer, initial_lr."),
    (
        "net+loss_fn=@nnUNetTrainerDiceLoss",
        "loss_fn=@nnUNetTrainerDiceLoss: 'nnUNetTrainerDiceLoss' does not set loss_fn (nnUNetTrainerDiceLoss "
        "decides it in its class, which can not be taken alone). It sets: base_trainer.",
    ),
    ("net+loss_fn=@nnUNetTrainer", "loss_fn=@nnUNetTrainer: 'nnUNetTrainer' does not set loss_fn. It sets: nothing."),
    (
        "net+loss_fn.weight=2",
        "loss_fn.weight=2: none of the names sets loss_fn. Add one that does: loss_fn=@NAME; list them with: nnplug "
        "trainers",
    ),
    ("net+network_builder.use=x", "network_builder.use=x: 'use' is the reference itself. Write network_builder=@NAME."),
    (
        "finished+loss_fn.weight=2",
        "loss_fn.weight=2: loss_fn is a finished object; its settings can not be changed by name.",
    ),
    ("loop_a", "trainer 'loop_a' extends itself: loop_a -> loop_b -> loop_a."),
    ("unsets_nothing", "trainer 'unsets_nothing': unset: 'blob' does not set 'optimizer'. Remove it."),
    (
        "extends_file",
        "acme/extends_file:3: extends: './other.toml' is a file. A trainer can extend registered trainers only.",
    ),
    ("net+loss_fn=@nowhere", "Unknown trainer 'nowhere'."),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_what_can_not_be_composed(text: str, expected: str) -> None:
    assert message(text) == expected


def test_extends() -> None:
    resolved = named("child")
    assert resolved.name == "child"
    assert resolved.as_dict() == {
        "name": "child",
        "network_builder": {"use": "acme.net:Net", "width": 8},
        "enable_deep_supervision": False,
        "loss_fn": {"use": "acme.loss:topk", "k": 10},
        "num_epochs": 8,
    }
    assert {key: origin.term for key, origin in resolved.origins.items()} == {
        "network_builder": "net",
        "enable_deep_supervision": "net",
        "loss_fn": "topk",
        "num_epochs": "child",
    }


def test_extends_and_unset_over_two_generations() -> None:
    assert fields_of("grandchild") == {
        "network_builder": {"use": "acme.net:Net", "width": 8},
        "loss_fn": {"use": "acme.loss:topk", "k": 3},
        "num_epochs": 8,
        "seed": 1,
    }


def test_plans_merge_by_leaf() -> None:
    assert fields_of("wide+deep") == {
        "plans": {"architecture": {"arch_kwargs": {"n_stages": 4, "conv_bias": False}}, "batch_dice": True}
    }
    assert fields_of("thinner") == {"plans": {"architecture": {"arch_kwargs": {"n_stages": 4}, "x": 1}}}


def test_plans_sizes_are_the_fields() -> None:
    assert fields_of("four") == {"patch_size": [32, 32], "batch_size": 4}
    assert named("four").config.patch_size == (32, 32)
    assert "both set batch_size" in message(
        "four+b8", Names(*[r.config for r in NAMES.known.values()], TrainerConfig(name="b8", batch_size=8))
    )


def test_dimensions_are_those_that_all_parts_work_in() -> None:
    assert fields_of("both+only3d") == {"spatial_dims": [3]}
    assert named("both+only3d").origins["spatial_dims"].term == "only3d"


def test_settings_of_one_sampler_join() -> None:
    resolved = named("near+by_case")
    assert resolved.config.sampler == Component("acme.loader:Loader", file="a", near=True, margin=2)
    terms = {key: origin.term for key, origin in resolved.origins.items()}
    assert terms == {"sampler": "by_case", "sampler.near": "near", "sampler.margin": "near"}
    assert fields_of("by_case+near+sampler.margin=3")["sampler"]["margin"] == 3


@pytest.mark.parametrize(("one", "other"), [("near", "nearer"), ("code", "near")])
def test_samplers_that_differ_about_a_setting_or_are_other_code_conflict(one: str, other: str) -> None:
    text = f"{one}+{other}"
    assert message(text) == (
        f"'{one}' and '{other}' both set sampler; '-tr {text}' can have only one. To decide: {text}+sampler=@{other}"
    )


def test_two_names_on_one_base_agree() -> None:
    assert fields_of("da5+da5_too")["training_transforms"] == {"use": "acme.t:transforms"}
    assert "'da5' and 'transforms' both set training_transforms" in message("da5+transforms")


def test_a_name_of_ninety_bytes_is_the_limit() -> None:
    assert "bytes long; 90 fit" in message("net+network_builder.a=" + "b" * 90)


@pytest.mark.parametrize("base", [DA5, "nnUNetTrainerDA5"])
def test_a_config_that_sets_what_its_base_decides_is_no_conflict(base: str) -> None:
    fields = {"base_trainer": base} if ":" in base else {"extends": base}
    names = Names(TrainerConfig(name="own", training_transforms="acme.t:transforms", **fields))
    assert fields_of("own", names)["training_transforms"] == {"use": "acme.t:transforms"}


def test_a_python_config_resolves_without_being_registered() -> None:
    loss = Finished()
    config = TrainerConfig(name="mine", description="d", network_builder=build, loss_fn=loss, num_epochs=500)
    resolved = resolve_config(Registration(config, config.name), NAMES)
    assert resolved.name == "mine"
    assert resolved.config.loss_fn is loss
    assert resolved.config.network_builder.target is build
    assert resolved.as_dict() == {
        "name": "mine",
        "network_builder": {"use": f"{__name__}:build"},
        "loss_fn": {"use": f"{__name__}:Finished", "repr": "Finished()"},
        "num_epochs": 500,
    }


def test_a_description_of_an_object_does_not_hold_its_address() -> None:
    class Plain:
        def __call__(self) -> None: ...

    texts = set()
    for _ in range(2):
        config = TrainerConfig(name="mine", loss_fn=Plain())
        texts.add(resolve_config(Registration(config, "mine"), NAMES).as_dict()["loss_fn"]["repr"])
    assert len(texts) == 1


FILES = Names(
    TrainerConfig(name="net", network_builder="acme.net:Net"),
    files=(
        TrainerConfig(name="os_loss", loss_fn="os:system"),
        TrainerConfig(name="private", loss_fn="torch._C:x"),
        TrainerConfig(name="torch_loss", loss_fn="torch.nn:MSELoss"),
        TrainerConfig(name="nonlin", plans={"architecture": {"arch_kwargs": {"nonlin": "os.system"}}}),
        TrainerConfig(name="located", plans={"architecture": {"_kw_requires_import": ["x"]}}),
        TrainerConfig(name="by_builder", network_builder=Component("torch.nn:Linear", norm_op="subprocess.call")),
        TrainerConfig(name="by_extends", extends="net+network_builder.nonlin=os.system"),
        TrainerConfig(name="layers", plans={"architecture": {"arch_kwargs": {"norm_op": "torch.nn.SyncBatchNorm"}}}),
    ),
)
OUTSIDE = "is outside of what a file may name"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "os_loss",
            "os_loss.toml: loss_fn: 'os:system' is outside of what a file may name: torch, monai, nnunetv2, "
            "dynamic_network_architectures and packages of installed plugins. If you trust the file and that code, add "
            "--trust-code.",
        ),
        (
            "private",
            "private.toml: loss_fn: 'torch._C:x' is private; a file may name public things only. If you trust it, add "
            "--trust-code.",
        ),
        (
            "nonlin",
            "nonlin.toml: plans.architecture.arch_kwargs.nonlin: 'os.system' is outside of what a file may name in an "
            "architecture: layers of torch.nn. If you trust the file and that code, add --trust-code.",
        ),
        (
            "located",
            "located.toml: plans.architecture._kw_requires_import: _kw_requires_import can not be set in a file. If "
            "you trust it, add --trust-code.",
        ),
        (
            "by_builder",
            "by_builder.toml: network_builder: 'subprocess.call' is outside of what a file may name in an "
            "architecture: layers of torch.nn. If you trust the file and that code, add --trust-code.",
        ),
        (
            "by_extends",
            "by_extends.toml: extends: 'os.system' is outside of what a file may name in an architecture: layers of "
            "torch.nn. If you trust the file and that code, add --trust-code.",
        ),
    ],
)
def test_a_file_may_not_name_everything(name: str, expected: str) -> None:
    assert message(name, FILES) == expected
    assert named(name, FILES, trust_code=True).trust_code is True
    assert OUTSIDE in expected or "--trust-code" in expected


def test_a_file_may_name_components_and_layers() -> None:
    assert type(named("torch_loss", FILES).config.loss_fn.target).__name__ == "FileReference"
    assert type(named("torch_loss", FILES, trust_code=True).config.loss_fn.target) is str
    assert fields_of("layers", FILES)["plans"]["architecture"]["arch_kwargs"]["norm_op"] == "torch.nn.SyncBatchNorm"
    assert type(named("net+loss_fn=@torch_loss", FILES).config.loss_fn.target).__name__ == "FileReference"


def test_what_the_user_types_is_trusted() -> None:
    assert fields_of("net+network_builder.nonlin=os.system")["network_builder"]["nonlin"] == "os.system"


PIECES = st.sampled_from(
    ["net", "blob", "loss_fn", "plans", "architecture", "num_epochs", "x", "5", "1e", "none", "1x2", "__", "é", "\n"]
)
MARKS = st.sampled_from(["+", "=", "@", ".", "-", " ", "/", ".toml", "_", ""])


@settings(max_examples=500)
@given(st.lists(st.tuples(PIECES, MARKS), max_size=8))
def test_any_text_resolves_or_is_refused(pieces: list[tuple[str, str]]) -> None:
    text = "".join(piece + mark for piece, mark in pieces)
    with suppress(NnplugError):
        named(text)


PARTS = (
    "net",
    "adam",
    "plain",
    "wide",
    "deep",
    "both",
    "only3d",
    "nnUNetTrainerBN",
    "nnUNetTrainer",
    "topk",
    "topk_again",
)
ASSIGNMENTS: Mapping[str, st.SearchStrategy[str]] = {
    "num_epochs": st.integers(1, 5000).map(str),
    "initial_lr": st.floats(1e-6, 1).map(repr),
    "weight_decay": st.sampled_from(["0", "0.0", "3e-5", "3E-05"]),
    "patch_size": st.sampled_from(["40x56x40", "040x56x40", "64x64"]),
    "amp": st.sampled_from(["true", "True", "false"]),
    "mirror_axes": st.sampled_from(["none", "0", "1x0", "0x1"]),
    "loss_fn": st.sampled_from(["@blob", "@finished"]),
    "plans.batch_dice": st.sampled_from(["true", "false"]),
    "plans.architecture.arch_kwargs.n_stages": st.integers(1, 9).map(str),
}


@st.composite
def terms(draw: st.DrawFn) -> list[str]:
    parts = draw(st.lists(st.sampled_from(PARTS), unique=True, max_size=4))
    fields = draw(st.lists(st.sampled_from(sorted(ASSIGNMENTS)), unique=True, max_size=3))
    chosen = parts + [f"{field}={draw(ASSIGNMENTS[field])}" for field in fields]
    return chosen or ["net"]


def outcome(text: str) -> tuple[str, object, object] | str:
    try:
        resolved = named(text)
    except NnplugError as error:
        return "too long" if "bytes long" in str(error) else str(error).replace(text, "TEXT")
    return resolved.name, resolved.as_dict(), resolved.origins


@given(terms(), st.randoms(use_true_random=False))
def test_the_order_of_terms_does_not_matter(chosen: list[str], rng: random.Random) -> None:
    shuffled = list(chosen)
    rng.shuffle(shuffled)
    assert outcome("+".join(shuffled)) == outcome("+".join(chosen))


@given(terms())
def test_a_canonical_name_resolves_to_itself(chosen: list[str]) -> None:
    first = outcome("+".join(chosen))
    if isinstance(first, tuple):
        assert outcome(first[0]) == first
        assert len(first[0].encode()) <= 90
        assert "__" not in first[0]
