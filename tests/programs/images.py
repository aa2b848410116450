"""Programs from images to images, to boxes, to vectors, and of pairs of images."""

import keras
import numpy as np
from keras import layers, ops

from programs.registry import Program, floats, integers, program, register

CROSSENTROPY = "sparse_categorical_crossentropy"


def convolve(x, filters):
    x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    return layers.BatchNormalization()(x)


@program
def unet():
    inputs = keras.Input((8, 8, 2))
    top = convolve(inputs, 6)
    middle = convolve(layers.MaxPooling2D()(top), 8)
    bottom = convolve(layers.MaxPooling2D()(middle), 8)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(bottom)
    x = convolve(layers.concatenate([x, middle]), 8)
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same")(x)
    x = layers.Dropout(0.2)(convolve(layers.concatenate([x, top]), 6))
    outputs = layers.Conv2D(3, 1, activation="softmax")(x)
    model = keras.Model(inputs, outputs)
    return Program(model, floats(6, 8, 8, 2), integers(3, 6, 8, 8), CROSSENTROPY)


@program
def segmentation():
    """Dilated convolutions side by side, and bilinear upsampling."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, 2, padding="same", activation="relu")(inputs)
    branches = [
        layers.Conv2D(4, 3, dilation_rate=rate, padding="same", activation="relu")(x)
        for rate in (1, 2)
    ]
    pooled = layers.AveragePooling2D(4)(x)
    pooled = layers.Conv2D(4, 1, activation="relu")(pooled)
    branches.append(layers.UpSampling2D(4, interpolation="bilinear")(pooled))
    x = layers.Conv2D(6, 1, activation="relu")(layers.Concatenate()(branches))
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Program(model, floats(6, 8, 8, 3), integers(2, 6, 8, 8), loss)


@program
def denoising_autoencoder():
    x = inputs = keras.Input((8, 8, 1))
    x = layers.GaussianNoise(0.3)(x)
    for filters in (6, 4):
        x = layers.Conv2D(filters, 3, activation="relu", padding="same")(x)
        x = layers.MaxPooling2D(padding="same")(x)
    for filters in (4, 6):
        x = layers.Conv2DTranspose(filters, 3, 2, padding="same", activation="relu")(x)
    x = layers.Conv2D(1, 3, activation="sigmoid", padding="same")(x)
    images = np.random.uniform(size=(6, 8, 8, 1)).astype("float32")
    return Program(keras.Model(inputs, x), images, images, "binary_crossentropy")


@program
def super_resolution():
    """Twice the size by channels that become pixels."""
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(8, 5, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.Reshape((4, 4, 2, 2, 1))(x)
    x = layers.Permute((1, 3, 2, 4, 5))(x)
    model = keras.Model(inputs, layers.Reshape((8, 8, 1))(x))
    return Program(model, floats(6, 4, 4, 1), floats(6, 8, 8, 1), "mse")


@program
def image_generator():
    """From a code to an image, as the generator of a DCGAN."""
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(2 * 2 * 6),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Reshape((2, 2, 6)),
            layers.Conv2DTranspose(6, 4, strides=2, padding="same", use_bias=False),
            layers.LeakyReLU(negative_slope=0.2),
            layers.UpSampling2D(),
            layers.Conv2D(1, 3, padding="same", activation="tanh"),
        ]
    )
    return Program(model, floats(6, 5), np.tanh(floats(6, 8, 8, 1)), "mae")


@program
def siamese():
    """One network for both images of a pair."""
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(6, activation="tanh"),
        ],
        name="encoder",
    )
    left, right = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    square = ops.square(encoder(left) - encoder(right))
    distance = ops.sqrt(ops.sum(square, axis=1, keepdims=True) + 1e-6)
    same = layers.Dense(1, activation="sigmoid")(layers.BatchNormalization()(distance))
    x = [floats(6, 8, 8, 1), floats(6, 8, 8, 1)]
    loss = "binary_crossentropy"
    return Program(keras.Model([left, right], same), x, integers(2, 6, 1), loss)


@register
class SoftNeighbours(keras.losses.Loss):
    """Codes of rows with the same label should be near, of others far."""

    def call(self, y_true, y_pred):
        labels = ops.reshape(y_true, (-1, 1))
        same = ops.cast(labels == ops.transpose(labels), y_pred.dtype)
        similarity = 5.0 * ops.matmul(y_pred, ops.transpose(y_pred))
        log_probability = ops.log_softmax(similarity, axis=-1)
        return -ops.sum(same * log_probability, axis=-1) / ops.sum(same, axis=-1)


@program(outputs="mean")
def metric_learning():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, strides=2, activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 2, activation="relu")(x))
    model = keras.Model(inputs, layers.UnitNormalization()(layers.Dense(4)(x)))
    return Program(model, floats(8, 8, 8, 3), integers(3, 8), SoftNeighbours())


@program
def object_detection():
    """A box and a label, by name."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, strides=2, activation="relu")(inputs)
    x = layers.Flatten()(layers.Conv2D(6, 2, activation="relu")(x))
    x = layers.Dense(10, activation="relu")(x)
    outputs = {
        "box": layers.Dense(4, activation="sigmoid", name="box")(x),
        "label": layers.Dense(3, activation="softmax", name="label")(x),
    }
    y = {
        "box": np.random.uniform(size=(6, 4)).astype("float32"),
        "label": integers(3, 6),
    }
    loss = {"box": "mse", "label": CROSSENTROPY}
    return Program(keras.Model(inputs, outputs), floats(6, 8, 8, 3), y, loss)


@register
class PyramidDetector(keras.Model):
    """Boxes and labels for every place, from two scales with one shared head."""

    def __init__(self, classes, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes
        self.backbone = [
            layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")
            for _ in range(2)
        ]
        self.lateral = [layers.Conv2D(6, 1) for _ in range(2)]
        self.upsample = layers.UpSampling2D(2)
        self.box_head = keras.Sequential(
            [
                layers.Conv2D(6, 3, padding="same", activation="relu"),
                layers.Conv2D(4, 1),
            ]
        )
        self.class_head = layers.Conv2D(classes, 3, padding="same")

    def call(self, images):
        fine = self.backbone[0](images)
        coarse = self.lateral[1](self.backbone[1](fine))
        fine = self.lateral[0](fine) + self.upsample(coarse)
        boxes, labels = [], []
        for features in (fine, coarse):
            places = features.shape[1] * features.shape[2]
            boxes.append(ops.reshape(self.box_head(features), (-1, places, 4)))
            scores = self.class_head(features)
            labels.append(ops.reshape(scores, (-1, places, self.classes)))
        return [ops.concatenate(boxes, axis=1), ops.concatenate(labels, axis=1)]

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}


@program
def pyramid_detector():
    y = [floats(6, 20, 4), integers(3, 6, 20)]
    loss = ["huber", keras.losses.SparseCategoricalCrossentropy(from_logits=True)]
    return Program(PyramidDetector(3), floats(6, 8, 8, 3), y, loss)


@program
def nerf():
    """Colours along rays, summed by their density."""
    inputs = keras.Input((5, 3))
    x = features = FourierFeatures(3)(inputs)
    for index in range(3):
        x = layers.Dense(12, activation="relu")(x)
        if index == 1:
            x = layers.concatenate([x, features], axis=-1)
    model = keras.Model(inputs, Rendering()(layers.Dense(4)(x)))
    rays = np.random.uniform(-1, 1, size=(6, 5, 3)).astype("float32")
    colours = np.random.uniform(size=(6, 3)).astype("float32")
    return Program(model, rays, colours, "mse")


@register
class FourierFeatures(layers.Layer):
    def __init__(self, num_frequencies, **kwargs):
        super().__init__(**kwargs)
        self.num_frequencies = num_frequencies

    def call(self, x):
        parts = [x]
        for index in range(self.num_frequencies):
            parts += [ops.sin(2.0**index * x), ops.cos(2.0**index * x)]
        return ops.concatenate(parts, axis=-1)

    def get_config(self):
        return {**super().get_config(), "num_frequencies": self.num_frequencies}


@register
class Rendering(layers.Layer):
    def call(self, x):
        opacity = 1.0 - ops.exp(-0.2 * ops.softplus(x[..., 3]))
        seen = ops.cumprod(1.0 - opacity + 1e-6, axis=-1)
        seen = ops.concatenate([ops.ones_like(seen[:, :1]), seen[:, :-1]], axis=-1)
        weights = (opacity * seen)[..., None]
        return ops.sum(weights * ops.sigmoid(x[..., :3]), axis=1)


@register
class Orthogonal(keras.regularizers.Regularizer):
    """Keeps the matrices of a batch near orthogonal ones."""

    def __init__(self, size, factor=1e-3):
        self.size, self.factor = size, factor

    def __call__(self, x):
        x = ops.reshape(x, (-1, self.size, self.size))
        product = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
        return ops.sum(self.factor * ops.square(product - ops.eye(self.size)))

    def get_config(self):
        return {"size": self.size, "factor": self.factor}


@program
def point_net():
    """Clouds of points, turned by a matrix that the network finds."""
    inputs = keras.Input((9, 3))
    x = layers.Conv1D(8, 1)(inputs)
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dense(8, activation="relu")(layers.GlobalMaxPooling1D()(x))
    matrix = layers.Dense(
        9,
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(np.eye(3).reshape(-1).tolist()),
        activity_regularizer=Orthogonal(3),
    )(x)
    x = layers.Dot(axes=(2, 1))([inputs, layers.Reshape((3, 3))(matrix)])
    x = layers.Conv1D(10, 1, activation="relu")(x)
    x = layers.Dropout(0.3)(layers.GlobalMaxPooling1D()(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    return Program(model, floats(8, 9, 3), integers(3, 8), CROSSENTROPY)


@register
class CaptionDecoder(layers.Layer):
    """Words attend to those before them and to the image."""

    def __init__(self, vocabulary, width, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary, self.width = vocabulary, width
        self.embed = layers.Embedding(vocabulary, width)
        self.to_words = layers.MultiHeadAttention(2, width // 2)
        self.to_image = layers.MultiHeadAttention(2, width // 2)
        self.forward = layers.Dense(width, activation="relu")
        self.norms = [layers.LayerNormalization() for _ in range(2)]
        self.out = layers.Dense(vocabulary, activation="softmax")

    def call(self, words, image):
        x = self.embed(words)
        x = self.norms[0](x + self.to_words(x, x, use_causal_mask=True))
        x = self.norms[1](x + self.to_image(query=x, value=image, key=image))
        return self.out(x + self.forward(x))

    def get_config(self):
        own = {"vocabulary": self.vocabulary, "width": self.width}
        return {**super().get_config(), **own}


@program
def image_captioning():
    image = keras.Input((8, 8, 3), name="image")
    words = keras.Input((5,), dtype="int32", name="words")
    x = layers.Conv2D(6, 3, strides=2, activation="relu")(image)
    x = layers.Dense(8, activation="relu")(layers.Reshape((9, 6))(x))
    outputs = CaptionDecoder(9, 8)(words, image=x)
    model = keras.Model({"image": image, "words": words}, outputs)
    x = {"image": floats(6, 8, 8, 3), "words": integers(9, 6, 5)}
    return Program(model, x, integers(9, 6, 5), CROSSENTROPY)


@register
class DualEncoder(keras.Model):
    """How well a text fits an image: the cosine of their codes."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.image = keras.Sequential(
            [
                layers.Conv2D(6, 3, strides=2, activation="gelu"),
                layers.Flatten(),
                layers.Dense(width),
            ]
        )
        self.text = keras.Sequential(
            [
                layers.Embedding(9, 8),
                layers.GlobalAveragePooling1D(),
                layers.Dense(width),
            ]
        )

    def call(self, inputs):
        image = ops.normalize(self.image(inputs["image"]), axis=-1)
        text = ops.normalize(self.text(inputs["text"]), axis=-1)
        return ops.sum(image * text, axis=-1, keepdims=True)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@program
def dual_encoder():
    x = {"image": floats(6, 8, 8, 3), "text": integers(9, 6, 4)}
    return Program(DualEncoder(6), x, floats(6, 1), "mse")
