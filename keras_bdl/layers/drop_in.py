"""Layers that work with any posterior over their weights and any prior."""

from typing import Any, Self

import keras

from keras_bdl import posteriors, priors
from keras_bdl.core import validation
from keras_bdl.core.copies import assign_copy, live_config
from keras_bdl.core.typing import Tensor
from keras_bdl.layers.bayesian import BayesianLayer
from keras_bdl.layers.counterparts import filled
from keras_bdl.layers.posterior_layer import ESTIMATORS, PosteriorLayer, check_estimator
from keras_bdl.posteriors.gaussian import check_log_stddev


class DropInLayer(PosteriorLayer, BayesianLayer):
    """Mixin that gives the weights of a Keras layer a posterior and its KL."""

    @property
    def has_kl(self) -> bool:
        return self.posterior.has_kl

    @property
    def num_draws(self) -> int | None:  # type: ignore[override]  # of the posterior
        return self.posterior.num_draws

    @property
    def cycle(self) -> int | None:  # type: ignore[override]  # of the posterior
        return self.posterior.cycle

    def prior_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.posterior.prior_shapes

    def kl(self) -> Tensor:
        return self.posterior.kl(self.prior, self._prior_variables, self.noise)

    def gaussians(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns (mean, log stddev) of Gaussian weights by name.

        Both are float32 (or float64).
        """
        return self.posterior.moments()

    def inform(self, delta: float) -> None:
        """Sets prior and posterior from the means, which count as trained (MOPED).

        The prior is a `priors.NormalPerWeight`. It takes the means of the posterior.

        Args:
            delta: positive float, the posterior's relative standard deviation.
        """
        self.posterior.inform(delta)
        for name, mean in self.posterior.mean().items():
            prior = self.prior.of(name, self._prior_variables)
            assign_copy(prior["mean"], mean)


class VariationalLayer(DropInLayer):
    """Mixin that gives the weights of a Keras layer a posterior that the user chooses.

    Args:
        *args: positional arguments of the Keras layer.
        posterior: a `keras_bdl.posteriors.Posterior` or its name.
        estimator: "local_reparameterization", "flipout", "reparameterization",
            or None for the layer's default.
        initial_log_stddev: start of the log standard deviations of a posterior that is
            given by its name, or None for its own default.
        bias_posterior: whether the bias also has a posterior.
        **kwargs: arguments of `BayesianLayer` and of the Keras layer.
    """

    method: str | None = "variational"
    draws_at_once = False  # whether it holds all weights that depend on each other
    # Variables of the posteriors that have them.
    kernel_log_stddev = bias_log_stddev = None

    def __init__(
        self,
        *args: Any,
        posterior: str | posteriors.Posterior = "gaussian",
        estimator: str | None = None,
        initial_log_stddev: float | None = None,
        bias_posterior: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        options = {}
        if initial_log_stddev is not None:
            if not isinstance(posterior, str):
                raise ValueError(
                    "Expected `initial_log_stddev` beside the name of a posterior; one "
                    "that is given as an object has its own. "
                    f"Received: initial_log_stddev={initial_log_stddev!r}, "
                    f"posterior={posterior!r}"
                )
            initial_log_stddev = check_log_stddev(initial_log_stddev)
            options["initial_log_stddev"] = initial_log_stddev
        self.posterior = posteriors.get(posterior, **options)
        if not self.posterior.takes_prior:
            raise ValueError(
                f"The posterior `{type(self.posterior).__name__}` has a prior or "
                f"weights of its own kind: use {self.posterior.own_layers}. "
                f"Received: posterior={posterior!r}"
            )
        agree = self.draws_at_once or self.posterior.splits_rows
        if self.posterior.num_draws is not None and not agree:
            raise ValueError(
                f"The posterior `{type(self.posterior).__name__}` is over the weights "
                "of a whole model, whose layers must agree on the draw: use "
                f"`keras_bdl.Bayesian(model, ...)`. Received: posterior={posterior!r}"
            )
        self._posterior_name = posterior if isinstance(posterior, str) else None
        self.initial_log_stddev = initial_log_stddev
        self.estimator = check_estimator(estimator)
        by_draws = estimator in (None, ESTIMATORS[-1])
        if not (by_draws or self.weight_map.has_estimators):
            raise ValueError(
                f"`{type(self).__name__}` draws its weights once for a batch: expected "
                f"`estimator` to be {ESTIMATORS[-1]!r} or None. "
                f"Received: estimator={estimator!r}"
            )
        if not (by_draws or self.posterior.has_moments):
            raise ValueError(
                f"Expected `estimator` to be {ESTIMATORS[-1]!r} or None for a "
                "posterior whose weights are no Gaussians. Received: "
                f"estimator={estimator!r}, posterior={self.posterior!r}"
            )
        self.bias_posterior = validation.boolean("bias_posterior", bias_posterior)

    def check_can_be_prior(self) -> None:
        """Raises an error if the posterior cannot become the prior."""
        if not self.posterior.can_be_prior:
            raise ValueError(
                f"The posterior of layer '{self.name}' cannot become the prior of its "
                "weights, which is of independent weights; that of "
                f"`posterior='gaussian'` can. Received: posterior={self.posterior!r}"
            )

    def posterior_as_prior(self) -> Self:
        self.check_can_be_prior()
        return self.as_prior_of(
            self.with_same_means(prior=priors.NormalPerWeight(), num_examples=None)
        )

    def as_prior_of(self, copy: Self) -> Self:
        """Gives a copy the posterior of this layer as its prior and its posterior."""
        for name, variable in self.posterior.variables().items():
            assign_copy(copy.posterior.variables()[name], variable)
        for name, moments in copy.gaussians().items():
            prior = copy.prior.of(name, copy._prior_variables)
            for part, value in zip(("mean", "log_stddev"), moments):
                assign_copy(prior[part], value)
        return copy

    def with_same_means(self, **options: Any) -> Self:
        """Returns a layer like this one with some other arguments, and its means."""
        config = live_config(type(self), self)
        copy = type(self).from_config({**config, **options})
        return filled(copy, self, self.weight_map, self.weight_map.variables(self))

    def get_config(self) -> dict[str, Any]:
        posterior = self._posterior_name
        if posterior is None:
            posterior = keras.saving.serialize_keras_object(self.posterior)
        return {
            **super().get_config(),
            "posterior": posterior,
            "estimator": self.estimator,
            "initial_log_stddev": self.initial_log_stddev,
            "bias_posterior": self.bias_posterior,
        }
