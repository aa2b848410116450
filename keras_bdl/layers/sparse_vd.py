"""Sparse variational dropout: layers that learn which weights they need.

q(w) = N(theta, sigma^2) under a log-uniform prior. Weights of large
alpha = sigma^2 / theta^2 are noise and are removed: Molchanov, Ashukha and
Vetrov, "Variational dropout sparsifies deep neural networks", 2017.
"""

from typing import Any

import keras
from keras import ops

from keras_bdl import maps
from keras_bdl.core import validation
from keras_bdl.core.renamed import renamed
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Activation, Initializer, Tensor
from keras_bdl.layers.counterparts import of_posterior
from keras_bdl.layers.drop_in import DropInLayer
from keras_bdl.layers.posterior_layer import check_estimator
from keras_bdl.posteriors import SparseVD


class SparseVDLayer(DropInLayer):
    """Mixin of sparse layers, with their posterior and pruned inference."""

    method = "sparse_vd"
    bias_log_stddev = None  # the bias is deterministic
    posterior: SparseVD

    def __init__(
        self,
        *args: Any,
        kl_form: str = "exact",
        threshold: float = 3.0,
        prune_in_training: bool = False,
        estimator: str | None = "local_reparameterization",
        initial_log_stddev: float = -5.0,
        **kwargs: Any,
    ) -> None:
        for name in ("prior", "posterior", "bias_posterior"):
            if name in kwargs:
                raise ValueError(
                    f"`{type(self).__name__}` takes no `{name}`: its prior is "
                    "log-uniform and its bias deterministic. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        super().__init__(*args, prior="log_uniform", **kwargs)
        self.posterior = SparseVD(
            kl_form, threshold, prune_in_training, initial_log_stddev
        )
        self.estimator = check_estimator(estimator)

    kl_form, threshold, prune_in_training, initial_log_stddev = map(
        of_posterior,
        ("kl_form", "threshold", "prune_in_training", "initial_log_stddev"),
    )

    def log_alpha(self) -> Tensor:
        """Returns log(sigma^2 / theta^2) of every weight, in the kernel's shape.

        It is float32. For a mean of 0 it is finite, and above 90 if stddev >= exp(-40).
        """
        return self.posterior.log_alphas()[self.linear_map.kernel]

    def pruned_kernel(self) -> Tensor:
        """Returns the means, 0 if log alpha has reached the threshold."""
        return self.mean_kernel()

    def sparsity(self) -> float:
        """Returns the share of pruned weights, from 0 to 1, without biases."""
        pruned = ops.cast(self.log_alpha() >= self.threshold, "float32")
        return float(ops.convert_to_numpy(ops.mean(pruned)))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["prior"]
        return {**config, **self.posterior.get_config(), "estimator": self.estimator}


class _Conv(SparseVDLayer):
    weight_map = maps.Conv()

    @renamed(kl="kl_form")
    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        groups: int = 1,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        *args: Any,
        kl_form: str = "exact",
        threshold: float = 3.0,
        prune_in_training: bool = False,
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        estimator: str | None = "local_reparameterization",
        initial_log_stddev: float = -5.0,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        validation.integer("filters", filters, least=1)
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding,
            data_format,
            dilation_rate,
            groups,
            activation,
            use_bias,
            kernel_initializer,
            bias_initializer,
            *args,
            kl_form=kl_form,
            threshold=threshold,
            prune_in_training=prune_in_training,
            num_examples=num_examples,
            kl_weight=kl_weight,
            estimator=estimator,
            initial_log_stddev=initial_log_stddev,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **kwargs,
        )


_DOC = """`keras.layers.{name}` that prunes weights with too much noise.

    Positional arguments are those of `keras.layers.{name}`, which this layer can
    replace. Training learns a mean theta and a variance sigma^2 per weight under a
    log-uniform prior. Weights with log(sigma^2 / theta^2) >= `threshold` are 0 at
    inference.
    Train with `callbacks.sparse_vd_schedule`, read `sparsity_report(model)`, and
    make the small plain Keras model with `compress(model)`.

    Args:
        {arguments}: as in `keras.layers.{name}`. Regularizers and constraints
            are refused.
        kl_form: "exact" or "approximate", the fit of Molchanov et al. (2017), eq. 14.
        threshold: smallest log alpha at which a weight is pruned; 3 is alpha = 20,
            a binary dropout rate above 0.95.
        prune_in_training: whether the means of pruned weights are also 0 in
            training. Their noise stays.
        estimator: "local_reparameterization" (default, as in the paper; its noise
            is independent for every position), "flipout", "reparameterization",
            or None for the choice of `VariationalDense`.
        initial_log_stddev: initial log standard deviation; -5 is log sigma^2 =
            -10.
        num_examples, kl_weight, sample_at_inference, seed: as in
            `VariationalDense`.

    The bias is deterministic. `kl()` is in nats, up to the infinite constant of
    the improper prior, and falls to 0 as weights turn to noise. Samples (in
    training, with `sample_at_inference=True`, by `keras_bdl.predict`) come from the
    whole posterior, with the noise of pruned weights.

    Input and output shape: as in `keras.layers.{name}`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.SparseVD{name}({example}, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones({shape}))
    >>> layer.sparsity()

    Reference: Molchanov, Ashukha and Vetrov, "Variational dropout sparsifies deep
    neural networks", 2017, eqs. 11 and 14.
    """
_CONV_ARGUMENTS = """filters, kernel_size, strides, padding, data_format, dilation_rate,
            groups, activation, use_bias, kernel_initializer, bias_initializer"""


def _conv_doc(rank, shape):
    return _DOC.format(
        name=f"Conv{rank}D", arguments=_CONV_ARGUMENTS, example="8, 3", shape=shape
    )


@register
class SparseVDDense(SparseVDLayer, keras.layers.Dense):
    __doc__ = _DOC.format(
        name="Dense",
        arguments="units, activation, use_bias, kernel_initializer, bias_initializer",
        example="10",
        shape=(2, 5),
    )
    keras_class = keras.layers.Dense
    weight_map = maps.Dense()

    @renamed(kl="kl_form")
    def __init__(
        self,
        units: int,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        *args: Any,
        kl_form: str = "exact",
        threshold: float = 3.0,
        prune_in_training: bool = False,
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        estimator: str | None = "local_reparameterization",
        initial_log_stddev: float = -5.0,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation,
            use_bias,
            kernel_initializer,
            bias_initializer,
            *args,
            kl_form=kl_form,
            threshold=threshold,
            prune_in_training=prune_in_training,
            num_examples=num_examples,
            kl_weight=kl_weight,
            estimator=estimator,
            initial_log_stddev=initial_log_stddev,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **kwargs,
        )


@register
class SparseVDConv1D(_Conv, keras.layers.Conv1D):
    __doc__ = _conv_doc(1, (2, 16, 3))
    keras_class = keras.layers.Conv1D


@register
class SparseVDConv2D(_Conv, keras.layers.Conv2D):
    __doc__ = _conv_doc(2, (2, 16, 16, 3))
    keras_class = keras.layers.Conv2D


@register
class SparseVDConv3D(_Conv, keras.layers.Conv3D):
    __doc__ = _conv_doc(3, (2, 8, 8, 8, 3))
    keras_class = keras.layers.Conv3D


SparseVDConv = SparseVDConv2D
