"""The weight of a layer's term of the loss, and its share while it is warmed up."""

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.finding import flatten_layers
from keras_bdl.core.stochastic import StochasticLayer


class EpochSettings(keras.metrics.Metric):
    """What callbacks set for one epoch of training, and how each is undone.

    A `fit` that is interrupted tells its callbacks nothing. But Keras resets the
    metrics of a model's layers before every epoch, evaluation and `train_on_batch`:
    what is left is undone there. This metric measures nothing.
    """

    def __init__(self):
        super().__init__(name="epoch_settings")
        self._undo = {}

    def add(self, name, undo):
        """Notes that `name` is set, and the function that undoes it."""
        self._undo[name] = undo

    def holds(self, name):
        """Whether `name` is set and not undone."""
        return name in self._undo

    def undo(self, name):
        """Undoes one setting, if it is there."""
        self._undo.pop(name, lambda: None)()

    def reset_state(self):
        for name in list(self._undo):
            self.undo(name)

    def update_state(self, *args, **kwargs):
        """Nothing is measured."""

    def result(self):
        return {}


class WeightedLayer(StochasticLayer):
    """Mixin of layers with a term in the loss: its weight.

    Args:
        *args: positional arguments of the Keras layer.
        kl_weight: factor of the term; a variable, `layer.kl_weight`.
        **kwargs: of `StochasticLayer` and of the Keras layer.
    """

    def __init__(self, *args, kl_weight=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.full_kl_weight = validation.number("kl_weight", kl_weight, least=0.0)
        self.kl_weight = self.add_scalar("kl_weight", self.full_kl_weight)
        self.kl_warm_up = self.add_scalar("kl_warm_up", 1.0)
        self.epoch_settings = EpochSettings()

    def set_kl_warm_up(self, share):
        """Trains with a share of `kl_weight`, for this epoch only."""
        self.kl_warm_up.assign(share)
        self.epoch_settings.add("kl_warm_up", lambda: self.kl_warm_up.assign(1.0))

    def current_kl_weight(self, training):
        """`kl_weight`, in training times the share of a warm-up: a float32 scalar."""
        weight = ops.convert_to_tensor(self.kl_weight)
        if training:
            weight = weight * ops.convert_to_tensor(self.kl_warm_up)
        return weight

    def told_variables(self):
        return {**super().told_variables(), "kl_weight": self.kl_weight}

    def epoch_variables(self):
        return {**super().epoch_variables(), "kl_warm_up": self.kl_warm_up}

    def get_config(self):
        return {**super().get_config(), "kl_weight": self.full_kl_weight}


def weighted_layers(model):
    """Every layer of a model (or the layer itself) with a weighted term in the loss."""
    return [x for x in flatten_layers(model) if isinstance(x, WeightedLayer)]
