"""Fixtures and hooks of all tests. `conftest.py` loads them where tests run."""

import functools
import gc
import sys

import keras
import numpy as np
import pytest

_before = set(sys.modules)
import keras_bdl  # noqa: E402, F401 (to see what it imports)

# Names of the packages that `import keras_bdl` imports beyond those of Keras.
IMPORTED = {name.split(".")[0] for name in set(sys.modules) - _before}
BACKEND = keras.backend.backend()
DRAWS = "test_draws_have_the_exact_moments"
# Of these one case of each map is enough on TensorFlow too: what the other cases differ
# in is also in `test_draws_in_the_scope_have_the_exact_moments`, which all cases take.
REPEATED = (
    DRAWS,
    "test_jit_compiled_training",
    "test_noise_differs_between_calls_and_layers",
    "test_noise_in_a_traced_loop",
    "test_to_keras_samples_the_posterior",
)


def pytest_generate_tests(metafunc):
    """Gives every test of a `LayerContract` subclass its cases."""
    if "case" in metafunc.fixturenames and metafunc.cls is not None:
        cases, test = metafunc.cls.cases, metafunc.function
        in_ci = cases
        if BACKEND != "tensorflow" or test.__name__ in REPEATED:
            # Estimators, priors and divergences have tests of their own on every
            # backend; of the layers around them one case each is enough there.
            in_ci = [case for case in cases if case.thorough] or cases[:1]
        if BACKEND == "jax" and test.__name__ == DRAWS:
            in_ci = [case for case in in_ci if case.thorough]  # of every map
        elif BACKEND == "jax":
            in_ci = [case for case in in_ci if case.family or case.every_backend]

        def marks(case):
            slow = case.on_demand(test) or not any(case is other for other in in_ci)
            return [pytest.mark.slow] * slow + [pytest.mark.traced] * case.traced

        metafunc.parametrize(
            "case",
            [
                pytest.param(c, id=c.name, marks=marks(c))
                for c in cases
                if c.takes(test)
            ],
        )


@pytest.fixture(autouse=True)
def fresh_state(request):
    keras.utils.set_random_seed(0)
    if hasattr(request.module, "rng"):
        # The same data whichever tests this process has run before.
        request.module.rng = np.random.default_rng(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
    # Python collects garbage when there is much: forced after every test, this is half
    # of the time of all tests.
    keras.backend.clear_session(free_memory=False)


def after_the_optimizer(method):
    """A method that trains, of a model whose optimizer has its variables."""

    @functools.wraps(method)
    def wrapped(self, *args, **options):
        optimizer = getattr(self, "optimizer", None)
        if self.built and not getattr(optimizer, "built", True):
            optimizer.build(self.trainable_variables)
        return method(self, *args, **options)

    return wrapped


@pytest.fixture(autouse=True)
def programs(request, monkeypatch):
    """Compiles nothing for a test that is marked `eager`, and once for the others.

    A first step that makes the variables of the optimizer is traced twice by
    TensorFlow. A test that is marked `unbuilt` keeps that.
    """
    if BACKEND != "tensorflow":
        yield
        return
    import tensorflow as tf

    marks = {mark.name for mark in request.node.iter_markers()}
    if "unbuilt" not in marks:
        for name in ("fit", "train_on_batch"):
            method = after_the_optimizer(getattr(keras.Model, name))
            monkeypatch.setattr(keras.Model, name, method)
    tf.config.run_functions_eagerly("eager" in marks and "traced" not in marks)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def only_tensorflow():
    if BACKEND != "tensorflow":
        pytest.skip("a feature of the TensorFlow backend")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Drops what pytest makes of a contract test that applies to no case."""
    items[:] = [item for item in items if "NOTSET" not in item.name]
    for item in items:
        if _runs_elsewhere({mark.name for mark in item.iter_markers()}, item):
            item.add_marker("slow")


def _runs_elsewhere(marks, item):
    """Whether a test is on demand on this backend, because another one runs it."""
    if "one_backend" in marks or "only_tensorflow" in item.fixturenames:
        return BACKEND != "tensorflow"
    # A skip by the backend is of TensorFlow; the contract has rules of its own.
    here = marks & {"every_backend", "skipif"} or "case" in item.fixturenames
    return "portable" in marks and not here and BACKEND != "torch"


def pytest_collection_finish():
    # What the imports made stays: collecting garbage need not walk through it.
    gc.collect()
    gc.freeze()
