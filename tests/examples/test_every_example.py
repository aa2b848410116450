"""Every example can be imported: what it takes of the package is there.

That they run and draw is tested by the others here, most of them on demand.
"""

import importlib.util
import pathlib

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_it_imports(path):
    pytest.importorskip("sklearn", reason="the examples read scikit-learn's data")
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__
