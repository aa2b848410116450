"""The weight of a layer's term in the loss, and its share during a warm-up."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.finding import flatten_layers
from keras_bdl.core.stochastic import StochasticLayer
from keras_bdl.core.typing import Tensor


class EpochSettings(keras.metrics.Metric):
    """Keeps the settings that callbacks make for one epoch, and undoes them.

    An interrupted `fit` calls no callback. But Keras resets the metrics of a model's
    layers before every epoch, evaluation and `train_on_batch`, and this undoes the
    settings that are left. The metric measures nothing.
    """

    def __init__(self) -> None:
        super().__init__(name="epoch_settings")
        self._undo: dict[str, Callable[[], Any]] = {}

    def add(self, name: str, undo: Callable[[], Any]) -> None:
        """Records that `name` is set, and the function that undoes it."""
        self._undo[name] = undo

    def holds(self, name: str) -> bool:
        """Whether `name` is set and not undone."""
        return name in self._undo

    def undo(self, name: str) -> None:
        """Undoes one setting, if it is set."""
        self._undo.pop(name, lambda: None)()

    def reset_state(self) -> None:
        """Undoes every setting."""
        for name in list(self._undo):
            self.undo(name)

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing, because this metric measures nothing."""

    def result(self) -> dict[str, Tensor]:
        return {}


class WeightedLayer(StochasticLayer):
    """Mixin that gives a layer the weight of its term in the loss.

    Args:
        *args: positional arguments of the Keras layer.
        kl_weight: factor of the term. `layer.kl_weight` is a variable.
        **kwargs: arguments of `StochasticLayer` and of the Keras layer.
    """

    def __init__(self, *args: Any, kl_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.full_kl_weight = validation.number("kl_weight", kl_weight, least=0.0)
        self.kl_weight = self.add_scalar("kl_weight", self.full_kl_weight)
        self.kl_warm_up = self.add_scalar("kl_warm_up", 1.0)
        self.epoch_settings = EpochSettings()

    def set_kl_warm_up(self, share: float) -> None:
        """Sets the share of `kl_weight` in training, for this epoch only."""
        self.kl_warm_up.assign(share)
        self.epoch_settings.add("kl_warm_up", lambda: self.kl_warm_up.assign(1.0))

    def current_kl_weight(self, training: bool | None) -> Tensor:
        """Returns `kl_weight` as a float32 scalar.

        In training it is multiplied by the share of a warm-up.
        """
        weight = ops.convert_to_tensor(self.kl_weight)
        if training:
            weight = weight * ops.convert_to_tensor(self.kl_warm_up)
        return weight

    def told_variables(self) -> dict[str, keras.Variable]:
        return {**super().told_variables(), "kl_weight": self.kl_weight}

    def epoch_variables(self) -> dict[str, keras.Variable]:
        return {**super().epoch_variables(), "kl_warm_up": self.kl_warm_up}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kl_weight": self.full_kl_weight}


def weighted_layers(model: keras.layers.Layer) -> list[WeightedLayer]:
    """Returns all layers of a model (or a layer) with a weighted term in the loss."""
    return [x for x in flatten_layers(model) if isinstance(x, WeightedLayer)]
