"""Maps of weights: what each kind of Keras layer does with its weights."""

from keras_bdl.maps.base import WeightMap as WeightMap
from keras_bdl.maps.linear import Conv as Conv
from keras_bdl.maps.linear import Dense as Dense
from keras_bdl.maps.linear import of as of

__all__ = ["Conv", "Dense", "WeightMap", "of"]
