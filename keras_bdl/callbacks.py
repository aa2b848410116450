"""Callbacks for Bayesian models, to be given to `model.fit(callbacks=[...])`."""

import warnings

import keras
from keras import ops

from keras_bdl import validation
from keras_bdl.layers import base


class KLWarmup(keras.callbacks.Callback):
    """Raises the weight of the KL term linearly from 0 to its full value.

    Before `start_epoch` the weight is 0; it grows by equal steps at the begin of
    each epoch and is full from epoch `start_epoch + epochs` on (epochs count
    from 0). Full is each layer's own `kl_weight` as given to its constructor.
    It is a function of the epoch alone, so resumed training continues it.
    Validation, saved weights and the end of training always see the full weight,
    so that `val_loss` is a bound and no checkpoint keeps a warm-up value.

    Adds `kl`, the unweighted KL of all layers in nats per data set, to the
    training log. The log has `nll` where the model compiles it as a metric, as
    `BayesianClassifier` does; for other models give
    `metrics=[keras_bdl.metrics.NegativeLogLikelihood(name="nll", ...)]`.

    Args:
        epochs: positive integer, length of the warm-up.
        start_epoch: integer >= 0, first epoch with a weight above 0, less one.

    Example:

    >>> model.fit(x, y, epochs=20, callbacks=[keras_bdl.callbacks.KLWarmup(epochs=5)])
    """

    def __init__(self, epochs, start_epoch=0):
        super().__init__()
        self.epochs = validation.integer("epochs", epochs, least=1)
        self.start_epoch = validation.integer("start_epoch", start_epoch, least=0)

    def set_model(self, model):
        super().set_model(model)
        self._layers = base.bayesian_layers(model)
        if not self._layers:
            raise ValueError(
                "`KLWarmup` expected a model with keras_bdl layers. "
                f"Received: model={model!r}"
            )
        self._factor = 1.0
        self._warned = False

    def factor(self, epoch):
        """Share of the full KL weight in an epoch, from 0 to 1."""
        return min(max(epoch - self.start_epoch, 0) / self.epochs, 1.0)

    def _assign(self, factor):
        for layer in self._layers:
            layer.kl_weight.assign(factor * layer.full_kl_weight)

    def on_epoch_begin(self, epoch, logs=None):
        self._factor = self.factor(epoch)
        self._assign(self._factor)

    def on_test_begin(self, logs=None):
        self._assign(1.0)

    def on_epoch_end(self, epoch, logs=None):
        self._assign(1.0)
        if logs is None:
            return
        logs["kl"] = sum(
            float(ops.convert_to_numpy(ops.stop_gradient(layer.measured_kl())))
            for layer in self._layers
        )
        logs["kl_weight"] = self._factor
        if "nll" not in logs and not self._warned:
            self._warned = True
            warnings.warn(
                "The log has no `nll`, because the model compiles no such metric: add "
                "`metrics=[keras_bdl.metrics.NegativeLogLikelihood(name='nll')]` to "
                "`compile` to see the likelihood apart from the KL.",
                stacklevel=2,
            )

    def on_train_end(self, logs=None):
        self._assign(1.0)
