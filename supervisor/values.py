"""`dataclass` for values, made in a quarter of the time.

A frozen dataclass takes Python 3.11 to 3.13 half a millisecond to make: six methods are compiled, each for itself. A
supervisor imports a hundred of them before it forks, a third of its start. Here only `__init__` is compiled, the other
methods are shared, and frozen is checked by mypy alone, which makes an instance three times as fast to create, too.
docs/decisions/0041 has the figures and what else was tried.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, slots: bool = False, frozen: bool = False, repr: bool = True, eq: bool = True):
        """As `dataclasses.dataclass`; who sets an attribute of what is frozen is told so by mypy, not at run time."""
        if not frozen:
            return dataclasses.dataclass(slots=slots, repr=repr, eq=eq)

        def make(cls: type) -> type:
            made = dataclasses.dataclass(slots=slots, repr=False, eq=False)(cls)
            of = dataclasses.fields(made)
            made.__shown__ = tuple(each.name for each in of if each.repr)
            made.__compared__ = staticmethod(_values(each.name for each in of if each.compare))
            shared = ({"__repr__": _repr} if repr else {}) | ({"__eq__": _eq, "__hash__": _hash} if eq else {})
            for name, method in shared.items():
                if name not in cls.__dict__:
                    setattr(made, name, method)
            return made

        return make


def _values(names: Any) -> Any:
    names = tuple(names)
    return attrgetter(*names) if names else lambda _: ()


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__shown__)
    return f"{type(self).__qualname__}({shown})"


def _eq(self: Any, other: Any) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return self.__compared__(self) == self.__compared__(other)


def _hash(self: Any) -> int:
    return hash(self.__compared__(self))
