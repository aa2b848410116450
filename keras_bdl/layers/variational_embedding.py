"""An embedding with a posterior over its table."""

import math
from typing import Any

import keras
import numpy as np
from keras import backend, ops

from keras_bdl import maps
from keras_bdl.core.copies import assign_copy
from keras_bdl.core.dtypes import wide
from keras_bdl.core.noise import fold_in
from keras_bdl.core.scopes import SamplingScope
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import ArrayLike, Initializer, Tensor
from keras_bdl.layers.drop_in import VariationalLayer
from keras_bdl.ops import estimators, hashing
from keras_bdl.posteriors import Gaussian, Posterior
from keras_bdl.priors import Prior

# A prediction draws whole tables of up to so many numbers. For a larger one it hashes
# noise of the rows that are looked up, whose number is that of the words in a batch and
# not of the table. The rule is one for every batch, so that a draw is one function.
_DRAWN_TABLE = 2**20
# Training estimates the KL of a larger table by one of so many parts of its rows.
_KL_PARTS = 8


@register
class VariationalEmbedding(VariationalLayer, keras.layers.Embedding):
    """`keras.layers.Embedding` with a posterior over every number of its table.

    In training each row of the batch has its own draw of the table, which all its
    positions look up; by default noise is drawn for the looked-up rows of the table
    alone. Inference uses the table of means. Indices that the data never show keep
    their prior, so a draw for them shows that nothing is known about them.

    Args:
        input_dim, output_dim, embeddings_initializer, mask_zero: as in
            `keras.layers.Embedding`. Regularizers and constraints are refused: the
            prior regularises.
        weights: array `(input_dim, output_dim)` of means to start with, or None.
        estimator: "local_reparameterization" (default: noise of the rows that are
            looked up, one table for every row of the batch), "flipout" (one table with
            random signs of every row) or "reparameterization" (one table per batch).
        prior, num_examples, kl_weight, posterior, initial_log_stddev,
            sample_at_inference, seed: as in `VariationalDense`.

    Input shape: integers `(batch, ...)`. Output shape: `(batch, ..., output_dim)`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalEmbedding(1000, 16, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones((2, 5), dtype="int32"))

    Reference: Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight uncertainty in
    neural networks", 2015; Wen, Vicol, Ba, Tran and Grosse, "Flipout", 2018.
    """

    keras_class = keras.layers.Embedding
    weight_map = maps.Embedding()

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Initializer = "uniform",
        embeddings_regularizer: None = None,
        embeddings_constraint: None = None,
        mask_zero: bool = False,
        weights: ArrayLike | None = None,
        *args: Any,
        prior: str | Prior = "normal",
        posterior: str | Posterior = "gaussian",
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        estimator: str | None = None,
        initial_log_stddev: float | None = None,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            input_dim,
            output_dim,
            embeddings_initializer,
            embeddings_regularizer,
            embeddings_constraint,
            mask_zero,
            None,
            *args,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            estimator=estimator,
            initial_log_stddev=initial_log_stddev,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **kwargs,
        )
        # Keras would build the table before there is a posterior.
        if weights is not None:
            self.build()
            assign_copy(self._embeddings, self._checked_table(weights))

    def _checked_table(self, weights):
        table = weights[0] if isinstance(weights, (list, tuple)) else weights
        shape = tuple(np.shape(table))
        if shape != (self.input_dim, self.output_dim):
            raise ValueError(
                "Expected `weights` to be a table "
                f"{(self.input_dim, self.output_dim)}, or a list of one. "
                f"Received: weights of shape {shape}"
            )
        return table

    def build(self, input_shape: Any = None) -> None:
        if not self.built:
            super().build(input_shape)

    def resolved_estimator(
        self, input_shape: tuple[int | None, ...] | None = None
    ) -> str:
        if self.estimator is None and self.posterior.has_rows:
            return "local_reparameterization"
        return super().resolved_estimator(input_shape)

    def call_mean(self, inputs: Tensor, **arguments: Any) -> Tensor:
        if not self.posterior.has_rows:
            return super().call_mean(inputs, **arguments)
        return self._rows(lambda table: ops.take(table, inputs, axis=0))

    def call_noisy(self, inputs: Tensor, **arguments: Any) -> Tensor:
        if self.resolved_estimator(inputs.shape) != "local_reparameterization":
            return super().call_noisy(inputs, **arguments)
        outputs = self._rows(
            lambda table: ops.take(table, inputs, axis=0),
            lambda size: estimators.lookup_noise(
                self._numbers_of_rows(inputs), size, self._wide_dtype(), self.noise
            ),
        )
        directions = self._narrow(self.posterior.directions())
        return outputs + self._along(directions, inputs) if directions else outputs

    def call_sampled(
        self, inputs: Tensor, scope: SamplingScope, **arguments: Any
    ) -> Tensor:
        by_tables = id(self) in scope.moment_layers or self.posterior.directions()
        if by_tables or self._is_small() or not self.posterior.has_rows:
            return super().call_sampled(inputs, scope, **arguments)
        shared = id(self) in scope.shared_layers
        parts = (1 if shared else scope.num_samples, -1)
        samples = ops.expand_dims(ops.arange(scope.num_samples), -1)
        keys = ops.expand_dims(fold_in(self.noise.next(), samples), 1)
        numbers = ops.reshape(self._numbers_of_rows(inputs), parts)

        def take(table):
            return ops.reshape(
                ops.take(table, inputs, axis=0), (*parts, table.shape[-1])
            )

        def noise(size):
            drawn = hashing.normal_by_index(keys, numbers, size)
            return ops.cast(drawn, self._wide_dtype())

        outputs = self._rows(take, noise)
        return ops.reshape(outputs, (-1, *ops.shape(inputs)[1:], self.output_dim))

    def _rows(self, take, noise=None):
        rows = self.posterior.rows(self.linear_map.kernel, take, noise)
        return ops.cast(rows, self.compute_dtype)

    def training_kl(self) -> Tensor:
        if self._is_small() or type(self.posterior) is not Gaussian:
            return self.kl()
        # Rows are dealt to parts, neighbours to different ones, because frequent words
        # are often neighbours. The KL of one part stands for all.
        count = math.ceil(self.input_dim / _KL_PARTS)
        part = keras.random.randint((), 0, _KL_PARTS, seed=self.noise)
        numbers = ops.arange(count) * _KL_PARTS + part

        def rows(table):
            inside = ops.minimum(numbers, self.input_dim - 1)
            return ops.take(wide(table), inside, axis=0)

        name = self.linear_map.kernel
        mean, log_stddev = map(rows, self.posterior.moments()[name])
        shape = self.posterior.shapes[name]
        of_prior = {
            key: rows(value) if tuple(value.shape) == shape else value
            for key, value in self.prior.of(name, self._prior_variables).items()
        }
        values = self.prior.kl(mean, log_stddev, of_prior, self.noise)
        exists = ops.expand_dims(numbers < self.input_dim, -1)
        return _KL_PARTS * ops.sum(ops.where(exists, values, 0.0))

    def _wide_dtype(self):
        return backend.result_type(self.variable_dtype, "float32")

    def _is_small(self):
        return self.input_dim * self.output_dim <= _DRAWN_TABLE

    def _numbers_of_rows(self, inputs):
        """Counts from the first row where the inputs count from the end."""
        return ops.where(inputs < 0, inputs + self.input_dim, inputs)

    def compute_mask(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor | None:
        mask = super().compute_mask(inputs, mask)
        scope = SamplingScope.current()
        if mask is None or scope is None or id(self) not in scope.shared_layers:
            return mask
        # The outputs belong to all samples, which share the inputs.
        return ops.tile(mask, (scope.num_samples,) + (1,) * (len(mask.shape) - 1))
