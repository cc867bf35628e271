"""`values.dataclass` is the standard library's for those who only read."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import field

import pytest

from supervisor.values import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
    note: str = field(default="", compare=False)
    secret: str = field(default="s", repr=False)


@dataclass(frozen=True, slots=True)
class Nothing:
    pass


@dataclass(frozen=True, slots=True)
class Word:
    text: str

    def __repr__(self) -> str:
        return "***"

    def __hash__(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Deep(Point):
    z: list[int] = field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Standard:
    x: int
    y: int = 2
    note: str = field(default="", compare=False)
    secret: str = field(default="s", repr=False)


def test_equality_is_by_class_and_compared_fields() -> None:
    assert Point(1) == Point(1, note="other") and Point(1) != Point(1, 3) and Point(1) != Point(1, secret="t")
    assert Point(1) != Deep(1) and Point(1) != Standard(1) and Nothing() == Nothing() and Nothing() != Point(1)
    assert Deep(1, z=[2]) == Deep(1, z=[2]) != Deep(1, z=[3])
    assert {Point(1), Point(1, note="n"), Nothing(), Nothing()} == {Point(1), Nothing()}
    with pytest.raises(TypeError, match="unhashable"):
        hash(Deep(1))


def test_repr_leaves_out_what_the_standard_one_does() -> None:
    assert repr(Point(1, note="n")).removeprefix("Point") == repr(Standard(1, note="n")).removeprefix("Standard")
    assert (repr(Nothing()), repr(Word("w")), hash(Word("w"))) == ("Nothing()", "***", 1)


def test_replace_fields_match_and_pickle_work_and_there_are_slots() -> None:
    assert dataclasses.replace(Point(1), y=5) == Point(1, 5)
    assert dataclasses.asdict(Point(1)) == dataclasses.asdict(Standard(1))
    assert pickle.loads(pickle.dumps(Point(1, 7, "n"))) == Point(1, 7)
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)
    with pytest.raises(AttributeError):
        Point(1).other = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Point()  # type: ignore[call-arg]


def test_what_is_not_frozen_is_the_standard_one() -> None:
    @dataclass(slots=True)
    class Mutable:
        x: int

    one = Mutable(1)
    one.x = 2
    assert one == Mutable(2) and repr(one).endswith("Mutable(x=2)")
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
