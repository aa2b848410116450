"""`Bayesian`: a posterior over the weights of any layer or model as it is."""

import os
from collections.abc import Sequence
from typing import Any, Self

import keras

from keras_bdl.core import copies, finding, masking, scopes
from keras_bdl.core.stochastic import PACKAGE, whole_layers
from keras_bdl.core.typing import Tensor, Weights
from keras_bdl.graphs.copy import own_copy
from keras_bdl.layers.wrapper import BayesianWrapper
from keras_bdl.ops import uncertainty
from keras_bdl.posteriors import Posterior
from keras_bdl.prediction.export import mark_called
from keras_bdl.prediction.predict import resolve_outputs
from keras_bdl.priors import Prior


@keras.saving.register_keras_serializable(PACKAGE)
class BayesianModel(keras.Model):
    """Any Keras model, with a posterior over its weights, as `Bayesian` makes it.

    `model(x)` and `predict` are those of the posterior-mean network.
    `keras_bdl.predict` samples it.

    Args:
        model: Keras model, which holds the means, or a wrapper of one.
        name: name of this model, or None.
        **options: arguments of `keras_bdl.layers.BayesianWrapper`.
    """

    def __init__(
        self,
        model: keras.Model | BayesianWrapper,
        name: str | None = None,
        **options: Any,
    ) -> None:
        bayesian = model if isinstance(model, BayesianWrapper) else None
        model = bayesian.layer if bayesian else model
        # By the policy of the model `compile` scales the loss; the inputs are left for
        # it to cast.
        policy = getattr(model, "dtype_policy", None)
        super().__init__(dtype=policy, autocast=False, name=name)
        options = {k: v for k, v in options.items() if k != "dtype"}
        self.bayesian = bayesian or BayesianWrapper(model, **options)
        self.supports_masking = True
        shape = _input_shape(model) if model.built else None
        if shape is not None:
            self.build(shape)

    @property
    def wrapped_model(self) -> keras.Model:
        """The model of the means."""
        return self.bayesian.layer

    def build(self, input_shape: Any) -> None:
        """Records the shape. The model inside builds itself when it is called."""

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        sampled = scopes.SamplingScope.current() is not None
        if self.bayesian.posterior.has_mean or training or sampled:
            return self.bayesian(inputs, training=training, **kwargs)
        outputs, masks = self.bayesian.call_each((inputs,), **kwargs)
        return self.mean_of_draws(outputs, masks)

    def mean_of_draws(self, outputs: Any, masks: list[Any]) -> Any:
        """Returns the outputs that predict what those of all draws do on average.

        Args:
            outputs: outputs of each draw, `(num_draws, batch, ...)`.
            masks: masks of the leaves of the outputs, each a tensor or None.
        """
        kinds = resolve_outputs(self, "auto")
        leaves = keras.tree.flatten(outputs)
        kinds = kinds if isinstance(kinds, tuple) else (kinds,) * len(leaves)
        means = list(map(uncertainty.mean_outputs, leaves, kinds))
        means = keras.tree.pack_sequence_as(outputs, means)
        return masking.put_masks(means, masks)

    def kl(self) -> Tensor:
        """Returns KL(posterior || prior) in nats over all weights, a float32 scalar."""
        return self.bayesian.kl()

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped_model.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.bayesian.compute_mask(inputs, previous_mask)

    def export(
        self, filepath: str | os.PathLike, format: str = "tf_saved_model", **kwargs: Any
    ) -> None:
        """Exports the posterior-mean network, as in `keras.Model.export`.

        `keras_bdl.export` adds endpoints of the posterior predictive.
        """
        mark_called(self)
        return super().export(filepath, format=format, **kwargs)

    def to_keras(
        self,
        weights: Weights = "mean",
        seed: int | None = None,
        index: int | None = None,
    ) -> keras.Model:
        """Returns a plain Keras model with these weights; see `keras_bdl.to_keras`.

        Args:
            weights: "mean" or "sample".
            seed: integer for a repeatable sample, or None.
            index: number of a draw, where there are finitely many.
        """
        copies.check_weights(weights)
        if index is not None and weights != "sample":
            raise ValueError(
                "Expected `weights='sample'` beside `index`. "
                f"Received: weights={weights!r}, index={index!r}"
            )
        copy = own_copy(self.wrapped_model, plain=True)
        copy = self.bayesian.assign_to(copy, weights, seed, index)
        if not whole_layers(copy):
            return copy
        from keras_bdl.conversion.convert import to_keras  # which imports this module

        return to_keras(copy, weights, seed)

    def prior_from_posterior(self) -> Self:
        """Returns a copy, not compiled, as in `keras_bdl.prior_from_posterior`."""
        layer = self.bayesian.posterior_as_prior(own_copy(self.wrapped_model))
        return type(self)(layer, name=self.name)

    def get_config(self) -> dict[str, Any]:
        config = self.bayesian.get_config()
        model = config.pop("layer")
        return {**config, "name": self.name, "model": model}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        model = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**{**config, "model": model})


def _input_shape(model):
    if finding.is_graph(model):
        inputs = finding.graph_input(model)
        return keras.tree.map_structure(lambda tensor: tensor.shape, inputs)
    return (model.get_build_config() or {}).get("input_shape")


def Bayesian(
    layer: keras.layers.Layer,
    weights: str | Sequence[str] = "matrices",
    *,
    prior: str | Prior = "normal",
    posterior: str | Posterior = "gaussian",
    num_examples: int | None = None,
    kl_weight: float = 1.0,
    initial_log_stddev: float | None = None,
    sample_at_inference: bool = False,
    seed: int | None = None,
    name: str | None = None,
) -> keras.layers.Layer:
    """Gives the weights of any Keras layer or model a posterior.

    The layer may be a third party's or the user's own, and needs no config. It is not
    copied: it holds the means, and a posterior that does not train these freezes it. In
    training every call draws its weights once for all rows of the batch.
    `keras_bdl.to_bayesian` puts Bayesian layers in the places of those that have a
    counterpart, which trains with less noise, and wraps the others.

    Args:
        layer: Keras layer or model, built or not.
        weights: "matrices" for a posterior over the weights of all layers inside that
            have one of at least two axes, "all" for every trainable weight, or a list
            of names of layers inside. Frozen weights have none.
        prior, posterior, num_examples, kl_weight, initial_log_stddev,
            sample_at_inference, seed: as in `VariationalDense`. The prior takes the
            place of regularizers of these weights.
        name: name of the wrapper, or None.

    Returns:
        `BayesianModel` for a Keras model, `layers.BayesianWrapper` for another layer.

    Raises:
        TypeError: if `layer` is not a Keras layer.
        ValueError: on another wrong argument; if the layer holds keras_bdl layers and
            the posterior is not one of `Particles`; if it has nothing to train, or a
            constraint on a weight.

    Example:

    >>> model = keras_bdl.Bayesian(keras_model, num_examples=len(x))
    >>> model.compile("adam", loss)
    >>> model.fit(x, y, epochs=10)
    >>> keras_bdl.predict_uncertainty(model, x_test, outputs="logits")

    Reference: Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight uncertainty in
    neural networks", 2015, section 3.2.
    """
    cls = BayesianModel if isinstance(layer, keras.Model) else BayesianWrapper
    return cls(
        layer,
        weights=weights,
        prior=prior,
        posterior=posterior,
        num_examples=num_examples,
        kl_weight=kl_weight,
        initial_log_stddev=initial_log_stddev,
        sample_at_inference=sample_at_inference,
        seed=seed,
        name=name,
    )
