"""Every registered layer is a case of the contract somewhere under tests/layers."""

import functools
import importlib.util
import pathlib

import pytest
from contract import LayerContract

from keras_bdl.core import stochastic

FILES = sorted(pathlib.Path(__file__).parent.glob("layers/test_*.py"))


@functools.cache
def covered_classes():
    names = set()
    for path in FILES:
        spec = importlib.util.spec_from_file_location(f"covered_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, LayerContract):
                names |= {type(case.make()).__name__ for case in value.cases}
    return names


@pytest.mark.parametrize("name", sorted(stochastic.REGISTRY))
def test_registered_layer_is_a_case_of_the_contract(name):
    assert name in covered_classes()
