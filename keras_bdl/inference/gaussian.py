"""The Gaussian posterior that an optimizer has found."""

from typing import Any

import keras
from keras import ops

from keras_bdl.conversion.whole import BayesianModel
from keras_bdl.core import finding
from keras_bdl.inference.fitted import around
from keras_bdl.maps.wrapped import weights_inside
from keras_bdl.optimizers import IVON
from keras_bdl.posteriors import Gaussian


class GaussianPosterior(keras.callbacks.Callback):
    """Gives the posterior that `optimizers.IVON` trains, and its mean to validation.

    In `fit` the weights of the model hold noise. The callback takes it off before
    validation and at the end of each epoch, so that `val_loss` is of the mean network.
    Put it before callbacks that save or compare weights.

    Raises:
        ValueError: in `fit` if the optimizer has no such posterior.

    Example:

    >>> network.compile(keras_bdl.optimizers.IVON(0.1, num_examples=len(x)), loss)
    >>> posterior = keras_bdl.callbacks.GaussianPosterior()
    >>> network.fit(x, y, validation_data=(x_val, y_val), callbacks=[posterior])
    >>> model = posterior.bayesian_model()

    A posterior is in the file of its network, in the state of the optimizer:

    >>> posterior.set_model(keras.saving.load_model("network.keras"))
    >>> model = posterior.bayesian_model()
    """

    def _optimizer(self):
        optimizer = finding.inner_optimizer(getattr(self.model, "optimizer", None))
        if not isinstance(optimizer, IVON):
            raise ValueError(
                "`GaussianPosterior` expected a model compiled with `optimizers.IVON`. "
                f"Received: optimizer={optimizer!r}"
            )
        return optimizer

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        optimizer = self._optimizer()
        if not optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        self._check_variables()

    def _check_variables(self):
        trained = self._optimizer().trained_ids
        for variable in self.model.trainable_variables:
            if id(variable) not in trained:
                raise ValueError(
                    "Expected the weights that the optimizer was built with; compile "
                    "the model with a new optimizer after layers are frozen or thawed. "
                    f"Received: weight '{variable.path}', which it does not train"
                )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._optimizer().add_noise(self.model.trainable_variables)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._take_mean()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._take_mean()

    def _take_mean(self):
        self._optimizer().finalize_variable_values(self.model.trainable_variables)

    def bayesian_model(self) -> BayesianModel:
        """Returns a model with the posterior, around a copy of the trained model.

        It is compiled with the loss of the trained model. Its KL is left out of
        `evaluate`.
        """
        if self.model is None or not self._optimizer().built:
            raise ValueError(
                "Expected a training with this callback before `bayesian_model`, or "
                f"`set_model` with a trained model. Received: model={self.model!r}"
            )
        self._check_variables()
        optimizer = self._optimizer()
        self._take_mean()
        bayesian = around(self.model, Gaussian(), num_examples=1, kl_weight=0.0)
        trained = weights_inside(self.model, "all")
        variables = bayesian.bayesian.posterior.variables()
        for name in bayesian.bayesian.chosen:
            log_stddev = ops.log(optimizer.stddev(trained[name]))
            variables[f"{name}_log_stddev"].assign(log_stddev)
        return bayesian
