"""Pure mathematics: tensors in, tensors out, on every Keras backend."""

from keras_bdl.ops import divergences as divergences
from keras_bdl.ops import estimators as estimators
from keras_bdl.ops import uncertainty as uncertainty

__all__ = ["divergences", "estimators", "uncertainty"]
