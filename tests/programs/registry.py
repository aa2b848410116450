"""The registry of programs: by name, a function that returns a model and its data."""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np

BACKENDS = ("tensorflow", "jax", "torch")

# By name, a function without arguments that returns a `Program`.
PROGRAMS = {}

register = keras.saving.register_keras_serializable("programs")


@dataclasses.dataclass
class Program:
    """A plain model as a user builds it, with what it takes to train it.

    Attributes:
        model: Keras model, not compiled.
        x: inputs, an array or a list or dict of arrays with a row per example.
        y: targets, structured like the outputs of the model.
        loss: loss for `compile`, one for each output.
        outputs: the kind of the outputs for `predict_uncertainty`.
        has_config: whether the classes of the model can be made from a config.
        safe_mode: whether the file of the model can be loaded in safe mode.
        exports: whether the exported plain model computes what the model does.
        least_share: least share of the trainable numbers that get a posterior.
        reason: why `least_share` is below the usual one.
        atol: largest difference between outputs that are the same.
    """

    model: keras.Model
    x: Any
    y: Any
    loss: Any
    outputs: str = "auto"
    has_config: bool = True
    safe_mode: bool = True
    exports: bool = True
    least_share: float = 0.9
    reason: str | None = None
    atol: float = 1e-4

    @property
    def num_rows(self):
        return len(keras.tree.flatten(self.x)[0])


def program(function=None, *, backends=BACKENDS, policy="float32", **options):
    """Registers a function that makes a program, under its name.

    Args:
        function: function without arguments that returns a `Program`.
        backends: the backends on which Keras itself runs the program.
        policy: the dtype policy that the program is made and run in.
        **options: further attributes of the program.
    """
    if function is None:
        return functools.partial(program, backends=backends, policy=policy, **options)

    @functools.wraps(function)
    def make():
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(0)
        made = dataclasses.replace(function(), **options)
        made.model(made.x)
        for variable in made.model.trainable_variables:
            # What starts at zero or one says little about where it goes.
            noise = np.random.normal(0.0, 0.05, variable.shape)
            variable.assign(variable + noise.astype("float32"))
        return made

    make.backends = backends
    PROGRAMS[function.__name__] = make
    return make


def floats(*shape):
    return np.random.normal(size=shape).astype("float32")


def integers(high, *shape):
    """Integers from 0 to `high - 1`."""
    return np.random.randint(0, high, shape).astype("int32")


def sentences(vocabulary, rows, length):
    """Integers from 1, with zeros after the end of each row."""
    tokens = np.random.randint(1, vocabulary, (rows, length)).astype("int32")
    ends = np.random.randint(2, length + 1, rows)
    ends[0] = length
    return np.where(np.arange(length) < ends[:, None], tokens, 0).astype("int32")
