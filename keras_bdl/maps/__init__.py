"""Weight maps: what each kind of Keras layer computes with its weights."""

from keras_bdl.maps.base import WeightMap as WeightMap
from keras_bdl.maps.depthwise import Depthwise as Depthwise
from keras_bdl.maps.einsum import Einsum as Einsum
from keras_bdl.maps.embedding import Embedding as Embedding
from keras_bdl.maps.linear import Conv as Conv
from keras_bdl.maps.linear import Dense as Dense
from keras_bdl.maps.linear import of as of

__all__ = [
    "Conv",
    "Dense",
    "Depthwise",
    "Einsum",
    "Embedding",
    "WeightMap",
    "of",
]
