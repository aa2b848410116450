"""Scopes that are active within a `with`: every context variable of the library.

Keras calls the layers and passes on no arguments of this library. So a model puts a
scope around a forward pass to tell its layers about it.
"""

import contextvars
import types
from typing import Any, Self

import keras

from keras_bdl.core.typing import Tensor


class ThreadScope:
    """Base class of scopes. A scope is active within a `with`, on its own thread.

    Scopes of one class can be nested; the innermost one is current.
    """

    _active: contextvars.ContextVar[Any]

    def __init_subclass__(cls) -> None:
        cls._active = contextvars.ContextVar(cls.__name__, default=None)

    def __enter__(self) -> Self:
        self._token = self._active.set(self)
        return self

    def __exit__(self, *exc) -> None:
        self._active.reset(self._token)

    @classmethod
    def current(cls) -> Any:
        """Returns the innermost active scope of this class, or None."""
        return cls._active.get()


class SamplingScope(ThreadScope):
    """While it is active on this thread, layers draw weights from its seed.

    The scope is private. It is entered only inside a traced function, because a
    function traced outside would be reused inside.

    Args:
        seed: integer tensor of shape (), or words of `fold_in`.
        block: index of this block of samples, integer tensor or int.
        num_samples: number of samples in a block, a Python int. Tensors hold
            them sample-major: `(num_samples * rows, ...)`.
        places: dict of the id of a generator to its place in the model, an integer
            (`core.stochastic.places`). Other generators draw by their own key, which a
            file without a noise state does not hold.
        moment_layers: ids of layers that may draw outputs from their moments
            instead of weights, because only the marginals of rows are needed.
        shared_layers: ids of layers whose inputs are equal for all samples and given
            once, `(rows, ...)`.
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
        """Rewinds a generator, so that a second call of a layer repeats its draw."""
        self._draws[id(generator)] = 0

    def numbers(self):
        """Returns the numbers of the samples of this block, `(num_samples,)`."""
        first = self.block * self.num_samples
        return first + keras.ops.arange(self.num_samples, dtype="int32")

    def count_draw(self, generator):
        """Returns the number of earlier draws of a generator, and counts this one."""
        draw = self._draws.get(id(generator), 0)
        self._draws[id(generator)] = draw + 1
        return draw


class FrozenNoise(ThreadScope):
    """While it is active, draws repeat the next training draw and do not consume it."""


class KLAddedElsewhere(ThreadScope):
    """While it is active, layers add no KL to the loss.

    A model enters it for a branch of a program, because a loss that a layer adds there
    cannot leave the branch.
    """


class TrainingOfMembers(ThreadScope):
    """While it is active, an ensemble trains: it returns the outputs of each member."""


class LossOfMember(ThreadScope):
    """While it is active, an ensemble hides the losses of layers and regularizers.

    The loss of each member is computed by itself, and these are of all members.
    """


class NumberOfDraw(ThreadScope):
    """While it is active, posteriors whose draws have numbers take this one.

    So all layers of a model that is converted have the same member.

    Args:
        number: integer.
    """

    def __init__(self, number: int) -> None:
        self.number = number


class SharedWeights(ThreadScope):
    """While it is active, a layer with a posterior draws its weights once for all rows.

    Every call of a layer repeats the draw, with `training` and without it. Nothing else
    changes: layers add their KL, and only weights are drawn.

    Args:
        seed: integer tensor, `()` or `(2,)`.
    """

    def __init__(self, seed: Tensor) -> None:
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
    """While it is active, `compute_loss` knows the problem of the batch.

    Args:
        problem: number of the problem as an integer tensor, 0 for none.
    """

    def __init__(self, problem):
        self.problem = problem


class BoundScope(ThreadScope):
    """While it is active, the `call` of the model returns the terms of its bound.

    Args:
        batch: argument of a training or test step: x, or (x, y, sample weights).
    """

    def __init__(self, batch):
        _, self.y, _ = keras.utils.unpack_x_y_sample_weight(batch)
