"""A network whose outputs are linear in its weights, around the trained ones."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_bdl import maps
from keras_bdl.core import scopes, validation
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Tensor
from keras_bdl.graphs.linearized import (
    Call,
    jacobians,
    linear_layers,
    linearized,
)
from keras_bdl.layers.last_layer import probit_logits
from keras_bdl.layers.wrapper import BayesianWrapper


@register
class LinearizedNetwork(BayesianWrapper):
    """A network of which a draw of weights changes the outputs to first order.

    f(x) + J(x) (w - m), with the trained weights m and the Jacobian J of the outputs
    there. For a Gaussian posterior of w, outputs are Gaussian. Its mean is the network
    as it was trained. `fit_laplace` makes it: Laplace's approximation is a posterior of
    this model, and of the network itself only near m.

    Args:
        layer: built Sequential or functional model of one output `(batch, units)`.
        weights, **kwargs: as in `BayesianWrapper`. The weights are of Dense layers and
            convolutions.
        probit: whether the mean call gives logits whose softmax is about the
            predictive mean, without sampling.

    Reference: Immer, Korzepa and Bauer, "Improving predictions of Bayesian neural nets
    via local linearization", 2021, eq. 8.
    """

    keeps_rows = True

    @property
    def takes_shared_inputs(self) -> bool:  # type: ignore[override]  # of one tensor
        """Whether the inputs are one tensor, which all samples may share."""
        return len(keras.tree.flatten(self.layer.inputs)) == 1

    def __init__(
        self,
        layer: keras.Model,
        weights: str | Sequence[str] = "all",
        probit: bool = False,
        **kwargs: Any,
    ) -> None:
        self.probit = validation.boolean("probit", probit)
        super().__init__(layer, weights, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self.trainable = False  # another network would need another posterior

    def call_mean(self, inputs: Any, **arguments: Any) -> Tensor:
        if not self.probit:
            return self.layer(*inputs, training=False)
        mean, factor = self.moments(*inputs)
        covariance = ops.matmul(factor, ops.swapaxes(factor, 1, 2))
        return ops.cast(probit_logits(mean, covariance), self.layer.compute_dtype)

    def call_noisy(self, inputs: Any, **arguments: Any) -> Tensor:
        return self.call_mean(inputs)  # nothing in it is trained

    def call_sampled(
        self, inputs: Any, scope: scopes.SamplingScope, **arguments: Any
    ) -> Tensor:
        shared, count = id(self) in scope.shared_layers, scope.num_samples
        means = self.inference_means()
        drawn = self.drawn_weights(self.noise, count)
        changes = {name: weights - means[name] for name, weights in drawn.items()}
        outputs, calls, names = linearization(self, inputs[0])
        units, parts = outputs.shape[-1], 1 if shared else count
        rows = ops.shape(outputs)[0] // parts
        total = ops.reshape(outputs, (parts, rows, units))
        product = "sbk,cbk->sbc" if shared else "sbk,csbk->sbc"
        rows_of = (rows,) if shared else (count, rows)
        for call in calls:
            own = {n: changes[name] for n, name in names[id(call.layer)].items()}
            change = call.weight_map.affine_per_sample(
                call.layer, call.inputs, own, shared
            )
            change = ops.reshape(change, (count, rows, -1))
            gradients = ops.reshape(call.gradients, (units, *rows_of, -1))
            total = total + ops.einsum(product, change, gradients)
        return ops.cast(ops.reshape(total, (-1, units)), self.layer.compute_dtype)

    # Moments of the outputs, of which single rows are drawn

    def supports_moments(
        self, input_shape: tuple[int | None, ...] | None = None
    ) -> bool:
        return self.takes_shared_inputs

    def moments(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Returns the mean of the outputs and a triangular root of their covariance.

        Args:
            inputs: inputs of the network.

        Returns:
            Tensors `(batch, units)` and `(batch, units, units)`.
        """
        outputs, calls, names = linearization(self, inputs)
        factors = self.posterior.output_factors(jacobians(calls, names))
        covariance = sum(ops.matmul(f, ops.swapaxes(f, 1, 2)) for f in factors)
        # A part in a million keeps the root finite where outputs depend on each other.
        diagonal = ops.diagonal(covariance, axis1=1, axis2=2)
        least = 1e-6 * ops.max(diagonal, axis=-1) + 1e-30
        identity = ops.eye(outputs.shape[-1], dtype=covariance.dtype)
        covariance = covariance + ops.reshape(least, (-1, 1, 1)) * identity
        return outputs, ops.cholesky(covariance)

    def moment_shapes(self, input_shape: tuple) -> tuple[tuple, tuple]:
        units = self.layer.output_shape[-1]
        return (None, units), (None, units, units)

    def sample_moments(
        self, mean: Tensor, stddev: Tensor, scope: scopes.SamplingScope
    ) -> Tensor:
        scope.restart(self.noise)
        units = mean.shape[-1]
        noise = keras.random.normal(
            (scope.num_samples, units), dtype=stddev.dtype, seed=self.noise
        )
        outputs = ops.cast(mean, stddev.dtype) + ops.einsum(
            "bcd,sd->sbc", stddev, noise
        )
        return ops.cast(ops.reshape(outputs, (-1, units)), self.layer.compute_dtype)

    def assign_to(
        self,
        copy: keras.layers.Layer,
        weights: str,
        seed: int | None,
        index: int | None = None,
    ) -> keras.layers.Layer:
        """Gives a copy of the network its trained weights; returns it.

        Raises:
            ValueError: if `weights` is not "mean".
        """
        if weights != "mean":
            raise ValueError(
                "A draw of a linearised network is no network with other weights: "
                "expected weights='mean', or a fit with prediction='weights'. "
                f"Received: weights={weights!r}"
            )
        if self.probit:
            raise ValueError(
                "No plain network computes the mean of one with `probit=True`; fit "
                "with `probit=False`, or export it. "
                f"Received: layer={self.name!r}"
            )
        return super().assign_to(copy, weights, seed, index)

    def _own_config(self):
        return {**super()._own_config(), "probit": self.probit}


def linearization(
    wrapper: BayesianWrapper, inputs: Any
) -> tuple[Tensor, list[Call], dict[int, dict[str, str]]]:
    """Returns outputs, calls, and names of sampled weights.

    Args:
        wrapper: wrapper of a network.
        inputs: inputs of the network.

    Returns:
        Outputs and calls as in `graphs.linearized.linearized`, and names by layer id
        and the layer's own names.
    """
    owners = {id(variable): name for name, variable in wrapper.chosen.items()}
    names: dict[int, dict[str, str]] = {}
    layers = []
    for layer in linear_layers(wrapper.layer):
        variables = maps.of(layer).variables(layer)
        own = {n: owners[id(v)] for n, v in variables.items() if id(v) in owners}
        if own:
            names[id(layer)] = own
            layers.append(layer)
    return *linearized(wrapper.layer, inputs, layers), names
