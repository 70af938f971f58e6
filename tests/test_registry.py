"""Registries of named members."""

from __future__ import annotations

import sys

import pytest

from molsampler.errors import InputError, UnknownNameError
from molsampler.registry import Registry


@pytest.fixture
def shapes() -> Registry[object]:
    registry: Registry[object] = Registry("shape")
    registry.register("circle", object)
    registry.register("square", "colorsys:rgb_to_hsv")
    return registry


def test_members_are_listed_in_order_and_found(shapes):
    assert shapes.names() == ("circle", "square")
    assert shapes["circle"] is object
    assert "square" in shapes
    assert "cube" not in shapes
    assert 3 not in shapes


def test_a_lazy_member_is_imported_on_first_use_only(shapes, monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert shapes.names() == ("circle", "square")
    assert "colorsys" not in sys.modules
    member = shapes["square"]
    assert member is sys.modules["colorsys"].rgb_to_hsv
    monkeypatch.delitem(sys.modules, "colorsys")
    assert shapes["square"] is member
    assert "colorsys" not in sys.modules


def test_a_decorator_registers_and_returns_what_it_decorates(shapes):
    @shapes.register("triangle")
    class Triangle:
        pass

    assert isinstance(Triangle, type)
    assert shapes["triangle"] is Triangle


def test_an_unknown_name_is_named_with_the_nearest_and_the_idea(shapes):
    with pytest.raises(
        UnknownNameError,
        match=r"^no shape 'circel'; did you mean 'circle'\? \(known: circle, square\)$",
    ):
        shapes["circel"]
    with pytest.raises(UnknownNameError, match=r"^no shape 3 \(known: "):
        shapes[3]
    with pytest.raises(UnknownNameError, match=r"^no shape \['circle'\]"):
        shapes[["circle"]]
    with pytest.raises(UnknownNameError, match="no shape 'cube'"):
        shapes.unregister("cube")


def test_duplicates_are_refused_until_unregistered(shapes):
    with pytest.raises(InputError, match="there is a shape 'circle' already"):
        shapes.register("circle", int)
    with pytest.raises(InputError, match="there is a shape 'square' already"):
        shapes.register("square")(int)
    assert shapes["circle"] is object
    shapes.unregister("circle")
    shapes.register("circle", int)
    assert shapes["circle"] is int


@pytest.mark.parametrize("text", ["", "module", ":attribute", "module:"])
def test_a_text_that_is_not_a_place_is_refused(shapes, text):
    with pytest.raises(InputError, match="'module:attribute', got"):
        shapes.register("cube", text)
    assert "cube" not in shapes


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_must_be_text(shapes, name):
    with pytest.raises(InputError, match="name of a shape must be text"):
        shapes.register(name, int)
