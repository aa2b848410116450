"""What is known within a `with`: every context variable of the library.

A layer is called by Keras, which hands through no arguments of ours. What a model wants
its layers to know in one forward pass, it says by a scope around the call.
"""

import contextvars
import types

import keras


class ThreadScope:
    """Base of scopes: active within a `with`, for the thread that entered it.

    Scopes of one class nest, and the innermost is the current one.
    """

    def __init_subclass__(cls):
        cls._active = contextvars.ContextVar(cls.__name__, default=None)

    def __enter__(self):
        self._token = self._active.set(self)
        return self

    def __exit__(self, *exc):
        self._active.reset(self._token)

    @classmethod
    def current(cls):
        """The innermost active scope of this class, or None."""
        return cls._active.get()


class SamplingScope(ThreadScope):
    """While active on this thread, layers draw weights from its seed.

    Private: entered only inside a traced function, because a function traced
    outside would be reused inside.

    Args:
        seed: integer tensor of shape (), or words of `fold_in`.
        block: index of this block of samples, integer tensor or int.
        num_samples: number of samples in a block, a Python int. Tensors hold
            them sample-major: `(num_samples * rows, ...)`.
        places: dict of the id of a generator to its place in the model, an integer
            (`core.stochastic.places`). Others draw by their own key, which a file that
            has no noise state does not carry.
        moment_layers: ids of layers that may draw outputs from their moments
            instead of weights, because only the marginals of rows are asked for.
        shared_layers: ids of layers whose inputs are those of all samples: they are
            given once, `(rows, ...)`.
    """

    def __init__(
        self,
        seed,
        block,
        num_samples,
        places=types.MappingProxyType({}),
        moment_layers=frozenset(),
        shared_layers=frozenset(),
    ):
        self.seed = seed
        self.block = block
        self.num_samples = num_samples
        self.places = places
        self.moment_layers = moment_layers
        self.shared_layers = shared_layers
        self._draws = {}

    def restart(self, generator):
        """Rewinds a generator, so that a layer called twice repeats its draw."""
        self._draws[id(generator)] = 0

    def count_draw(self, generator):
        draw = self._draws.get(id(generator), 0)
        self._draws[id(generator)] = draw + 1
        return draw


class FrozenNoise(ThreadScope):
    """While active, draws repeat the next training draw without using it up."""


class KLAddedElsewhere(ThreadScope):
    """While active, layers add no KL.

    What is added within a branch of a program could not leave it.
    """


class SharedWeights(ThreadScope):
    """While active, a layer with a posterior has one draw of its weights for all rows.

    Every call of a layer repeats the draw, with `training` and without it. Everything
    else is as outside: layers add their KL, and only weights are drawn.

    Args:
        seed: integer tensor, `()` or `(2,)`.
    """

    def __init__(self, seed):
        self.seed = seed


class UnitOfBlock(ThreadScope):
    """While active, a unit of an early-exit block runs, or its halting head.

    Args:
        block: the `EarlyExitResBlock`.
        index: number of the unit.
    """

    def __init__(self, block, index):
        self.block = block
        self.index = index


class BatchScope(ThreadScope):
    """While active, `compute_loss` knows what is wrong with the batch.

    Args:
        problem: its number as an integer tensor, 0 for none.
    """

    def __init__(self, problem):
        self.problem = problem


class BoundScope(ThreadScope):
    """While active, the model's `call` gives the terms of its bound.

    Args:
        batch: what a training or test step was given: x, or (x, y, sample weights).
    """

    def __init__(self, batch):
        _, self.y, _ = keras.utils.unpack_x_y_sample_weight(batch)
