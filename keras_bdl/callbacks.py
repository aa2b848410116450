"""Callbacks for Bayesian models, for `model.fit(callbacks=[...])`."""

import functools
import warnings
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_bdl.core import finding, stochastic, validation
from keras_bdl.inference.gaussian import GaussianPosterior as GaussianPosterior
from keras_bdl.inference.samples import PosteriorSamples as PosteriorSamples
from keras_bdl.inference.swag import SWAG as SWAG
from keras_bdl.layers.bayesian import bayesian_layers
from keras_bdl.layers.kl_weight import weighted_layers
from keras_bdl.layers.latent import early_exit_blocks
from keras_bdl.layers.members import mean_over_members
from keras_bdl.sparsity import report

__all__ = [
    "DepthLogger",
    "DropoutRateLogger",
    "GaussianPosterior",
    "KLWarmup",
    "OptimizerReset",
    "PosteriorSamples",
    "SWAG",
    "SparsityLogger",
    "sparse_vd_schedule",
]

_Logs: TypeAlias = dict[str, Any] | None
_Layer: TypeAlias = keras.layers.Layer


class KLWarmup(keras.callbacks.Callback):
    """Raises the weight of the KL term linearly from 0 to its full value.

    Before `start_epoch` the weight is 0. It grows by equal steps at the start of each
    epoch, and has its full value from epoch `start_epoch + epochs` on (epochs count
    from 0). The full value is each layer's own `layer.kl_weight`, which does not
    change. The share is `layer.kl_warm_up`, a variable of one epoch that only training
    uses and no file holds. It depends on the epoch alone, so resumed training continues
    it, and `val_loss` is a bound.

    Keras resets the metrics of layers before each epoch, evaluation and
    `train_on_batch`, which ends an interrupted warm-up. If the `metrics` of a model
    omit those of its layers, a warning says so. A custom loop calls
    `model.reset_metrics()` first.

    The callback adds two values to the training log: `kl`, the unweighted KL of all
    posteriors over weights in nats per data set (the mean over members of an ensemble),
    and `kl_weight`, the share of the full weight. The log has `nll` if the model
    compiles it as a metric, as `BayesianClassifier` does. For other models give
    `metrics=[keras_bdl.metrics.NegativeLogLikelihood(from_logits=..., name="nll")]`.

    Args:
        epochs: positive integer, length of the warm-up.
        start_epoch: integer >= 0, the last epoch whose weight is 0.

    Example:

    >>> model.fit(x, y, epochs=20, callbacks=[keras_bdl.callbacks.KLWarmup(epochs=5)])
    """

    def __init__(self, epochs: int, start_epoch: int = 0) -> None:
        super().__init__()
        self.epochs = validation.integer("epochs", epochs, least=1)
        self.start_epoch = validation.integer("start_epoch", start_epoch, least=0)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._layers = weighted_layers(model)
        if not self._layers:
            raise ValueError(
                "`KLWarmup` expected a model with keras_bdl layers. "
                f"Received: model={model!r}"
            )
        self._posteriors = [x for x in bayesian_layers(model) if x.has_kl]
        self._factor = 1.0
        self._warned = False

    def factor(self, epoch: int) -> float:
        """Returns the share of the full KL weight in an epoch, from 0 to 1."""
        return min(max(epoch - self.start_epoch, 0) / self.epochs, 1.0)

    def on_train_begin(self, logs: _Logs = None) -> None:
        self._set(1.0)
        self.model.reset_metrics()
        if self._warming_up():
            self._undo()
            warnings.warn(
                "`reset_metrics` of this model omits the metrics of its layers, which "
                "end an interrupted warm-up: after an error in `fit` later training "
                "may keep a smaller KL weight. Make `metrics` return "
                "`[..., *super().metrics]`.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: _Logs = None) -> None:
        self._factor = self.factor(epoch)
        self._set(self._factor)

    def on_train_batch_begin(self, batch: int, logs: _Logs = None) -> None:
        if len(self._warming_up()) < len(self._layers):  # `evaluate` has undone it
            self._set(self._factor)

    def on_epoch_end(self, epoch: int, logs: _Logs = None) -> None:
        self._undo()
        if logs is None:
            return
        if self._posteriors:
            logs["kl"] = mean_over_members(self.model, self._kl)
        logs["kl_weight"] = self._factor
        if self._posteriors and "nll" not in logs and not self._warned:
            self._warned = True
            warnings.warn(
                "The log has no `nll`, because the model compiles no such metric. Add "
                "`metrics=[keras_bdl.metrics.NegativeLogLikelihood(from_logits=True, "
                "name='nll')]` (False for probabilities) to `compile` to see the "
                "likelihood apart from the KL.",
                stacklevel=2,
            )

    def _kl(self):
        kls = [layer.measured_kl() for layer in self._posteriors]
        return sum(float(ops.convert_to_numpy(ops.stop_gradient(kl))) for kl in kls)

    def _set(self, factor):
        for layer in self._layers:
            layer.set_kl_warm_up(factor)

    def _warming_up(self):
        return [x for x in self._layers if x.epoch_settings.holds("kl_warm_up")]

    def _undo(self):
        for layer in self._layers:
            layer.epoch_settings.undo("kl_warm_up")


class OptimizerReset(keras.callbacks.Callback):
    """Resets the moments and the step count of the optimizer at the start of one epoch.

    Moments from another objective, such as one without its KL term, mislead the first
    steps under the new objective.

    Args:
        epoch: integer >= 0; epochs count from 0.

    Raises:
        ValueError: in `fit`, if the learning rate is a schedule of the step count of
            the optimizer, which the reset would restart too.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = validation.integer("epoch", epoch, least=0)

    def _optimizer(self):
        return finding.inner_optimizer(self.model.optimizer)

    def on_train_begin(self, logs: _Logs = None) -> None:
        rate = self._optimizer().get_config()["learning_rate"]
        if isinstance(rate, dict):
            raise ValueError(
                "`OptimizerReset` expected an optimizer with a number as its learning "
                "rate: a schedule counts the steps that the reset sets to 0. Use "
                "`keras.callbacks.LearningRateScheduler` for the schedule. "
                f"Received: learning_rate={rate['class_name']}"
            )

    def on_epoch_begin(self, epoch: int, logs: _Logs = None) -> None:
        if epoch != self.epoch:
            return
        optimizer = self._optimizer()
        fresh = type(optimizer).from_config(optimizer.get_config())
        fresh.build(self.model.trainable_variables)
        for old, new in zip(optimizer.variables, fresh.variables):
            if old.name != "learning_rate":
                old.assign(new)


class _LayerLogger(keras.callbacks.Callback):
    """Adds a number of each layer of one kind to the log.

    Subclasses define the layers, `layers_of(model)`; their name in the plural, `kind`;
    the number, `value(layer)`; and the `prefix` before the name of the layer.
    """

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._layers = self.layers_of(model)
        if not self._layers:
            raise ValueError(
                f"`{type(self).__name__}` expected a model with {self.kind}. "
                f"Received: model={model!r}"
            )

    def on_epoch_end(self, epoch: int, logs: _Logs = None) -> None:
        if logs is None:
            return
        for name, layer in zip(finding.unique_names(self._layers), self._layers):
            value = functools.partial(self.value, layer)
            logs[f"{self.prefix}_{name}"] = mean_over_members(self.model, value)


class SparsityLogger(_LayerLogger):
    """Adds the sparsity of each sparse layer, and the compression, to the log.

    `sparsity_<layer>` is the share of pruned weights of a layer. `compression` is
    weights / non-zero weights of the model (see `sparsity_report`), except for
    subclassed models. Put this callback before `keras.callbacks.TensorBoard` in the
    list, and TensorBoard shows both.

    Example:

    >>> model.fit(x, y, callbacks=[keras_bdl.callbacks.SparsityLogger()])
    """

    kind = "SparseVD layers"
    prefix = "sparsity"

    @staticmethod
    def layers_of(model: keras.Model) -> list[_Layer]:
        return [
            x for x in stochastic.stochastic_layers(model) if hasattr(x, "sparsity")
        ]

    @staticmethod
    def value(layer: _Layer) -> float:
        return layer.sparsity()

    def on_epoch_end(self, epoch: int, logs: _Logs = None) -> None:
        super().on_epoch_end(epoch, logs)
        network = getattr(self.model, "sampled_network", self.model)
        if logs is not None and finding.is_graph(network):
            logs["compression"] = report.sparsity_report(self.model).factor


class DropoutRateLogger(_LayerLogger):
    """Adds the learned rate of each dropout layer to the log, as `rate_<layer>`.

    Put this callback before `keras.callbacks.TensorBoard` in the list, and TensorBoard
    shows the rates.

    Example:

    >>> model.fit(x, y, callbacks=[keras_bdl.callbacks.DropoutRateLogger()])
    """

    kind = "learned dropout rates"
    prefix = "rate"

    @staticmethod
    def layers_of(model: keras.Model) -> list[_Layer]:
        return [
            layer
            for layer in stochastic.stochastic_layers(model)
            if isinstance(getattr(type(layer), "rate", None), property)
        ]

    @staticmethod
    def value(layer: _Layer) -> float:
        return layer.rate


class DepthLogger(_LayerLogger):
    """Adds the mean depth of each early-exit block to the log, as `depth_<layer>`.

    It is E_q z over the training rows of the epoch, the expected number of units that
    an example runs. Put this callback before `keras.callbacks.TensorBoard` in the list.

    Example:

    >>> model.fit(x, y, callbacks=[keras_bdl.callbacks.DepthLogger()])
    """

    kind = "`EarlyExitResBlock` layers"
    prefix = "depth"
    layers_of = staticmethod(early_exit_blocks)

    @staticmethod
    def value(layer: _Layer) -> float:
        return layer.mean_depth()

    def on_epoch_begin(self, epoch: int, logs: _Logs = None) -> None:
        for layer in self._layers:
            if layer.built:
                layer.reset_depth()


def _rate_of(optimizer):
    return float(ops.convert_to_numpy(optimizer.learning_rate))


class _HoldAndDecay(keras.callbacks.LearningRateScheduler):
    """Holds the learning rate for a share of the epochs, then reduces it to 0.

    The optimizer has its own rate again at the end and after an interruption.
    """

    def __init__(self, epochs, learning_rate, hold):
        def rate(epoch):
            left = (epochs - epoch) / max(epochs - hold * epochs, 1.0)
            return learning_rate * min(1.0, left)

        super().__init__(rate)
        self.epochs = epochs

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._settings = weighted_layers(model)[0].epoch_settings
        self._settings.undo("learning_rate")
        self._optimizer = model.optimizer
        self._own_rate = _rate_of(self._optimizer)

    def _set(self, rate):
        optimizer, own_rate = self._optimizer, self._own_rate
        optimizer.learning_rate = rate
        self._scheduled_rate = scheduled = _rate_of(optimizer)

        def undo():
            if _rate_of(optimizer) == scheduled:  # nobody set another rate
                optimizer.learning_rate = own_rate

        self._settings.add("learning_rate", undo)

    def on_train_begin(self, logs: _Logs = None) -> None:
        if self.params["epochs"] > self.epochs:
            raise ValueError(
                f"The schedule ends at epoch {self.epochs}, where the learning rate is "
                "0; pass the `epochs` of `fit` to `sparse_vd_schedule`. "
                f"Received: epochs={self.params['epochs']} in `fit`"
            )

    def on_epoch_begin(self, epoch: int, logs: _Logs = None) -> None:
        self._set(self.schedule(epoch))

    def _set_again(self, *args, logs=None):
        if not self._settings.holds("learning_rate"):  # `evaluate` has undone it
            self._set(self._scheduled_rate)

    on_train_batch_begin = on_test_end = _set_again

    def on_train_end(self, logs: _Logs = None) -> None:
        self._settings.undo("learning_rate")


def sparse_vd_schedule(
    epochs: int,
    learning_rate: float = 1e-3,
    hold: float = 0.5,
    warmup: tuple[int, int] = (5, 20),
) -> list[keras.callbacks.Callback]:
    """Returns the training recipe of sparse variational dropout as callbacks.

    The KL weight is 0 until epoch `warmup[0]` and rises linearly to its full value at
    `warmup[1]`, where the moments of the optimizer are reset. The learning rate stays
    constant for the share `hold` of the epochs, then falls linearly to 0. At the end
    and after an interruption the optimizer has its own rate again, and the KL its full
    weight (see `KLWarmup`). Sparsity grows while both are high, and again during the
    decay.

    Give the layers `prune_in_training=True`, as the paper does for its LeNets: half the
    epochs then prune more (benchmarks/README.md). Give the optimizer a small decoupled
    weight decay of the means alone: `Adam(weight_decay=0.05)`, and call its
    `exclude_from_weight_decay(var_names=["log_stddev", "bias"])`, also after
    `load_model`, because Keras does not save this. Adam moves log sigma^2 =
    2 `kernel_log_stddev` twice as fast here as under the parameters of the paper.

    Args:
        epochs: integer, number of epochs of `fit`.
        learning_rate: positive float that replaces the optimizer's own rate. 3e-3 gave
            smaller and better LeNets on MNIST than 1e-3 (benchmarks/README.md).
        hold: float in [0, 1].
        warmup: pair of epochs, first < last < `epochs`.

    Returns:
        List of callbacks for `fit`, to which you can add others. In `fit` they raise a
        ValueError if it is to train longer than `epochs`.

    Example:

    >>> callbacks = keras_bdl.callbacks.sparse_vd_schedule(epochs=200)
    >>> model.fit(x, y, batch_size=100, epochs=200, callbacks=callbacks)

    Reference: Molchanov, Ashukha and Vetrov, "Variational dropout sparsifies deep
    neural networks", 2017, section 5.
    """
    epochs = validation.integer("epochs", epochs, least=1)
    learning_rate = validation.positive("learning_rate", learning_rate)
    hold = validation.number("hold", hold, least=0.0)
    if hold > 1.0:
        raise ValueError(f"Expected `hold` from 0 to 1. Received: hold={hold}")
    if not isinstance(warmup, (tuple, list)) or len(warmup) != 2:
        raise ValueError(
            f"Expected `warmup` to be a pair of epochs. Received: warmup={warmup!r}"
        )
    first, last = (validation.integer("warmup", e, least=0) for e in warmup)
    if not first < last < epochs:
        raise ValueError(
            f"Expected `warmup` to rise, and to end before epoch {epochs}. "
            f"Received: warmup={warmup!r}"
        )
    return [
        KLWarmup(last - first, start_epoch=first),
        _HoldAndDecay(epochs, learning_rate, hold),
        OptimizerReset(last),
    ]
