"""A wrapper that gives the weights of any layer a posterior."""

from collections.abc import Sequence
from typing import Any, Self

import keras

from keras_bdl import maps, priors
from keras_bdl.core import copies, masking, scopes, validation
from keras_bdl.core.finding import flatten_layers
from keras_bdl.core.stochastic import register, stochastic_layers, whole_layers
from keras_bdl.layers.counterparts import check_conversion, obstacle
from keras_bdl.layers.drop_in import VariationalLayer
from keras_bdl.maps.wrapped import check_no_constraint, weights_inside
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


@register
class BayesianWrapper(VariationalLayer, keras.layers.Layer):
    """Any Keras layer, with a posterior over its weights.

    In training every call of the layer runs it with one draw of its weights, which all
    rows of the batch share. Inference runs it with the means. The layer keeps its
    arguments, masks, losses, statistics and dtype policy. `Bayesian` makes it.

    Args:
        layer: Keras layer or model, built or not. It holds the means.
        weights: "matrices" for a posterior over the weights of all layers inside that
            have one of at least two axes, "all" for every trainable weight, or a list
            of names of layers inside. Frozen weights have none.
        prior, posterior, num_examples, kl_weight, initial_log_stddev,
            sample_at_inference, seed: as in `VariationalDense`. The prior takes the
            place of regularizers of these weights.

    Call arguments, input and output shape: those of the layer.

    Raises:
        TypeError: if `layer` is not a Keras layer.
        ValueError: on another wrong argument; if the layer holds keras_bdl layers and
            the posterior is not one of `Particles`; if it has nothing to train, or a
            constraint on a weight; in `fit` and `evaluate` while `num_examples` is
            unknown.

    Example:

    >>> layer = keras_bdl.layers.BayesianWrapper(
    ...     keras.layers.Bidirectional(keras.layers.LSTM(8)), num_examples=60_000
    ... )
    >>> outputs = layer(keras.ops.ones((2, 5, 3)))

    Reference: Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight uncertainty in
    neural networks", 2015, section 3.2.
    """

    method = None  # `to_bayesian` takes it for what has no other counterpart
    wraps_any_layer = True
    draws_at_once = True
    weight_map = maps.Wrapped()
    # A sample may not be a part of the rows: nothing is known about the arguments.
    takes_shared_inputs = False
    keeps_rows = False
    NO_MATRIX = "has no trained matrix of weights"
    NO_WEIGHT = "has no trained weight"

    def __init__(
        self,
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
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                f"Expected `layer` to be a Keras layer. Received: layer={layer!r}"
            )
        inside = whole_layers(layer)
        if inside and not getattr(posterior, "of_state", False):
            raise ValueError(
                "Expected `layer` without keras_bdl layers, whose weights would have "
                f"two posteriors. Received: layer={layer.name!r}, which holds "
                f"{inside[0].name!r}"
            )
        for name in ("estimator", "bias_posterior"):
            if name in kwargs:
                raise ValueError(
                    f"`BayesianWrapper` takes no `{name}`: it draws all weights of the "
                    f"layer once for a batch. Received: {name}={kwargs[name]!r}"
                )
        # With another policy Keras would round the inputs and the weights here.
        policy = {"dtype": layer.dtype_policy.variable_dtype, "autocast": False}
        kwargs = {k: v for k, v in kwargs.items() if k != "dtype"}
        super().__init__(
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            initial_log_stddev=initial_log_stddev,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **policy,
            **kwargs,
        )
        if self.posterior.splits_rows:
            raise ValueError(
                "The members of this posterior take parts of the rows of layers that "
                "are known: convert the layers by `keras_bdl.to_bayesian`, or use "
                f"`keras_bdl.Ensemble`. Received: posterior={self.posterior!r}"
            )
        self.layer = layer
        self.which = _checked_weights(weights, layer)
        self.supports_masking = True
        self._chosen: dict[str, keras.Variable] = {}
        if layer.built:
            self.build(None)

    @property
    def chosen(self) -> dict[str, keras.Variable]:
        """The weights of the layer that have a posterior, by name."""
        return self._chosen

    def build(self, input_shape: Any = None) -> None:
        if self.built:
            return
        if not self.layer.built and input_shape is not None:
            self.layer.build(input_shape)
        found = self.weights_of(self.layer)
        if not found:
            raise ValueError(
                f"Layer '{self.layer.name}' has no weight to give a posterior: nothing "
                f"in it is trained, or weights={self.which!r} chooses none. "
                f"Received: layer={self.layer!r}"
            )
        if not isinstance(self.which, str):
            self.which = list(found)  # names of layers are others in a copy
        regularizers = {name: variable.regularizer for name, variable in found.items()}
        check_no_constraint(found.values())
        for variable in found.values():
            variable.regularizer = None
        # Keras would track the dict, and with it the variables of the layer again.
        object.__setattr__(self, "_chosen", found)
        super().build(None)
        self.posterior.regularize(regularizers)

    def weights_of(self, layer: keras.layers.Layer) -> dict[str, keras.Variable]:
        """Returns the weights that have a posterior, of a layer like the one inside."""
        return weights_inside(layer, self.which, self.posterior.of_state)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Metrics of layers. Those of a compiled model inside are of its own `fit`."""
        inside = flatten_layers(self.layer)
        compiled = [m for m in inside if isinstance(m, keras.Model) and m.compiled]
        of_fit = {id(metric) for model in compiled for metric in _metrics_of_fit(model)}
        return [metric for metric in super().metrics if id(metric) not in of_fit]

    def freeze_weights(self) -> None:
        chosen = {id(self.chosen[name]) for name in self.posterior.shapes}
        frozen = () if self.posterior.of_state else flatten_layers(self.layer)
        for inner in frozen:
            if chosen.isdisjoint(map(id, inner.weights)):
                inner.trainable = False  # normalisation runs as at inference
        for variable in self.layer.trainable_variables:
            variable.trainable = False

    def get_build_config(self) -> dict[str, Any] | None:
        return None  # the layer has its own

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Does nothing, because the layer has its own build config."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.built:
            self._build_layer(args, kwargs)
        return super().__call__(*args, **kwargs)

    def _build_layer(self, args, kwargs):
        """Builds the layer in its own way: by a call, on symbols of the arguments."""
        if not self.layer.built:
            args, kwargs = keras.tree.map_structure(_symbol, (args, kwargs))
            self.layer(*args, **kwargs)
        self.build(None)

    def prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def call_mean(self, inputs: Any, **arguments: Any) -> Any:
        if self.posterior.has_mean:
            return super().call_mean(inputs, **arguments)
        outputs, masks = self.call_each(inputs, **arguments)
        means = keras.tree.map_structure(lambda y: keras.ops.mean(y, axis=0), outputs)
        return masking.put_masks(means, masks)

    def call_each(self, inputs: Any, **arguments: Any) -> tuple[Any, list[Any]]:
        """Returns the outputs for all draws of a posterior of finitely many.

        Losses of layers, such as activity regularizers, are left out.

        Args:
            inputs: tuple of the positional arguments of `call`.
            **arguments: further arguments of `call`.

        Returns:
            Outputs with a first axis of draws, `(num_draws, batch, ...)`, and the
            masks of their leaves, each a tensor or None.
        """
        count = self.posterior.num_draws
        with scopes.SamplingScope(0, 0, num_samples=count):
            weights = self._narrow(self.drawn_weights(self.noise, count))
        shape: list[Any] = []

        def of_one(draw):
            outputs = self.weight_map.apply(self, inputs, draw, **arguments)
            outputs, masks = masking.take_masks(outputs)
            structure = keras.tree.map_structure(lambda _: 0, outputs)
            shape[:] = [structure, [mask is not None for mask in masks]]
            masks = [mask for mask in masks if mask is not None]
            return keras.tree.flatten(outputs) + masks

        with scopes.KLAddedElsewhere():
            if any(x.sample_at_inference for x in stochastic_layers(self.layer)):
                # The state of their noise cannot leave a loop of the backend.
                draws = [
                    {n: w[i] for n, w in weights.items()} for i in range(count or 0)
                ]
                found = [keras.ops.stack(y) for y in zip(*map(of_one, draws))]
            else:
                found = keras.ops.map(of_one, weights)
        structure, masked = shape
        masks = iter(found[len(masked) :])
        outputs = keras.tree.pack_sequence_as(structure, found[: len(masked)])
        return outputs, [next(masks)[0] if has else None for has in masked]

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return self.call_in_mode(args, training, is_training=training, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        if not self.layer.supports_masking:
            return None
        if isinstance(inputs, tuple):
            # Keras passes the tuple `*args` of `call`, and that of its masks.
            if not inputs:
                return None
            inputs, previous_mask = inputs[0], previous_mask[0]
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        if any(shape is not None for shape in (*args, *kwargs.values())):
            return self.layer.compute_output_shape(*args, **kwargs)
        # A summary asks by the shape of `build`, which needs none here.
        if hasattr(self.layer, "output_shape"):
            return self.layer.output_shape
        raise NotImplementedError

    # Conversion

    @classmethod
    def replaces(cls, layer: keras.layers.Layer) -> bool:
        return False  # conversion wraps what has no other counterpart

    @classmethod
    def obstacle(cls, layer: keras.layers.Layer) -> str | None:
        if whole_layers(layer):
            return "holds keras_bdl layers"
        for inner in flatten_layers(layer):
            if isinstance(inner, keras.layers.SpectralNormalization):
                return "assigns the weights of the layer inside of it"
            reason = obstacle(inner)
            if reason is not None:
                return (
                    reason if inner is layer else f"holds {inner.name}, which {reason}"
                )
        if not weights_inside(layer):
            return cls.NO_MATRIX if layer.trainable_weights else cls.NO_WEIGHT
        return None

    @classmethod
    def from_keras(cls, layer: keras.layers.Layer, **options: Any) -> Self:
        """Wraps a copy of a built layer.

        Args:
            layer: built Keras layer.
            **options: arguments of this class, such as `num_examples`.
        """
        return cls(copies.copied(layer), **options)

    def posterior_as_prior(self, layer: keras.layers.Layer | None = None) -> Self:
        if layer is None:
            return super().posterior_as_prior()
        self.check_can_be_prior()
        copy = self.around(layer, prior=priors.NormalPerWeight(), num_examples=None)
        return self.as_prior_of(copy)

    def with_same_means(self, **options: Any) -> Self:
        return self.around(copies.copied(self.layer), **options)

    def around(self, layer: keras.layers.Layer, **options: Any) -> Self:
        """Returns a wrapper of another layer, by the arguments of this one.

        Args:
            layer: copy of the layer of this wrapper.
            **options: arguments to change.
        """
        config = {**self._own_config(), "prior": self.prior, **options}
        return type(self)(layer, **config)

    def to_keras(
        self, weights: str = "mean", seed: int | None = None
    ) -> keras.layers.Layer:
        """Returns a copy of the layer with posterior-mean or sampled weights.

        Raises:
            ValueError: if `weights` is unknown, or the layer is not built or has no
                config.
        """
        check_conversion(self, weights)
        return self.assign_to(copies.copied(self.layer), weights, seed)

    def assign_to(
        self,
        copy: keras.layers.Layer,
        weights: str,
        seed: int | None,
        index: int | None = None,
    ) -> keras.layers.Layer:
        """Gives a copy of the layer posterior-mean or sampled weights; returns it."""
        if index is not None:
            values = self.posterior.particle(index)
        elif weights == "sample":
            values = self.drawn_weights(keras.random.SeedGenerator(seed))
        else:
            values = self.inference_means()
        variables = self.weights_of(copy)
        for name, value in values.items():
            copies.assign_copy(variables[name], value)
        if not (self.posterior.trains_means or self.posterior.of_state):
            copies.make_trainable(copy)  # it was frozen for the posterior
        return copy

    def _own_config(self):
        """Returns the config without the layer."""
        # Names, because the weights may be frozen in the file.
        config = {**super().get_config(), "weights": list(self.chosen) or self.which}
        unused = ("dtype", "estimator", "bias_posterior")
        return {name: value for name, value in config.items() if name not in unused}

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**self._own_config(), "layer": layer}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def _checked_weights(weights, layer):
    """Returns a valid argument `weights`, and raises an error for any other."""
    if isinstance(weights, str):
        return validation.choice("weights", weights, ("matrices", "all"))
    if not isinstance(weights, (list, tuple)) or not weights:
        raise TypeError(
            "Expected `weights` to be 'matrices', 'all' or a list of names of layers. "
            f"Received: weights={weights!r}"
        )
    names = {inner.name for inner in flatten_layers(layer)}
    known = names.union(weights_inside(layer, weights) if layer.built else ())
    unknown = [name for name in weights if name not in known]
    if unknown and layer.built:
        raise ValueError(
            f"Expected `weights` to name layers inside '{layer.name}', of "
            f"{sorted(names)}. Received: weights={weights!r}"
        )
    return list(weights)


def _metrics_of_fit(model):
    """Returns the metrics that a model has because it is compiled."""
    inside = {
        id(metric)
        for layer in flatten_layers(model)
        if not isinstance(layer, keras.Model)
        for metric in layer.metrics
    }
    return [metric for metric in model.metrics if id(metric) not in inside]


def _symbol(leaf: Any) -> Any:
    """Returns a symbol of the shape of a tensor, and other arguments as they are."""
    if keras.ops.is_tensor(leaf) and not isinstance(leaf, keras.KerasTensor):
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        return keras.KerasTensor(leaf.shape, dtype=dtype)
    return leaf
