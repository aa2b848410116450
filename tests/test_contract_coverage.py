"""Every registered layer is a case of the contract somewhere under tests/layers.

The contract is of layers with weights of their own. A group leaves its weights to its
inner layers, which are cases, and has a table of its own.
"""

import functools
import importlib.util
import pathlib

import pytest
from contract import FITTED, LayerContract

from keras_bdl.core import stochastic

GROUPS = {
    name
    for name, cls in stochastic.REGISTRY.items()
    if issubclass(cls, stochastic.StochasticGroup)
}
FILES = sorted(pathlib.Path(__file__).parent.glob("layers/test_*.py"))


def loaded(path):
    spec = importlib.util.spec_from_file_location(f"covered_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def covered_classes():
    names = set()
    for path in FILES:
        module = loaded(path)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, LayerContract):
                names |= {type(case.make()).__name__ for case in value.cases}
    return names


@pytest.mark.parametrize("name", sorted(set(stochastic.REGISTRY) - GROUPS - FITTED))
def test_registered_layer_is_a_case_of_the_contract(name):
    assert name in covered_classes()


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_registered_group_has_a_row_in_its_table(name):
    tables = (getattr(loaded(path), "GROUPS", ()) for path in FILES)
    assert name in {group.__name__ for table in tables for group in table}
