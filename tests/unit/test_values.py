"""Values in trainer names: every value has one spelling, and every spelling one value."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nnplug import NnplugError
from nnplug.composition.values import check_word, format_value, parse_value

WORDS = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,12}", fullmatch=True)
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-3", -3),
        ("007", 7),
        ("2.0", 2),
        ("0.25", 0.25),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("1E3", 1000),
        ("true", True),
        ("False", False),
        ("none", None),
        ("relu", "relu"),
        ("torch.nn.ReLU", "torch.nn.ReLU"),
        ("40x56x40", (40, 56, 40)),
        ("0.9x0.999", (0.9, 0.999)),
        ("3x", (3,)),
        ("x", "x"),
        ("xxl", "xxl"),
    ],
)
def test_text_to_value(text: str, value: object) -> None:
    parsed = parse_value(text, "setting")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-5"),
        (1e16, "1e16"),
        (3e-05, "3e-5"),
        (0.01, "0.01"),
        (1.0, "1"),
        (-0.0, "0"),
        (True, "true"),
        (None, "none"),
        ((40, 56, 40), "40x56x40"),
        ((3,), "3x"),
        ((), "none"),
    ],
)
def test_value_to_text(value: object, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize("text", ["a__b", "a_", "_a", "a b", "a/b", "1abc", "é", "1e999", "a=b", "", "5x_"])
def test_what_is_no_value_is_refused(text: str) -> None:
    with pytest.raises(NnplugError) as error:
        parse_value(text, "loss_fn.x")
    assert str(error.value) == (
        f"loss_fn.x: {text!r} is not a value. Write a number, true, false, none, sizes such as 40x56x40, or a word of "
        "letters, digits, '.', '-' and single '_' that begins with a letter and does not end with '_'."
    )


@given(NUMBERS)
def test_numbers_round_trip(number: float) -> None:
    text = format_value(number)
    assert "+" not in text
    assert parse_value(text, "s") == number
    assert format_value(parse_value(text, "s")) == text


@given(st.lists(NUMBERS, min_size=1, max_size=4).map(tuple))
def test_tuples_round_trip(value: tuple[float, ...]) -> None:
    assert parse_value(format_value(value), "s") == value


@given(WORDS)
def test_words_round_trip(word: str) -> None:
    assume("__" not in word and not word.endswith("_") and word.lower() not in ("true", "false", "none"))
    check_word(word, "s")
    assert format_value(parse_value(word, "s")) == word
