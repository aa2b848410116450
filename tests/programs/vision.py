"""Programs that classify images, and one of videos."""

import keras
from keras import layers, ops

from programs.blocks import (
    ClassToken,
    LayerScale,
    PatchEncoder,
    Patches,
    StochasticDepth,
    TransformerBlock,
)
from programs.registry import Program, floats, integers, program, register

CROSSENTROPY = "sparse_categorical_crossentropy"


def classifier(inputs, features, classes=3):
    """The program of a classifier of images with these features at its end."""
    outputs = layers.Dense(classes, activation="softmax")(features)
    images, labels = floats(6, *inputs.shape[1:]), integers(classes, 6)
    return Program(keras.Model(inputs, outputs), images, labels, CROSSENTROPY)


@program
def lenet():
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(4, 5, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Conv2D(6, 3, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(8, activation="tanh"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    return Program(model, floats(6, 12, 12, 1), integers(10, 6), CROSSENTROPY)


@program
def vgg():
    x = inputs = keras.Input((8, 8, 3))
    for filters in (4, 8):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, activation="relu", padding="same")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(12, activation="relu")(layers.Flatten()(x))
    return classifier(inputs, layers.Dropout(0.5)(x))


def residual_block(x, filters, stride):
    shortcut = x
    x = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    if stride > 1:
        shortcut = layers.Conv2D(filters, 1, stride, use_bias=False)(shortcut)
        shortcut = layers.BatchNormalization()(shortcut)
    return layers.ReLU()(layers.Add()([x, shortcut]))


@program
def resnet():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(inputs)
    x = residual_block(residual_block(x, 6, 1), 8, 2)
    return classifier(inputs, layers.GlobalAveragePooling2D()(x))


@register
class ResidualUnit(layers.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.first = layers.Conv2D(filters, 3, padding="same")
        self.second = layers.Conv2D(filters, 3, padding="same")
        self.norms = [layers.BatchNormalization() for _ in range(2)]

    def call(self, inputs, training=None):
        x = ops.relu(self.norms[0](self.first(inputs), training=training))
        x = self.norms[1](self.second(x), training=training)
        return ops.relu(inputs + x)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@register
class ResNet(keras.Model):
    def __init__(self, filters, num_units, classes, **kwargs):
        super().__init__(**kwargs)
        self.arguments = (filters, num_units, classes)
        self.stem = layers.Conv2D(filters, 3, 2, padding="same", activation="relu")
        self.units = [ResidualUnit(filters) for _ in range(num_units)]
        self.pool = layers.GlobalMaxPooling2D()
        self.head = layers.Dense(classes, activation="softmax")

    def call(self, images, training=None):
        x = self.stem(images)
        for unit in self.units:
            x = unit(x, training=training)
        return self.head(self.pool(x))

    def get_config(self):
        names = ("filters", "num_units", "classes")
        return {**super().get_config(), **dict(zip(names, self.arguments))}


@program
def resnet_subclassed():
    return Program(ResNet(6, 2, 3), floats(6, 8, 8, 3), integers(3, 6), CROSSENTROPY)


@program
def inception():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, activation="relu")(inputs)
    wide = layers.Conv2D(4, 1, activation="relu")(x)
    wider = layers.Conv2D(4, 5, padding="same", activation="relu")(wide)
    narrow = layers.Conv2D(4, 3, padding="same", activation="relu")(wide)
    pooled = layers.MaxPooling2D(3, 1, padding="same")(x)
    pooled = layers.Conv2D(4, 1, activation="relu")(pooled)
    x = layers.Concatenate()([wide, wider, narrow, pooled])
    return classifier(inputs, layers.GlobalAveragePooling2D()(x))


@program
def mobilenet():
    """Inverted residuals."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, 2, padding="same")(inputs)
    for _ in range(2):
        shortcut = x
        x = layers.Conv2D(16, 1)(x)
        x = layers.ReLU(max_value=6.0)(layers.BatchNormalization(scale=False)(x))
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        x = layers.ReLU(max_value=6.0)(x)
        x = layers.Conv2D(4, 1)(x)
        x = layers.Add()([shortcut, layers.BatchNormalization()(x)])
    x = layers.Conv2D(16, 1, activation="relu6")(x)
    return classifier(inputs, layers.GlobalAveragePooling2D()(x))


@program
def squeeze_and_excite():
    """The block of an EfficientNet."""
    inputs = keras.Input((8, 8, 3))
    x = shortcut = layers.Conv2D(8, 3, 2, padding="same", activation="swish")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", activation="swish")(x)
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    squeezed = layers.Conv2D(4, 1, activation="swish")(squeezed)
    x = layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid")(squeezed)])
    x = StochasticDepth(0.2)(layers.BatchNormalization()(layers.Conv2D(8, 1)(x)))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, shortcut]))
    return classifier(inputs, x)


@program
def xception():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    shortcut = layers.Conv2D(8, 1, 2, padding="same")(x)
    x = layers.SeparableConv2D(8, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    x = layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2)(x)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    x = layers.Add()([x, shortcut])
    return classifier(inputs, layers.GlobalAveragePooling2D()(x))


@program
def convnext():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 2, 2)(inputs)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    for _ in range(2):
        shortcut = x
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        x = layers.Dense(16)(layers.LayerNormalization(epsilon=1e-6)(x))
        x = LayerScale()(layers.Dense(8)(layers.Activation("gelu")(x)))
        x = layers.Add()([shortcut, StochasticDepth(0.1)(x)])
    return classifier(inputs, layers.GlobalAveragePooling2D()(x))


def activated(x):
    return layers.BatchNormalization()(layers.Activation("gelu")(x))


@program
def conv_mixer():
    inputs = keras.Input((8, 8, 3))
    x = activated(layers.Conv2D(12, 2, 2)(layers.Rescaling(0.5, 0.1)(inputs)))
    for _ in range(2):
        mixed = activated(layers.DepthwiseConv2D(3, padding="same")(x))
        x = activated(layers.Conv2D(12, 1)(layers.Add()([mixed, x])))
    return classifier(inputs, layers.GlobalAveragePooling2D()(x))


@register
class Mixer(layers.Layer):
    """Mixes patches and then channels."""

    def build(self, shape):
        self.patches = keras.Sequential(
            [layers.Dense(10, "gelu"), layers.Dense(shape[1]), layers.Dropout(0.1)]
        )
        self.channels = keras.Sequential(
            [layers.Dense(10, "gelu"), layers.Dense(shape[2]), layers.Dropout(0.1)]
        )
        self.first = layers.LayerNormalization()
        self.second = layers.LayerNormalization()

    def call(self, x):
        columns = ops.transpose(self.first(x), (0, 2, 1))
        x = x + ops.transpose(self.patches(columns), (0, 2, 1))
        return x + self.channels(self.second(x))


@program
def mlp_mixer():
    inputs = keras.Input((8, 8, 3))
    x = layers.Dense(8)(Patches(2)(inputs))
    x = Mixer()(Mixer()(x))
    return classifier(inputs, layers.GlobalAveragePooling1D()(x))


@program
def vision_transformer():
    inputs = keras.Input((8, 8, 3))
    x = ClassToken()(PatchEncoder(4, 8)(Patches(4)(inputs)))
    for _ in range(2):
        normed = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, 4, dropout=0.1)(normed, normed)
        normed = layers.LayerNormalization()(x)
        x = x + layers.Dense(8)(layers.Dense(16, activation="gelu")(normed))
    return classifier(inputs, layers.LayerNormalization()(x)[:, 0])


@register
class SequencePooling(layers.Layer):
    """Averages tokens by weights that it computes from them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.score = layers.Dense(1)

    def call(self, x):
        weights = ops.softmax(self.score(x), axis=1)
        return ops.squeeze(ops.matmul(ops.transpose(weights, (0, 2, 1)), x), axis=1)


@program
def compact_transformer():
    """Tokens by convolutions, pooled by attention."""
    inputs = keras.Input((8, 8, 3))
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(8, 3, use_bias=False, activation="relu")(x)
    x = layers.Reshape((-1, 8))(layers.MaxPooling2D(3, 2, padding="same")(x))
    x = TransformerBlock(8)(PatchEncoder(16, 8)(x))
    return classifier(inputs, SequencePooling()(x))


@program
def group_normalized():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    x = ops.silu(layers.GroupNormalization(4)(x))
    x = layers.Conv2D(8, 3, 2, groups=2)(x)
    x = ops.silu(layers.GroupNormalization(2)(x))
    x = layers.SpatialDropout2D(0.1)(layers.Conv2D(8, 3, dilation_rate=1)(x))
    return classifier(inputs, layers.GlobalAveragePooling2D()(x))


# Keras augments in exported models too.
@program(exports=False)
def image_from_scratch():
    """Augments and rescales images in the model."""
    augment = keras.Sequential(
        [layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)]
    )
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(1.0 / 255)(augment(inputs))
    x = layers.Conv2D(6, 3, 2, activation="relu")(x)
    x = layers.Conv2D(8, 2, activation="relu")(x)
    x = layers.Dropout(0.25)(layers.GlobalAveragePooling2D()(x))
    outputs = layers.Dense(1)(x)
    images = integers(256, 6, 8, 8, 3).astype("float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return Program(keras.Model(inputs, outputs), images, integers(2, 6, 1), loss)


@program
def transfer_learning():
    """A frozen network, which stays in inference mode, under a new head."""
    base = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
        ]
    )
    base.trainable = False
    inputs = keras.Input((8, 8, 3))
    x = layers.Dense(8, activation="relu")(base(inputs, training=False))
    return classifier(inputs, layers.Dropout(0.2)(x))


@program
def video_conv3d():
    inputs = keras.Input((4, 8, 8, 1))
    x = layers.Conv3D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.BatchNormalization()(layers.MaxPooling3D((1, 2, 2))(x))
    x = layers.Conv3D(6, 3, activation="relu")(x)
    return classifier(inputs, layers.GlobalAveragePooling3D()(x))
