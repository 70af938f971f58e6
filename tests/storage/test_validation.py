"""What is wrong with a mapping, in one sentence."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from molsampler.errors import InputError, UnknownNameError
from molsampler.storage.validation import validated


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Cat(Strict):
    kind: Literal["cat"] = "cat"
    whiskers: int = 2


class Fish(Strict):
    kind: Literal["fish"] = "fish"
    scales: int = 3


class Owner(Strict):
    name: str
    age: int
    weight: float = 70.0
    eye: Literal["blue", "brown"] = "blue"
    height: float = Field(1.7, gt=0)
    shoe: int = Field(40, description="a European shoe size")
    pets: dict[str, float] = {}
    friends: list[str] = []
    married: bool = False
    animal: Annotated[Cat | Fish, Field(discriminator="kind")] | None = None

    @model_validator(mode="after")
    def _grown(self) -> Owner:
        if self.married and self.age < 18:
            raise ValueError("married owners are of age")
        return self


GOOD = {"name": "Ada", "age": 36}


def test_a_good_mapping_becomes_the_model() -> None:
    owner = validated(Owner, {**GOOD, "weight": 70, "animal": {"kind": "fish", "scales": 4}})
    assert owner.animal == Fish(scales=4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"age": 3.5}, "age must be an integer, got 3.5"),
        ({"age": True}, "age must be an integer, got True"),
        ({"weight": True}, "weight must be a number, got True"),
        ({"name": 3}, "name must be text, got 3"),
        ({"married": "yes"}, "married must be true or false, got 'yes'"),
        ({"eye": "red"}, "eye must be 'blue' or 'brown', got 'red'"),
        ({"height": -1}, "height must be greater than 0, got -1"),
        ({"shoe": "big"}, "shoe must be a European shoe size, got 'big'"),
        ({"pets": [1]}, "pets must be a mapping, got [1]"),
        ({"pets": {"cat": "x"}}, "pets.cat must be a number, got 'x'"),
        ({"friends": "Bob"}, "friends must be a list, got 'Bob'"),
        ({"friends": ["Bob", 3]}, "friends.1 must be text, got 3"),
        (
            {"animal": {"kind": "cat", "whiskers": "x"}},
            "animal.whiskers must be an integer, got 'x'",
        ),
        ({"age": 7, "married": True}, "married owners are of age"),
    ],
)
def test_a_value_is_named_with_what_it_should_be(changes, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(Owner, {**GOOD, **changes})
    assert str(caught.value) == sentence


def test_an_unknown_key_is_named_with_the_nearest_of_its_own_mapping() -> None:
    with pytest.raises(UnknownNameError) as caught:
        validated(Owner, {"nmae": "Ada"})
    assert str(caught.value).startswith(
        "unknown key 'nmae'; did you mean 'name'? (known: name, age,"
    )
    with pytest.raises(UnknownNameError) as caught:
        validated(Owner, {**GOOD, "animal": {"kind": "fish", "scale": 1}})
    assert str(caught.value) == (
        "unknown key 'animal.scale'; did you mean 'scales'? (known: kind, scales)"
    )


def test_all_missing_keys_are_named_once() -> None:
    with pytest.raises(InputError, match=r"^missing key\(s\) 'name', 'age'$"):
        validated(Owner, {})


def test_a_long_value_is_cut() -> None:
    with pytest.raises(InputError) as caught:
        validated(Owner, {**GOOD, "age": "x" * 10_000})
    assert len(str(caught.value)) < 200
