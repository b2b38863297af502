"""The text after ``-tr``: what is read from it, and what is said where it is malformed."""

from __future__ import annotations

import pytest
from nnplug import NnplugError
from nnplug.composition.terms import MAX_NAME_BYTES, Assignment, NameTerm, canonical_name, parse


def test_names_and_assignments() -> None:
    names, assignments = parse(
        "kiunet@acme.nets+./my recipe.toml+num_epochs=200+loss_fn=@blob+loss_fn.weight=2+kiunet@acme-nets"
    )
    assert names == [NameTerm("kiunet", "acme-nets"), NameTerm("./my recipe.toml", path="./my recipe.toml")]
    assert assignments == [
        Assignment("num_epochs", 200),
        Assignment("loss_fn", part=NameTerm("blob")),
        Assignment("loss_fn.weight", 2),
    ]


def test_a_term_given_twice_counts_once() -> None:
    names, assignments = parse("a+a+num_epochs=5+num_epochs=5+initial_lr=0.010+initial_lr=1e-2")
    assert names == [NameTerm("a")]
    assert [assignment.spell() for assignment in assignments] == ["num_epochs=5", "initial_lr=0.01"]


def test_spaces_next_to_plus_do_not_matter() -> None:
    assert parse(" a + num_epochs=5 ") == parse("a+num_epochs=5")


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("initial_lr=1e-3", "initial_lr=0.001"),
        ("initial_lr=1", "initial_lr=1"),
        ("initial_lr=3E-05", "initial_lr=3e-5"),
        ("num_epochs=0200", "num_epochs=200"),
        ("amp=False", "amp=false"),
        ("patch_size=040x56x40", "patch_size=40x56x40"),
        ("mirror_axes=none", "mirror_axes=none"),
        ("mirror_axes=1x0", "mirror_axes=0x1"),
        ("mirror_axes=2", "mirror_axes=2"),
        ("spatial_dims=3", "spatial_dims=3"),
        ("loss_fn.weight=2.0", "loss_fn.weight=2"),
        ("loss_fn.kind=soft", "loss_fn.kind=soft"),
        ("plans.batch_size=4", "batch_size=4"),
        ("plans.patch_size=64x64", "patch_size=64x64"),
        ("plans.batch_dice=true", "plans.batch_dice=true"),
        ("loss_fn=@blob@Acme_Nets", "loss_fn=@blob@acme-nets"),
    ],
)
def test_an_assignment_has_one_spelling(text: str, spelled: str) -> None:
    _, [assignment] = parse(text)
    assert assignment.spell() == spelled
    assert parse(spelled)[1] == [assignment]


MALFORMED = [
    ("", "The trainer name is empty. List the trainers with: nnplug trainers"),
    ("  ", "The trainer name is empty. List the trainers with: nnplug trainers"),
    ("a+", "'a+': a name or an assignment is missing next to a '+'."),
    ("a++b", "'a++b': a name or an assignment is missing next to a '+'."),
    (
        "a__b",
        "'a__b': 'a__b' is not a trainer name: expected a name of letters, digits, '.', '-' and single '_' that begins "
        "with a letter and does not end with '_'.",
    ),
    (
        "3dnet",
        "'3dnet': '3dnet' is not a trainer name: expected a name of letters, digits, '.', '-' and single '_' that "
        "begins with a letter and does not end with '_'.",
    ),
    ("a@", "'a@': '' is not the name of a distribution. Write name@distribution."),
    ("a@b/c", "'a@b/c': 'b/c' is not the name of a distribution. Write name@distribution."),
    ("a+5=3", "'a+5=3': '5=3' is not an assignment. Write field=value, for example num_epochs=100."),
    (
        "a+num_epoch=3",
        "'a+num_epoch=3': no field 'num_epoch' can be set (did you mean num_epochs?). "
        "See the fields with: nnplug show nnUNetTrainer --all",
    ),
    (
        "a+lr=1e-3",
        "'a+lr=1e-3': no field 'lr' can be set (did you mean initial_lr?). "
        "See the fields with: nnplug show nnUNetTrainer --all",
    ),
    (
        "a+scheduler=@cosine_lr",
        "'a+scheduler=@cosine_lr': no field 'scheduler' can be set (did you mean lr_scheduler?). "
        "See the fields with: nnplug show nnUNetTrainer --all",
    ),
    ("a+name=b", "'a+name=b': no field 'name' can be set. See the fields with: nnplug show nnUNetTrainer --all"),
    ("a+num_epochs=", "'a+num_epochs=': num_epochs= has no value."),
    ("num_epochs=many", "num_epochs: expected an integer >= 1, got 'many'."),
    ("num_epochs=0", "num_epochs: expected an integer >= 1, got '0'."),
    ("num_epochs=5.5", "num_epochs: expected an integer >= 1, got '5.5'."),
    ("num_epochs=none", "num_epochs: expected an integer >= 1, got 'none'."),
    ("initial_lr=0", "initial_lr: expected a number > 0, got '0'."),
    ("initial_lr=true", "initial_lr: expected a number > 0, got 'true'."),
    ("amp=1", "amp: expected true or false, got '1'."),
    ("patch_size=64", "patch_size: expected 2 or 3 integers >= 1, got '64'."),
    ("patch_size=64x64x64x64", "patch_size: expected 2 or 3 integers >= 1, got '64x64x64x64'."),
    ("patch_size=none", "patch_size: expected 2 or 3 integers >= 1, got 'none'."),
    ("mirror_axes=0x3", "mirror_axes: expected different axes out of 0, 1 and 2, got '0x3'."),
    ("initial_lr=1e+3", "'initial_lr=1e+3': '+' separates terms. Write initial_lr=1e3."),
    (
        "loss_fn=blob",
        "'loss_fn=blob': loss_fn is code and takes it from a trainer by name: loss_fn=@blob, not loss_fn=blob.",
    ),
    ("plans=3", "'plans=3': plans is a table. Set one of its keys: plans.KEY=3, or take it: plans=@NAME."),
    ("num_epochs.x=3", "'num_epochs.x=3': num_epochs is a value and has no settings. Write num_epochs=3."),
    ("loss_fn.weight=@blob", "'loss_fn.weight=@blob': a part replaces a whole field. Write loss_fn=@blob."),
    (
        "plans.spacing=1x1x1",
        "plans.spacing: can not be changed: the data were preprocessed with the plan's. Derive a plans file "
        "with another name and preprocess with it.",
    ),
    (
        "plans.architecture.network_class_name=a.b",
        "plans.architecture.network_class_name: can not be set here. Name the network in the field network_builder.",
    ),
    ("num_epochs=5+num_epochs=6", "num_epochs is assigned twice: num_epochs=5 and num_epochs=6. Keep one."),
    ("batch_size=5+plans.batch_size=6", "batch_size is assigned twice: batch_size=5 and batch_size=6. Keep one."),
    ("loss_fn=@a+loss_fn=@b", "loss_fn is assigned twice: loss_fn=@a and loss_fn=@b. Keep one."),
    (
        "loss_fn.a=1+loss_fn.a.b=2",
        "loss_fn.a is assigned a value and a table: loss_fn.a=1 and loss_fn.a.b=2.",
    ),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED)
def test_malformed_text(text: str, message: str) -> None:
    with pytest.raises(NnplugError) as error:
        parse(text)
    assert str(error.value) == message


def test_canonical_order_is_names_then_assignments() -> None:
    assert canonical_name(["b", "a"], ["num_epochs=5", "amp=true"], "") == "a+b+amp=true+num_epochs=5"


def test_the_longest_name() -> None:
    fits = "a" * MAX_NAME_BYTES
    assert canonical_name([fits], [], fits) == fits
    with pytest.raises(NnplugError) as error:
        canonical_name([fits], ["amp=true"], f"amp=true+{fits}")
    assert str(error.value) == (
        f"'{fits}+amp=true' is 99 bytes long; 90 fit (nnU-Net puts two into one folder name). "
        f'Write a recipe, a file my_name.toml with: name = "my_name" and extends = "amp=true+{fits}"'
    )


def test_a_setting_with_two_underscores_needs_a_recipe() -> None:
    with pytest.raises(NnplugError) as error:
        canonical_name(["a"], ["loss_fn.x__y=1"], "")
    assert (
        str(error.value)
        == "'a+loss_fn.x__y=1' has '__' or ends with '_', where nnU-Net splits folder names. Write a recipe."
    )
