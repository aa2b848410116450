"""Embeddings whose table has a posterior."""

import keras

from keras_bdl import maps
from keras_bdl.core.copies import assign_copy
from keras_bdl.core.stochastic import register
from keras_bdl.layers.drop_in import VariationalLayer


@register
class VariationalEmbedding(VariationalLayer, keras.layers.Embedding):
    """`keras.layers.Embedding` with a posterior over every number of its table.

    In training a row of the batch sees one draw of the table at all its positions, by
    default with signs of its own (flipout); at inference it is the table of means.
    Indices that the data never show keep their prior, so that a draw of theirs says
    that nothing is known of them.

    Args:
        input_dim, output_dim, embeddings_initializer, mask_zero: as in
            `keras.layers.Embedding`. Regularizers and constraints are refused: the
            prior regularises.
        weights: array `(input_dim, output_dim)` of means to start with, or None.
        prior, num_examples, kl_weight, posterior, estimator, initial_log_stddev,
            sample_at_inference, seed: as in `VariationalDense`.

    Input shape: integers `(batch, ...)`. Output shape: `(batch, ..., output_dim)`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalEmbedding(1000, 16, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones((2, 5), dtype="int32"))

    Reference: Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight uncertainty in
    neural networks", 2015; Wen, Vicol, Ba, Tran and Grosse, "Flipout", 2018.
    """

    keras_class = keras.layers.Embedding
    weight_map = maps.Embedding()

    def __init__(self, input_dim, output_dim, *args, weights=None, **kwargs):
        super().__init__(input_dim, output_dim, *args, **kwargs)
        if weights is not None:  # Keras would build before there is a posterior
            self.build((None, None))
            assign_copy(self._embeddings, weights)
