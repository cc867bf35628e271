"""What can be a handler, and which returned values mean that it has not run.

The first is checked at load: by the nursery, by a worker that imports for itself, by `workq check`. The second is
checked for each task, since a call may return what the load cannot foresee (a decorator around a generator function, a
lambda): a task that has not run is never acknowledged. Both look at types, and run no user code.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import AsyncContextDecorator, ContextDecorator
from types import AsyncGeneratorType, CodeType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import Any, Final

_MOST_WRAPPERS: Final = 16
_BY_POSITION: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_NOT_RUN: Final[tuple[tuple[type | tuple[type, ...], str, str], ...]] = (
    (Generator, "a generator", ""),
    (AsyncGenerator, "an async generator", ""),
    ((map, filter, itertools.starmap), "an iterator that nobody iterates over", ""),
    ((FunctionType, MethodType, functools.partial), "a function", "; does a decorator lack its parentheses?"),
)
"""Type, name and likely mistake of values that stand for work still to be done."""
PLAIN: Final = frozenset({bool, int, float, str, bytes, dict, list, tuple, set})
"""Types that need no further check, which takes some microseconds."""


# ------------------------------------------------------------------------------------------------------ at load


def refusal(name: str, handler: Any) -> str | None:
    """Why this cannot be a handler; None when it can. `name`: as in the settings."""
    if not callable(handler):
        return f"{name} is a {type(handler).__name__}, which cannot be called; name a function of one argument"
    if is_class(handler):
        return _class_refusal(name, handler)
    return _call_refusal(name, handler)


def is_class(handler: Any) -> bool:
    """Whether each worker makes an instance of it, and calls that."""
    return issubclass(type(handler), type)


def _class_refusal(name: str, cls: Any) -> str | None:
    call = _method(cls, "__call__")
    if call is None:
        return (
            f"{name} is a class whose instances cannot be called: give it a method __call__(self, task), or name a "
            "function"
        )
    if why := _arguments_refusal(cls):
        return f"{name} is a class, of which each worker makes one instance, and {why}"
    for enter, leave in (("__enter__", "__exit__"), ("__aenter__", "__aexit__")):
        if (_method(cls, enter) is None) is not (_method(cls, leave) is None):
            return f"{name} has only one of {enter} and {leave}: a `with` needs both"
    if isinstance(call, FunctionType):
        call = functools.partial(call, None)  # as of an instance
    return _call_refusal(f"{name}.__call__", call)


def _method(cls: Any, name: str) -> Any:
    """A method of its instances, not necessarily a function; None when they have none. (`getattr` would find the
    metaclass's.)"""
    return next((vars(each)[name] for each in cls.__mro__ if name in vars(each)), None)


def _arguments_refusal(cls: Any) -> str | None:
    """Why it cannot be instantiated without arguments, as far as its signature shows."""
    try:
        signature = inspect.signature(cls)
    except BaseException:  # noqa: BLE001 - theirs, as below
        return None
    try:
        signature.bind()
    except TypeError as error:
        return f"gives it no arguments: {error}"
    return None


def _call_refusal(name: str, handler: Any) -> str | None:
    flags = _flags(handler)
    if flags & inspect.CO_ASYNC_GENERATOR:
        return f"{name} is an async generator function (it has a yield): calling it runs nothing; {_INSTEAD}"
    if flags & inspect.CO_GENERATOR and not flags & inspect.CO_ITERABLE_COROUTINE:
        return f"{name} is a generator function (it has a yield): calling it runs nothing; {_INSTEAD}"
    return _signature_refusal(name, handler)


_INSTEAD: Final = "name a function that returns when the work is done"


def is_async(handler: Any) -> bool:
    """Whether a call certainly makes a coroutine, of a class that of its instances; other calls may do so too."""
    if is_class(handler):
        handler = _method(handler, "__call__")
    return bool(_flags(handler) & (inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE))


def hidden_coroutine(handler: Any) -> CodeType | None:
    """The code of a coroutine function behind a decorator that uses `functools.wraps` and is no coroutine function
    itself. Of a class, or its instance: of `__call__`."""
    if is_async(handler):
        return None
    if type(handler) is not FunctionType:
        handler = _method(handler if is_class(handler) else type(handler), "__call__")
    for _ in range(_MOST_WRAPPERS):
        if type(handler) is not FunctionType:
            return None
        if handler.__code__.co_flags & inspect.CO_COROUTINE:
            return handler.__code__
        handler = vars(handler).get("__wrapped__")
    return None


def _flags(handler: Any) -> int:
    """The flags of the code that a call enters; 0 if it is not Python code, or not visible."""
    for _ in range(_MOST_WRAPPERS):
        if _is(handler, FunctionType):
            return int(handler.__code__.co_flags)
        if _is(handler, functools.partial):
            handler = handler.func
        elif _is(handler, (MethodType, staticmethod, classmethod)):
            handler = handler.__func__
        else:
            handler = inspect.getattr_static(type(handler), "__call__", None)
            if not isinstance(handler, FunctionType | staticmethod | classmethod):
                return 0
    return 0


def _signature_refusal(name: str, handler: Any) -> str | None:
    """Why it cannot be called with one argument. Without a readable signature nothing is refused: C functions have
    none, and an object's own answer would be user code."""
    try:
        if isinstance(handler, staticmethod):
            handler = handler.__func__
        if getattr(handler, "__signature__", None) is not None:
            return None  # set by a decorator, and not necessarily what its wrapper accepts
        # Not `__wrapped__`: the wrapper is called, and may supply what the wrapped function needs.
        signature = inspect.signature(handler, follow_wrapped=False)
    except BaseException:  # noqa: BLE001 - theirs: see above
        return None
    try:
        signature.bind(None)
    except TypeError:
        parameters = list(signature.parameters.values())
        function = name.rpartition(":")[2].rpartition(".")[2]
        return (
            f"{name} {_takes(parameters)}; a handler is called with one, the task: "
            f"{function}({_shown(parameters)}) should be {function}(task)"
        )
    return None


def _takes(parameters: list[inspect.Parameter]) -> str:
    needed = [each for each in parameters if each.default is each.empty]
    keywords = [each.name for each in needed if each.kind is each.KEYWORD_ONLY]
    by_position = [each for each in parameters if each.kind in _BY_POSITION]
    least = sum(1 for each in needed if each.kind in _BY_POSITION)
    is_open = len(by_position) > least or any(each.kind is each.VAR_POSITIONAL for each in parameters)
    if least > 1:
        return f"takes {'at least ' if is_open else ''}{least} arguments"
    if keywords:
        return f"needs {'the argument' if len(keywords) == 1 else 'the arguments'} {', '.join(keywords)} by keyword"
    return "takes no arguments"


def _shown(parameters: list[inspect.Parameter]) -> str:
    """As written, without the defaults, which may be secrets."""
    words: list[str] = []
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not any(word.startswith("*") for word in words):
            words.append("*")
        star = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
        words.append(f"{star}{each.name}{'' if each.default is each.empty else '=...'}")
    return ", ".join(words)


# -------------------------------------------------------------------------------------------------- at each task


def is_awaitable(result: Any) -> bool:
    """Whether an event loop must finish it; not a coroutine that has ended."""
    if _is(result, CoroutineType):
        return inspect.getcoroutinestate(result) != inspect.CORO_CLOSED
    # By its type, as `await` itself does.
    return hasattr(type(result), "__await__") or _is_generator_coroutine(result) or _is(result, Coroutine)


def not_run(result: Any) -> str | None:
    """Why the task that returned this is not done, if the value shows that."""
    if _is_generator_coroutine(result):
        return None  # awaitable
    for kinds, what, hint in _NOT_RUN:
        if _is(result, kinds):
            rest = _rest(result)
            return f"the handler returned {what}: {rest}{hint}" if rest else None
    if _is(result, (ContextDecorator, AsyncContextDecorator)) and _is(getattr(result, "gen", None), _GENERATORS):
        return "the handler returned a context manager (its function has a yield): nothing of it has run"
    return None


_GENERATORS: Final = (GeneratorType, AsyncGeneratorType)


def _is_generator_coroutine(result: Any) -> bool:
    """Made by `types.coroutine`."""
    return _is(result, GeneratorType) and bool(result.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE)


def _is(result: Any, kinds: type | tuple[type, ...]) -> bool:
    try:
        return isinstance(result, kinds)
    except BaseException:  # noqa: BLE001 - `__class__` may be a property, and a proxy's raises
        return False


def _rest(result: Any) -> str:
    """How much of it has not run; empty: it has finished."""
    if _is(result, GeneratorType):
        match inspect.getgeneratorstate(result):
            case inspect.GEN_CLOSED:
                return ""
            case inspect.GEN_SUSPENDED:
                return "it has not run to its end"
    return "nothing of it has run"


def place(result: Any) -> str:
    """Where it comes from, as a traceback's line; empty when unknown."""
    for name in ("gi_code", "ag_code", "__code__"):
        code = getattr(result, name, None)
        if code is not None:
            return f'  File "{code.co_filename}", line {code.co_firstlineno}, in {code.co_qualname}\n'
    return ""
