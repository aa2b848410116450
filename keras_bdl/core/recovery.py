"""Keeping the weights of a model whatever happens."""

import contextlib

import keras


@contextlib.contextmanager
def weights_kept(model):
    """Within, an error in `predict` or `evaluate` does not cost the weights.

    Keras on JAX takes them out of the model meanwhile, and then leaves them out.
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
