"""A Bayesian regressor around any network."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.conversion import convert
from keras_bdl.core import dtypes, finding, recovery, stochastic, validation
from keras_bdl.core.cache import kept_with
from keras_bdl.core.inputs import check_inputs
from keras_bdl.core.typing import Weights
from keras_bdl.models import batch_checks, unknown_ranks
from keras_bdl.models.base import LikelihoodModel
from keras_bdl.models.observation_noise import NOISES, ObservationNoise, output_shape
from keras_bdl.models.predictive import (
    PredictiveLogLikelihood,
    PredictiveSpread,
    PredictiveUncertainty,
    check_pairs,
    quantile_levels,
)
from keras_bdl.models.standardization import (
    ColumnStatistics,
    Standardization,
    check_one_input,
)
from keras_bdl.posteriors import Posterior
from keras_bdl.prediction import predict
from keras_bdl.prediction.mc_dropout import dropout_layers
from keras_bdl.training import data as data_sets


@keras.saving.register_keras_serializable("keras_bdl")
class BayesianRegressor(LikelihoodModel):
    """Likelihood of real targets over a network, with a posterior over weights.

    The network gives d means and d log standard deviations for each input
    (`noise="heteroscedastic"`), or d locations, around which the noise is the same for
    all inputs: Gaussian ("homoscedastic") or Student's t ("student_t", robust to
    outliers), with scales and degrees of freedom learned per target. `fit` minimises
    the negative evidence lower bound per example,

        -E_q log p(y | x, w) + KL(q || p) / N,
        log p(y | x, w) = sum_d log N(y_d | mean_d, stddev_d^2),  or, of df > 2,
                          sum_d log t(y_d | location_d, scale_d, df_d),

    and reads N off the data. The predictive is the mixture of S samples,

        p(y | x) = 1/S sum_s p(y | x, w_s).

    The network may have keras_bdl layers, or plain `keras.layers.Dropout` (Monte Carlo
    dropout, for which weight decay of its layers stands for the KL). With neither, and
    no `posterior`, all uncertainty is noise.

    `model(x)`, and so `export`, gives the noise under the posterior-mean network, in
    the units of the targets: `(n, 2 d)` means, then log standard deviations, or for
    Student's t `(n, 3 d)` locations, log scales, log degrees of freedom.

    `evaluate` and `val_*` report `loss`, the negative bound with sampled weights, and
    of the predictive `nll` (nats per example) and `rmse` of its mean over all
    targets; in training, of the one sample of each step. More metrics in `compile` are
    of the means of the mean network (in training, of the sampled one). All have the
    units of the targets, `(n,)` or `(n, d)`. A callback on `val_nll` or `val_rmse`
    needs `mode="min"`.

    Args:
        network: Keras model from inputs to `(n, 2 d)` with heteroscedastic noise, or
            to `(n, d)` otherwise, that does not end in an activation.
        noise: "heteroscedastic", "homoscedastic" or "student_t".
        num_samples, num_examples, posterior: as in `BayesianClassifier`.
        normalize: whether to standardise inputs (floats, each entry of the last axis)
            and targets. The first `fit` takes means and deviations from its training
            rows. Later calls keep them, so that the trained function stays the same.
        mc_dropout: whether plain dropout is sampled in prediction.
        name, **kwargs: as in `keras.Model`.

    Raises:
        TypeError, ValueError: on a wrong argument; if the outputs do not fit the noise.

    Example:

    >>> network = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras_bdl.VariationalDense(50, activation="relu"),
    ...     keras_bdl.VariationalDense(2),
    ... ])
    >>> model = keras_bdl.BayesianRegressor(network, normalize=True)
    >>> model.compile(keras.optimizers.Adam(0.01))
    >>> x = np.random.normal(size=(200, 8))
    >>> y = 5.0 * x[:, 0] + np.random.normal(size=200)
    >>> model.fit(x, y, epochs=20)
    >>> model.predict(x)  # (200, 1)
    >>> low, median, high = model.predict_uncertainty(x).quantiles  # 5, 50, 95 %
    >>> model.log_likelihood(x, y).mean()

    References: Kendall and Gal, "What uncertainties do we need in Bayesian deep
    learning?", 2017, eq. 5 and 9; Gal and Ghahramani, "Dropout as a Bayesian
    approximation", 2016, eq. 8 (log-likelihood of the predictive).
    """

    _own_metrics = ("nll", "rmse")

    def __init__(
        self,
        network: keras.Model,
        noise: str = "heteroscedastic",
        num_samples: int = 100,
        num_examples: int | None = None,
        normalize: bool = False,
        mc_dropout: bool = True,
        posterior: str | Posterior | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs |= {"posterior": posterior}
        super().__init__(network, num_samples, num_examples, **kwargs)
        self.noise = validation.choice("noise", noise, NOISES)
        self.normalize = validation.boolean("normalize", normalize)
        self.mc_dropout = validation.boolean("mc_dropout", mc_dropout)
        self.inputs_standardization = Standardization() if normalize else None
        self.targets_standardization = Standardization() if normalize else None
        self.observation_noise = ObservationNoise(noise, self.targets_standardization)
        self._likelihood = self.observation_noise.loss()
        self._nll = keras.metrics.Mean(name="nll")
        self._rmse = keras.metrics.RootMeanSquaredError(name="rmse")
        self._has_dropout = False
        if finding.is_graph(self.network):
            self.build(self.network.input_shape)

    @property
    def outputs_kind(self) -> str | None:
        """Kind of outputs for `keras_bdl.predict_uncertainty`, or None."""
        return None if self.noise == "student_t" else "mean_and_log_stddev"

    @property
    def sampled_network(self) -> keras.Model:
        """The model as a graph, so that its part before sampling runs once."""
        if not (self.built and finding.is_graph(self.network)):
            return self
        return kept_with(self, "graph", None, self._make_graph)

    def _make_graph(self):
        inputs = finding.fresh_inputs(self.network)
        # `call` puts the network's layers into the graph, not the network as a layer.
        outputs = self.network.call(self._standardized(inputs))
        return keras.Model(inputs, self.observation_noise(outputs))

    def build(self, input_shape: Any) -> None:
        if self.built:
            return
        self._build_network(input_shape)
        stochastic.check_no_recurrent_cells(self.network)
        if self.mc_dropout:  # refuses what it cannot sample
            self._has_dropout = bool(dropout_layers(self.network))
        if self.inputs_standardization is not None:
            check_one_input(self.network, input_shape)
            self.inputs_standardization.build(input_shape)
        self.observation_noise.check_head(self.network)
        self.observation_noise.build(output_shape(self.network, input_shape))
        self.built = True
        if self.is_sampled():  # here, because a traced function cannot make variables
            self.make_sampler(self.num_samples)

    def _standardized(self, inputs):
        return self.inputs_standardization(inputs) if self.normalize else inputs

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        outputs = self.run_network(self._standardized(inputs), training)
        return self.observation_noise(outputs)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, and reads N and scales off the data.

        Args:
            x, y, batch_size, epochs, **kwargs: as in `keras.Model.fit`. `normalize`
                needs data that can be read before training: arrays, a finite
                `tf.data.Dataset` or a `PyDataset`.

        Raises:
            ValueError: if the number of examples is unknown (a generator); pass
                `num_examples` to the constructor. Also on targets that do not fit or
                are not finite.
        """
        self._build_for(x)
        return super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)

    def _build_for(self, x):
        if not hasattr(x, "shape"):
            return
        if not self.built:
            self.build((None, *x.shape[1:]))
        if self.normalize and len(x.shape) > 1:
            dtypes.with_channels(x, self.inputs_standardization.mean.shape[0])

    def _prepare_fit(self, x, y, extent):
        if self.normalize and not self.targets_standardization.is_adapted:
            self._adapt(x, y, extent)

    def _adapt(self, x, y, extent):
        """Takes means and standard deviations from the training rows."""
        inputs, targets = ColumnStatistics("x"), ColumnStatistics("y")
        for x_batch, y_batch in data_sets.training_batches(x, y, **extent):
            x_batch = dtypes.to_numpy(x_batch)
            self._build_for(x_batch)
            inputs.update(x_batch)
            targets.update(self._targets(dtypes.to_numpy(y_batch)))
        if not targets.count:
            raise ValueError(f"Expected training data with rows. Received: x={x!r}")
        self.inputs_standardization.adapt(inputs)
        self.targets_standardization.adapt(targets)

    def _checked_arrays(self, x, *args):
        if self.normalize:
            self.inputs_standardization.check(x)
        return super()._checked_arrays(x, *args)

    def _targets(self, y):
        """Returns targets in an array as `(n, d)`, and other data unchanged."""
        return self.observation_noise.columns(y) if hasattr(y, "shape") else y

    def _known_rank(self, y, sample_weight):
        num_targets = self.observation_noise.num_targets
        return unknown_ranks.of_values(y, sample_weight, num_targets)

    def _target_problems(self, y):
        finite = ops.all(ops.isfinite(ops.cast(y, "float32")))
        return ((ops.logical_not(finite), batch_checks.TARGETS),)

    def _label_weights(self, y, class_weight, sample_weight):
        raise ValueError(
            "`BayesianRegressor` knows no classes; weigh rows by `sample_weight`. "
            f"Received: class_weight={class_weight!r}"
        )

    def _check_ready(self):
        if self.normalize and not self.targets_standardization.is_adapted:
            raise ValueError(
                "Expected a model that knows the scales of its data: with "
                "`normalize=True` the first `fit` takes them. "
                f"Received: model={self.name!r}, which was never fitted"
            )

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the negative evidence bound per example, and updates the metrics."""
        # Shapes are checked here too: those of a `tf.data.Dataset` are known only now.
        batch_checks.require_targets(y)
        self.observation_noise.check_width(y.shape)
        if sample_weight is not None and math.prod(sample_weight.shape[1:]) != 1:
            raise ValueError(
                "Expected one weight per example; the log-likelihood is a sum over "
                f"targets. Received: sample_weight.shape={tuple(sample_weight.shape)}"
            )
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def to_keras(
        self, weights: Weights = "mean", seed: int | None = None
    ) -> keras.Model:
        """Returns a plain Keras model, with scales and noise as plain layers."""
        if not self.built:
            raise ValueError(
                "Expected a built model; call it on a batch first. "
                f"Received: model={self.name!r}"
            )
        scales = self.inputs_standardization
        before = [] if scales is None else [scales.to_keras()]
        layers = before, self.observation_noise.to_keras()
        return convert.between(layers, super().to_keras(weights, seed), self.name)

    def make_predictive(self, num_samples: int | None) -> Callable:
        """Returns a function of inputs and a seed, giving the spread and quantiles."""
        levels = quantile_levels((0.05, 0.5, 0.95))
        return self._predictive(PredictiveSpread, num_samples, levels).summarize

    def is_sampled(self) -> bool:
        return self._has_dropout or bool(stochastic.stochastic_layers(self.network))

    def _update_metrics(self, y, draws, sample_weight):
        noise = self.observation_noise
        if sample_weight is not None:
            sample_weight = ops.reshape(sample_weight, (-1,))
        nll = -noise.mixture_log_prob(y, draws)
        self._nll.update_state(nll, sample_weight=sample_weight)
        mean = ops.mean(noise.location(draws), axis=0)
        y = ops.reshape(ops.cast(y, mean.dtype), ops.shape(mean))
        self._rmse.update_state(y, mean, sample_weight=sample_weight)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Updates the user's metrics by the means, not by the noise parameters."""
        means = self.observation_noise.location(y_pred)
        return super().compute_metrics(x, y, means, sample_weight=sample_weight)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        steps: int | None = None,
        callbacks: list[keras.callbacks.Callback] | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Returns the mean of the posterior predictive in the units of the targets.

        Args:
            x, batch_size, verbose, steps, callbacks: as in `keras.Model.predict`.
            num_samples: number of posterior samples, or None for the constructor's.
            seed: integer for repeatable results.

        Returns:
            NumPy array `(n, d)`.
        """
        options: dict[str, Any] = dict(
            batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks
        )
        num_samples = self._num_samples(num_samples)
        self._build_for(x)
        if self.is_sampled():
            options.update(seed=seed, mc_dropout=self.mc_dropout)
            parameters = predict.predict(self, x, num_samples, **options)
        else:
            with recovery.weights_kept(self):
                parameters = super().predict(x, **options)
        return self.observation_noise.location(parameters)

    def predict_uncertainty(
        self,
        x: Any,
        num_samples: int | None = None,
        quantiles: Sequence[float] | np.ndarray = (0.05, 0.5, 0.95),
        *,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        steps: int | None = None,
        callbacks: list[keras.callbacks.Callback] | None = None,
        seed: int | None = None,
    ) -> PredictiveUncertainty:
        """Returns the spread of the posterior predictive by source, and quantiles.

        Args:
            x, batch_size, verbose, steps, callbacks: as in `keras.Model.predict`.
            num_samples: number of posterior samples, or None for the constructor's.
            quantiles: numbers between 0 and 1.
            seed: integer for repeatable results.

        Returns:
            `PredictiveUncertainty`, a named tuple of NumPy arrays, in the units of
            the targets.
        """
        levels = quantile_levels(quantiles)
        self._build_for(x)
        model = self._predictive(PredictiveSpread, num_samples, levels)
        result = model.run(x, seed, batch_size, steps, verbose, callbacks)
        result["quantiles"] = result["quantiles"].swapaxes(0, 1)
        return PredictiveUncertainty(**result)

    def log_likelihood(
        self,
        x: Any,
        y: Any = None,
        num_samples: int | None = None,
        *,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        seed: int | None = None,
    ) -> np.ndarray:
        """Returns log 1/S sum_s p(y | x, w_s) of each row, `(n,)`, in nats.

        The density is in the units of the targets and has all constants.

        Args:
            x, y: arrays (a nest of them for several inputs); or only x, a
                `tf.data.Dataset`, `PyDataset` or `DataLoader` of batches of both.
            num_samples: number of posterior samples, or None for the constructor's.
            batch_size, verbose: as in `keras.Model.predict`.
            seed: integer for repeatable results.
        """
        if y is None and data_sets.is_data_set(x):
            opts: dict[str, Any] = dict(num_samples=num_samples, verbose=0, seed=seed)
            log_p = [self.log_likelihood(*b[:2], **opts) for b in data_sets.batches(x)]
            return np.concatenate(log_p)
        check_pairs(x, y)
        self._build_for(x)
        check_inputs(self.network, x)
        model = self._predictive(PredictiveLogLikelihood, num_samples)
        data = {"x": x, "y": self._targets(y)}
        return model.run(data, seed, batch_size, None, verbose, None)

    def _predictive(self, cls, num_samples, *options):
        """Returns the model of a summary, kept because a new one is traced again."""
        options = (self._num_samples(num_samples), *options)
        if self.is_sampled():
            self.make_sampler(options[0])
        return kept_with(self, cls.__name__, options, lambda: cls(self, *options))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "noise": self.noise,
            "normalize": self.normalize,
            "mc_dropout": self.mc_dropout,
        }
