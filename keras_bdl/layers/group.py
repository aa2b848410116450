"""Keras layers that make `EinsumDense` layers, whose weights get posteriors."""

import zlib
from typing import Any, Self

import keras

from keras_bdl import posteriors, priors
from keras_bdl.core import copies, finding, validation
from keras_bdl.core.stochastic import StochasticGroup
from keras_bdl.core.typing import Tensor, Weights
from keras_bdl.layers.bayesian import refuse_options
from keras_bdl.layers.counterparts import (
    check_conversion,
    check_plain,
    obstacle,
    weight_options,
)
from keras_bdl.layers.variational_einsum import VariationalEinsumDense
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


class VariationalGroup(StochasticGroup):
    """Mixin that gives the projections of a Keras layer posteriors of their own.

    Projections are the `keras.layers.EinsumDense` that the Keras layer makes in its
    `build` and keeps in attributes. A `VariationalEinsumDense` takes the place of each.
    The rest is the Keras layer's own code.

    Args:
        *args: positional arguments of the Keras layer.
        prior, posterior, num_examples, kl_weight, estimator, initial_log_stddev,
            bias_posterior, sample_at_inference: arguments of each projection.
        seed: integer or None, for the projections and for the Keras layer.
        **kwargs: keyword arguments of the Keras layer.
    """

    method = "variational"
    keras_class: Any = None
    # Options of the projections; the constructor of Keras sets no projection.
    _options: dict[str, Any]
    _inferred_num_examples: int | None = None

    def __init__(
        self,
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
        super().__init__(*args, seed=seed, **kwargs)
        refuse_options(self)
        options: dict[str, Any] = {
            "prior": priors.get(prior),
            "posterior": posterior,
            "num_examples": num_examples,
            "kl_weight": kl_weight,
            "estimator": estimator,
            "initial_log_stddev": initial_log_stddev,
            "bias_posterior": bias_posterior,
            "sample_at_inference": sample_at_inference,
        }
        if not isinstance(posterior, str):
            options["posterior"] = posteriors.get(posterior)
        # The constructor of a projection checks them, now and not in `build`.
        checked = VariationalEinsumDense("ab,bc->ac", 1, name="x", seed=seed, **options)
        plain = checked.get_config()
        options |= {n: plain[n] for n in options if n not in ("prior", "posterior")}
        # Keras would track the dict, and pass a copy of it on.
        object.__setattr__(self, "_options", options)

    def __setattr__(self, name: str, value: Any) -> None:
        if type(value) is keras.layers.EinsumDense and not value.built:
            value = self._with_posterior(value)
        super().__setattr__(name, value)

    def _with_posterior(self, plain):
        """Returns the projection that takes the place of a plain one."""
        config = copies.live_config(keras.layers.EinsumDense, plain)
        config["trainable"] = plain.trainable and self.trainable
        seed = self.seed
        if seed is not None:  # projections of all groups have the same names
            seed = zlib.crc32(f"{seed}/{self.name}".encode()) >> 1
        options = dict(self._options)
        if self.num_examples is None:
            # An assignment within `build` could be lost: it may be traced.
            options["num_examples"] = self._inferred_num_examples
        projection = VariationalEinsumDense(**config, **options, seed=seed)
        projection.num_examples = self.num_examples
        projection.group_name = self.name, type(self).__name__
        return projection

    @property
    def projections(self) -> list[VariationalEinsumDense]:
        """The layers inside whose weights have a posterior, once they are made."""
        return _einsums(self)

    @property
    def num_examples(self) -> int | None:  # type: ignore[override]
        """Number of training examples, or None while the user gave none."""
        return self._options["num_examples"]

    def set_num_examples(self, num_examples: int, inferred: bool = False) -> None:
        num_examples = validation.integer("num_examples", num_examples, least=1)
        if not inferred:
            self._options["num_examples"] = num_examples
        elif self.num_examples is None:
            self._inferred_num_examples = num_examples
        for projection in self.projections:
            projection.set_num_examples(num_examples, inferred)

    def kl(self) -> Tensor:
        """Returns KL(posterior || prior) in nats over all weights, a float32 scalar.

        It is the sum over the projections, which are independent.

        Raises:
            ValueError: if the layer is not built.
        """
        if not self.built:
            raise ValueError(
                "Expected a built layer; call it on a batch first. "
                f"Received: layer={self.name!r}"
            )
        return sum(projection.kl() for projection in self.projections)

    def inform(self, delta: float) -> None:
        """Sets priors and posteriors from the means, which count as trained (MOPED).

        Args:
            delta: positive float, the posterior's relative standard deviation.
        """
        for projection in self.projections:
            projection.inform(delta)

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        raise ValueError(
            f"`{type(self).__name__}` cannot be quantized; convert the layer by "
            f"`to_keras()` first. Received: mode={mode!r}"
        )

    # Conversion

    @classmethod
    def replaces(cls, layer: keras.layers.Layer) -> bool:
        """Whether this class replaces the class of a plain layer."""
        return type(layer) is cls.keras_class

    @classmethod
    def obstacle(cls, layer: keras.layers.Layer) -> str | None:
        """Returns why this class cannot replace a plain layer, or None."""
        reasons = [obstacle(layer)]
        for inner in _einsums(layer):
            reason = obstacle(inner)
            reasons += [reason and f"holds '{inner.name}', which {reason}"]
        return next(filter(None, reasons), None)

    @classmethod
    def from_keras(cls, layer: keras.layers.Layer, **options: Any) -> Self:
        """Makes a layer of this class whose means are the weights of a Keras layer.

        The prior takes the place of regularizers, which are dropped.

        Args:
            layer: a built layer of the class that this one replaces.
            **options: arguments of this class, such as `num_examples`.

        Raises:
            ValueError: if the layer is of another class, is not built or has
                constraints.
        """
        if not cls.replaces(layer) or not layer.built:
            raise ValueError(
                f"`{cls.__name__}.from_keras` expected a built `keras.layers."
                f"{cls.__name__.removeprefix('Variational')}`. "
                f"Received: layer={layer!r}"
            )
        check_plain(layer, cls.obstacle(layer))
        config = copies.live_config(cls.keras_class, layer)
        config |= dict.fromkeys(weight_options(config, "_regularizer"))
        group = cls(**{**config, **options})
        copies.build_alike(group, layer)
        for projection, plain in zip(group.projections, _einsums(layer), strict=True):
            weight_map = projection.weight_map
            _assign(weight_map.variables(projection), weight_map.variables(plain))
        return group

    def to_keras(
        self, weights: Weights = "mean", seed: int | None = None
    ) -> keras.layers.Layer:
        """Returns the plain Keras layer with posterior-mean or sampled weights.

        Args:
            weights: "mean", which equals this layer's inference exactly, or "sample".
            seed: integer for a repeatable sample, or None.

        Raises:
            ValueError: if `weights` is another value, or the layer is not built.
        """
        check_conversion(self, weights)
        config = copies.live_config(self.keras_class, self)
        plain = self.keras_class.from_config(config)
        copies.build_alike(plain, self)
        generator = keras.random.SeedGenerator(seed)
        for projection, copy in zip(self.projections, _einsums(plain), strict=True):
            if weights == "mean":
                values = projection.inference_means()
            else:
                values = projection.drawn_weights(generator)
            _assign(projection.weight_map.variables(copy), values)
        return plain

    def posterior_as_prior(self) -> Self:
        config = copies.live_config(type(self), self)
        config |= {"prior": priors.NormalPerWeight(), "num_examples": None}
        group = type(self).from_config(config)
        copies.build_alike(group, self)
        for old, new in zip(self.projections, group.projections, strict=True):
            _assign(new.saved_variables(), old.posterior_as_prior().saved_variables())
        return group

    def get_config(self) -> dict[str, Any]:
        options = dict(self._options)
        for name in ("prior", "posterior"):
            if not isinstance(options[name], str):
                options[name] = keras.saving.serialize_keras_object(options[name])
        return {**super().get_config(), **options}


def _einsums(layer):
    """Returns the `EinsumDense` layers inside a layer, in the order of their making."""
    layers = finding.flatten_layers(layer)
    return [x for x in layers if isinstance(x, keras.layers.EinsumDense)]


def _assign(variables, values):
    """Assigns copies of values to variables, both by name."""
    for name, variable in variables.items():
        copies.assign_copy(variable, values[name])
