"""An embedding with a posterior over its table."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl import maps
from keras_bdl.core.copies import assign_copy
from keras_bdl.core.scopes import SamplingScope
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import ArrayLike, Initializer, Tensor
from keras_bdl.layers.drop_in import VariationalLayer
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


@register
class VariationalEmbedding(VariationalLayer, keras.layers.Embedding):
    """`keras.layers.Embedding` with a posterior over every number of its table.

    In training each row of the batch uses one draw of the table at all its positions,
    by default with random signs of its own (flipout). Inference uses the table of
    means. Indices that the data never show keep their prior, so a draw for them shows
    that nothing is known about them.

    Args:
        input_dim, output_dim, embeddings_initializer, mask_zero: as in
            `keras.layers.Embedding`. Regularizers and constraints are refused: the
            prior regularises.
        weights: array `(input_dim, output_dim)` of means to start with, or None.
        prior, num_examples, kl_weight, posterior, estimator, initial_log_stddev,
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

    def compute_mask(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor | None:
        mask = super().compute_mask(inputs, mask)
        scope = SamplingScope.current()
        if mask is None or scope is None or id(self) not in scope.shared_layers:
            return mask
        # The outputs belong to all samples, which share the inputs.
        return ops.tile(mask, (scope.num_samples,) + (1,) * (len(mask.shape) - 1))
