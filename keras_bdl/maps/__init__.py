"""Weight maps: what each kind of Keras layer computes with its weights."""

from keras_bdl.maps.base import LinearMap as LinearMap
from keras_bdl.maps.base import WeightMap as WeightMap
from keras_bdl.maps.depthwise import Depthwise as Depthwise
from keras_bdl.maps.einsum import Einsum as Einsum
from keras_bdl.maps.embedding import Embedding as Embedding
from keras_bdl.maps.linear import Conv as Conv
from keras_bdl.maps.linear import Dense as Dense
from keras_bdl.maps.linear import of as of
from keras_bdl.maps.recurrent import Recurrent as Recurrent
from keras_bdl.maps.separable import Separable as Separable
from keras_bdl.maps.transposed import Transposed as Transposed
from keras_bdl.maps.whole import Whole as Whole
from keras_bdl.maps.wrapped import Wrapped as Wrapped
from keras_bdl.maps.wrapped import weights_inside as weights_inside

__all__ = [
    "Conv",
    "Dense",
    "Depthwise",
    "Einsum",
    "Embedding",
    "LinearMap",
    "Recurrent",
    "Separable",
    "Transposed",
    "WeightMap",
    "Whole",
    "Wrapped",
    "of",
    "weights_inside",
]
