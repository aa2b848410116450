"""Gaussian posteriors with correlated weights, which a fit sets and nothing trains."""

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.ops.jacobians import flat_jacobian, scaled_jacobian
from keras_bdl.posteriors.base import Posterior, register
from keras_bdl.posteriors.gaussian import bias_of


class FittedGaussian(Posterior):
    """Base class. A subclass implements `deviations`."""

    trains_means = False
    has_kl = False

    @property
    def prior_shapes(self) -> dict[str, tuple[int, ...]]:
        """No shapes, because the prior is in the fit."""
        return {}

    def deviations(
        self, seed: keras.random.SeedGenerator, num_samples: int
    ) -> dict[str, Tensor]:
        """Draws weights minus their means by name, `(num_samples, ...)`.

        Args:
            seed: `keras.random.SeedGenerator`.
            num_samples: number of draws.
        """
        raise NotImplementedError

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        count = 1 if num_samples is None else num_samples
        means = self.mean()
        weights = {n: means[n] + d for n, d in self.deviations(seed, count).items()}
        if num_samples is None:
            return {name: weight[0] for name, weight in weights.items()}
        return weights


@register()
class JointGaussian(FittedGaussian):
    """N(mean, C C') over all weights of a layer or a network together.

    C is square, with the weights one after the other, each in its own order. It starts
    at the identity, and `assign_factor` sets it.
    """

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        size = sum(math.prod(mean.shape) for mean in means.values())
        self._factor = add_weight(
            name="factor",
            shape=(size, size),
            initializer=lambda shape, dtype=None: ops.eye(shape[0], dtype=dtype),
            trainable=False,
        )
        return {"factor": self._factor}

    def assign_factor(self, factor: np.ndarray) -> None:
        """Sets C, `(weights, weights)`."""
        self._factor.assign(factor)

    def deviations(
        self, seed: keras.random.SeedGenerator, num_samples: int
    ) -> dict[str, Tensor]:
        factor = wide(self._factor)
        shape = (num_samples, factor.shape[0])
        noise = keras.random.normal(shape, dtype=factor.dtype, seed=seed)
        flat = ops.matmul(noise, ops.transpose(factor))
        found, start = {}, 0
        for name, own in self.shapes.items():
            end = start + math.prod(own)
            found[name] = ops.reshape(flat[:, start:end], (num_samples, *own))
            start = end
        return found

    def output_factors(
        self, jacobians: dict[str, tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        # Each kernel with its bias, in the order of the weights.
        kernels = [name for name in self.shapes if name in jacobians]
        flat = [flat_jacobian(*jacobians[name]) for name in kernels]
        return [ops.matmul(ops.concatenate(flat, axis=-1), wide(self._factor))]


@register()
class Kronecker(FittedGaussian):
    """A matrix normal over each kernel with its bias, with some noise of each weight.

    The matrix of a layer has the kernel's inputs as rows, and its bias as a last one:
    W = mean + U (S * eps) V', with orthogonal U and V, elementwise scales S and
    standard normal eps. It is the Gaussian whose precision is a Kronecker product plus
    a multiple of the identity. S starts at 1, and `assign_factors` sets it.

    Reference: Ritter, Botev and Barber, "A scalable Laplace approximation for neural
    networks", 2018, section 3.
    """

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        self._factors: dict[str, dict[str, keras.Variable]] = {}
        for name, (rows, units) in self.matrices().items():
            self._factors[name] = {
                part: add_weight(
                    name=f"{name}_{part}",
                    shape=shape,
                    initializer=_identity if part != "scale" else "ones",
                    trainable=False,
                )
                for part, shape in (
                    ("rows", (rows, rows)),
                    ("units", (units, units)),
                    ("scale", (rows, units)),
                )
            }
        return {
            f"{name}_{part}": variable
            for name, parts in self._factors.items()
            for part, variable in parts.items()
        }

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Returns rows and columns of the matrices, by the names of the kernels."""
        found = {}
        for name, shape in self.shapes.items():
            if len(shape) > 1:
                rows = math.prod(shape[:-1]) + (bias_of(name) in self.shapes)
                found[name] = (rows, shape[-1])
        return found

    def assign_factors(
        self, name: str, rows: np.ndarray, units: np.ndarray, scale: np.ndarray
    ) -> None:
        """Sets U, V and S of one kernel.

        Args:
            name: name of the kernel.
            rows: U, `(rows, rows)`.
            units: V, `(units, units)`.
            scale: S, `(rows, units)`.
        """
        for part, value in (("rows", rows), ("units", units), ("scale", scale)):
            self._factors[name][part].assign(value)

    def deviations(
        self, seed: keras.random.SeedGenerator, num_samples: int
    ) -> dict[str, Tensor]:
        found = {}
        for name, parts in self._factors.items():
            rows, units, scale = (wide(parts[p]) for p in ("rows", "units", "scale"))
            shape = (num_samples, *scale.shape)
            noise = keras.random.normal(shape, dtype=scale.dtype, seed=seed)
            matrix = ops.matmul(rows, noise * scale)
            matrix = ops.matmul(matrix, ops.transpose(units))
            kernel = matrix
            if bias_of(name) in self.shapes:
                kernel, found[bias_of(name)] = matrix[:, :-1], matrix[:, -1]
            found[name] = ops.reshape(kernel, (num_samples, *self.shapes[name]))
        return found

    def output_factors(
        self, jacobians: dict[str, tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        found = []
        for name, (inputs, gradients) in jacobians.items():
            rows, units, scale = (
                wide(self._factors[name][part]) for part in ("rows", "units", "scale")
            )
            inputs, gradients = ops.matmul(inputs, rows), ops.matmul(gradients, units)
            found.append(scaled_jacobian(inputs, gradients, scale))
        return found


def _identity(shape, dtype=None):
    return ops.eye(shape[0], dtype=dtype)
