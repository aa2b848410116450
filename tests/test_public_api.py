"""What the package makes public has type hints."""

import importlib
import inspect
import pkgutil

import keras_bdl

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def public_callables():
    """Every callable that an `__all__` of the package exports, by its full name."""
    modules = [keras_bdl] + [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(keras_bdl.__path__, "keras_bdl.")
    ]
    exported = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in modules
        for name in getattr(module, "__all__", ())
    }
    return {name: value for name, value in exported.items() if callable(value)}


def functions_of(value):
    """Pairs of name and function: the callable, or the public methods of a class.

    Methods count that the class or a base within the package defines.
    """
    if not inspect.isclass(value):
        return [("", value)]
    methods = {}
    for cls in reversed(inspect.getmro(value)):
        if cls.__module__.split(".")[0] == "keras_bdl":
            methods.update(vars(cls))
    found = []
    for name, method in methods.items():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(method, property):
            method = method.fget
        elif isinstance(method, (classmethod, staticmethod)):
            method = method.__func__
        # A function of another module that is a method here is checked there.
        if inspect.isfunction(method) and method.__name__ == name:
            found.append((f".{name}", method))
    return found


def missing_hints(function):
    """Names of the parameters without a type hint, and "return" if it has none."""
    signature = inspect.signature(function)
    missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is inspect.Parameter.empty
        and parameter.kind not in _VARIADIC
        and parameter.name not in ("self", "cls")
    ]
    if signature.return_annotation is inspect.Signature.empty:
        missing.append("return")
    return missing


def untyped(callables):
    """The functions and methods that lack type hints, with what is missing."""
    found = {
        name + suffix: missing_hints(function)
        for name, value in callables.items()
        for suffix, function in functions_of(value)
    }
    return {name: missing for name, missing in found.items() if missing}


def test_public_functions_and_methods_have_type_hints():
    callables = public_callables()
    parts = {name.rpartition(".")[0] for name in callables}
    assert {"keras_bdl", "keras_bdl.losses", "keras_bdl.layers"} <= parts
    assert untyped(callables) == {}


class _Base:
    __module__ = "keras_bdl.example"

    def inherited(self, x) -> int: ...


class _Example(_Base):
    __module__ = "keras_bdl.example"

    def __init__(self, x: int, *args, **kwargs): ...

    @property
    def size(self): ...

    @classmethod
    def make(cls, x) -> None: ...

    def typed(self, x: int, *args, **kwargs) -> None: ...

    def _private(self, x): ...


def test_missing_hints_are_found():
    assert untyped({"Example": _Example}) == {
        "Example.inherited": ["x"],
        "Example.__init__": ["return"],
        "Example.size": ["return"],
        "Example.make": ["x"],
    }
