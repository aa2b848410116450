"""Tensor products over any axes with a kernel that has a posterior."""

from typing import Any

import keras

from keras_bdl import maps
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Activation, Initializer
from keras_bdl.layers.drop_in import VariationalLayer
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


@register
class VariationalEinsumDense(VariationalLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` with a posterior over kernel and bias.

    Positional arguments are those of `keras.layers.EinsumDense`, which this layer can
    replace. Axes that are in the inputs and not in the kernel are positions. Positions
    share a draw of the weights, as in `VariationalDense`.

    Args:
        equation, output_shape, activation, bias_axes, kernel_initializer,
            bias_initializer: as in `keras.layers.EinsumDense`. The first axis of inputs
            and outputs is that of the rows, which the kernel does not have.
            Regularizers and constraints are refused: the prior regularises.
        prior, num_examples, kl_weight, posterior, estimator, initial_log_stddev,
            bias_posterior, sample_at_inference, seed: as in `VariationalDense`.

    Input and output shape: as in `keras.layers.EinsumDense`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalEinsumDense(
    ...     "abc,cd->abd", output_shape=(None, 64), bias_axes="d", num_examples=60_000
    ... )
    >>> outputs = layer(keras.ops.ones((2, 5, 3)))

    Reference: Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight uncertainty in
    neural networks", 2015; Wen, Vicol, Ba, Tran and Grosse, "Flipout", 2018.
    """

    keras_class = keras.layers.EinsumDense
    weight_map = maps.Einsum()

    def __init__(
        self,
        equation: str,
        output_shape: int | tuple[int | None, ...],
        activation: Activation = None,
        bias_axes: str | None = None,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        *args: Any,
        prior: str | Prior = "normal",
        posterior: str | Posterior = "gaussian",
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        estimator: str | None = None,
        initial_log_stddev: float | None = None,
        bias_posterior: bool = True,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            equation,
            output_shape,
            activation,
            bias_axes,
            kernel_initializer,
            bias_initializer,
            *args,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            estimator=estimator,
            initial_log_stddev=initial_log_stddev,
            bias_posterior=bias_posterior,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **kwargs,
        )
