"""Members that share a kernel, and have factors of rank one and biases of their own.

Wen, Tran and Ba, "BatchEnsemble: an alternative approach to efficient ensemble and
lifelong learning", 2020; Dusenberry, Jerfel, Wen, Ma, Snoek, Heller, Lakshminarayanan
and Tran, "Efficient and scalable Bayesian neural nets with rank-1 factors", 2020.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops, random

from keras_bdl.core import scopes, validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.ops import divergences
from keras_bdl.posteriors.base import Posterior, register
from keras_bdl.posteriors.gaussian import check_log_stddev
from keras_bdl.priors import Prior


class RankOne(Posterior):
    """Base class of kernels W * (r s'), with r and s of each member.

    W is the variable of the layer, which all members share. As a matrix its columns are
    those of the last axis: r has a factor for each row, and s for each column. Biases,
    and other weights of one axis, are the sum of the layer's and the member's own.

    Args:
        size: number of members, a positive integer.
        spread: positive float, standard deviation of the initial factors around 1.
    """

    splits_rows = True

    def __init__(self, size: int, spread: float) -> None:
        super().__init__()
        self.size = validation.integer("size", size, least=1, most=1000)
        self.spread = validation.positive("spread", spread)

    @property
    def cycle(self) -> int:
        return self.size

    @property
    def prior_shapes(self) -> dict[str, tuple[int, ...]]:
        """No shapes, because the prior is not over the weights."""
        return {}

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        around_one = keras.initializers.RandomNormal(mean=1.0, stddev=self.spread)
        added = {}
        for name, mean in means.items():
            shape = tuple(mean.shape)
            if _is_bias(name, shape):
                added[f"{name}_offsets"] = add_weight(
                    name=f"{name}_offsets",
                    shape=(self.size, *shape),
                    initializer="zeros",
                )
                continue
            for part, own in (("rows", (*shape[:-1], 1)), ("columns", shape[-1:])):
                added[f"{name}_{part}"] = add_weight(
                    name=f"{name}_{part}",
                    shape=(self.size, *own),
                    initializer=around_one,
                )
        return added

    def members(self, seed: keras.random.SeedGenerator) -> dict[str, Tensor]:
        """Draws the weights of all members in order, `(size, ...)`, by name.

        Args:
            seed: `keras.random.SeedGenerator`.
        """
        return self._weights(ops.arange(self.size), seed)

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        scope, draw = scopes.SamplingScope.current(), scopes.NumberOfDraw.current()
        if scope is not None:
            numbers = ops.mod(scope.numbers(), self.size)
        elif draw is not None:
            number = draw.number % self.size
            numbers = ops.full((num_samples or 1,), number, dtype="int32")
        else:
            shape = (num_samples or 1,)
            numbers = random.randint(shape, 0, self.size, seed=seed)
        weights = self._weights(numbers, seed)
        if num_samples is None:
            return {name: value[0] for name, value in weights.items()}
        return weights

    def mean(self) -> dict[str, Tensor]:
        """Returns the means over all members by name, in float32 (or float64)."""
        members = self._means_of_members()
        return {name: ops.mean(value, axis=0) for name, value in members.items()}

    def _means_of_members(self):
        """Returns the mean weights of each member in order, `(size, ...)`."""
        return self._with_factors(lambda name: wide(self._variables[name]))

    def _weights(self, numbers, seed):
        """Returns weights of the members of these numbers, `(numbers, ...)`."""
        return self._with_factors(lambda name: self.factors(name, numbers, seed))

    def _with_factors(self, factors):
        weights = {}
        for name, value in self._means.items():
            value = wide(value)
            if _is_bias(name, value.shape):
                weights[name] = value + factors(f"{name}_offsets")
                continue
            columns = factors(f"{name}_columns")
            ones = (1,) * (len(value.shape) - 1)
            columns = ops.reshape(columns, (-1, *ones, columns.shape[-1]))
            weights[name] = value * factors(f"{name}_rows") * columns
        return weights

    def factors(
        self, name: str, numbers: Tensor, seed: keras.random.SeedGenerator
    ) -> Tensor:
        """Returns factors or offsets of members, in float32 (or float64).

        Args:
            name: name of their variable.
            numbers: numbers of members, `(n,)`.
            seed: `keras.random.SeedGenerator`.
        """
        del seed
        return ops.take(wide(self._variables[name]), numbers, axis=0)

    def get_config(self) -> dict[str, Any]:
        return {"size": self.size, "spread": self.spread}


def _is_bias(name, shape):
    return len(shape) == 1 or "bias" in name


@register("batch_ensemble")
class BatchEnsemble(RankOne):
    """An ensemble whose members share most of their weights (Wen et al., 2020).

    The kernel of member k is W * (r_k s_k'): one factor for each row and column of W,
    which has the last axis as its columns. Its bias is its own. So `size` members have
    hardly more weights than one network, and a step of training costs what a step of
    one costs: the rows of a batch are split among the members, in order, in parts that
    differ by one row at most. Every layer of a model needs the same `size`, batches
    should be shuffled and have at least `size` rows, and no layer may see other rows
    than those of the batch, as where two branches are joined along the first axis.

    There is no density, so there is no KL; W has no prior, but takes the weight decay
    of an optimizer. `keras_bdl.predict` takes all members alike, sample number i being
    member i modulo `size`; `model(x)` is the network of the mean weights.

    Args:
        size: number of members, a positive integer.
        spread: positive float, standard deviation of the initial factors around 1.

    Example:

    >>> posterior = keras_bdl.posteriors.BatchEnsemble(4)
    >>> layer = keras_bdl.VariationalDense(10, posterior=posterior)

    Reference: Wen, Tran and Ba, "BatchEnsemble: an alternative approach to efficient
    ensemble and lifelong learning", 2020, section 3.1.
    """

    has_kl = False

    def __init__(self, size: int = 4, spread: float = 0.5) -> None:
        super().__init__(size, spread)

    @property
    def num_draws(self) -> int:
        return self.size

    def particle(self, index: int) -> dict[str, Tensor]:
        """Returns the weights of one member by name, in float32 (or float64)."""
        index = validation.integer("index", index, 0, self.size - 1)
        members = self._means_of_members()
        return {name: value[index] for name, value in members.items()}

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        raise ValueError(
            "The members of a `BatchEnsemble` have no density, and no KL divergence "
            f"from a prior. Received: posterior={self!r}"
        )


@register("rank_one")
class RankOneGaussian(RankOne):
    """Gaussian factors of a shared kernel (Dusenberry et al., 2020).

    The kernel is W * (r s') as in `BatchEnsemble`, with r and s from a mixture of
    `size` Gaussians of independent entries. Their prior is N(1, prior_stddev^2),
    whatever prior the layer has. `kl()` is the mean over the components of their KL
    from it, in nats, which bounds the KL of the mixture. W and the biases are points
    without a prior.

    Args:
        size: number of components, a positive integer. In training they take parts of
            the rows of a batch, in order, as the members of a `BatchEnsemble`.
        spread: positive float, standard deviation of the initial means around 1.
        initial_log_stddev: start of the log standard deviations of factors, from -40 to
            10.
        prior_stddev: positive float, standard deviation of the prior of factors.

    Example:

    >>> posterior = keras_bdl.posteriors.RankOneGaussian(4)
    >>> layer = keras_bdl.VariationalDense(
    ...     10, posterior=posterior, num_examples=60_000
    ... )

    Reference: Dusenberry et al., "Efficient and scalable Bayesian neural nets with
    rank-1 factors", 2020, sections 3.1 and 3.3.
    """

    def __init__(
        self,
        size: int = 4,
        spread: float = 0.1,
        initial_log_stddev: float = -3.0,
        prior_stddev: float = 0.1,
    ) -> None:
        super().__init__(size, spread)
        self.initial_log_stddev = check_log_stddev(initial_log_stddev)
        self.prior_stddev = validation.positive("prior_stddev", prior_stddev)

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        added = super().add_variables(add_weight, means)
        start = keras.initializers.Constant(self.initial_log_stddev)
        self._log_stddevs = {
            name: add_weight(
                name=f"{name}_log_stddev",
                shape=tuple(variable.shape),
                initializer=start,
            )
            for name, variable in added.items()
            if not name.endswith("_offsets")
        }
        return added | {f"{n}_log_stddev": v for n, v in self._log_stddevs.items()}

    def factors(
        self, name: str, numbers: Tensor, seed: keras.random.SeedGenerator
    ) -> Tensor:
        mean = super().factors(name, numbers, seed)
        if name not in self._log_stddevs:
            return mean
        stddev = ops.exp(ops.take(wide(self._log_stddevs[name]), numbers, axis=0))
        shape = (*ops.shape(numbers), *mean.shape[1:])
        return mean + stddev * random.normal(shape, dtype=mean.dtype, seed=seed)

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        total: Tensor = 0.0
        for name, log_stddev in self._log_stddevs.items():
            mean, log_stddev = wide(self._variables[name]), wide(log_stddev)
            terms = divergences.kl_normal_normal_log(
                mean, log_stddev, 1.0, math.log(self.prior_stddev)
            )
            total = total + ops.sum(terms) / self.size
        return total

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initial_log_stddev": self.initial_log_stddev,
            "prior_stddev": self.prior_stddev,
        }
