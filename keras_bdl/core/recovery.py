"""Keeping the weights of a model after an error."""

import contextlib

import keras


@contextlib.contextmanager
def weights_kept(model):
    """Restores the weights if `predict` or `evaluate` raises an error in the `with`.

    Keras on JAX moves the weights out of the model for the run, and after an error does
    not move them back.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    values = [(variable, variable.value) for variable in model.variables]
    try:
        yield
    except BaseException:
        for variable, value in values:
            variable.assign(value)
        raise
