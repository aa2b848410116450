"""Layers that several programs have in common."""

from keras import initializers, layers, ops, random

from programs.registry import register


@register
class TokenAndPosition(layers.Layer):
    """Embeds tokens and adds an embedding of their positions."""

    def __init__(self, length, vocabulary, width, mask_zero=False, **kwargs):
        super().__init__(**kwargs)
        self.length, self.vocabulary, self.width = length, vocabulary, width
        self.mask_zero = mask_zero
        self.tokens = layers.Embedding(vocabulary, width)
        self.positions = layers.Embedding(length, width)

    def call(self, tokens):
        positions = ops.arange(ops.shape(tokens)[-1])
        return self.tokens(tokens) + self.positions(positions)

    def compute_mask(self, tokens, mask=None):
        return ops.not_equal(tokens, 0) if self.mask_zero else None

    def get_config(self):
        names = ("length", "vocabulary", "width", "mask_zero")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@register
class TransformerBlock(layers.Layer):
    """Attention to itself and two dense layers, each with a residual connection."""

    def __init__(self, width, heads=2, rate=0.1, causal=False, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads, self.rate, self.causal = width, heads, rate, causal
        self.supports_masking = True
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.hidden = layers.Dense(2 * width, activation="relu")
        self.out = layers.Dense(width)
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.dropouts = [layers.Dropout(rate) for _ in range(2)]

    def call(self, x, training=None):
        attended = self.attention(x, x, use_causal_mask=self.causal)
        x = self.norms[0](x + self.dropouts[0](attended, training=training))
        forward = self.out(self.hidden(x))
        return self.norms[1](x + self.dropouts[1](forward, training=training))

    def get_config(self):
        names = ("width", "heads", "rate", "causal")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@register
class StochasticDepth(layers.Layer):
    """Drops its input for whole rows in training, to add to a residual connection."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed_generator = random.SeedGenerator(7)

    def call(self, x, training=None):
        if not training:
            return x
        shape = (ops.shape(x)[0], *(1,) * (len(x.shape) - 1))
        uniform = random.uniform(shape, dtype=x.dtype, seed=self.seed_generator)
        return x * ops.floor(uniform + 1.0 - self.rate) / (1.0 - self.rate)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@register
class LayerScale(layers.Layer):
    """Multiplies every channel by a weight of its own, which starts small."""

    def __init__(self, initial=0.1, **kwargs):
        super().__init__(**kwargs)
        self.initial = initial

    def build(self, shape):
        start = initializers.Constant(self.initial)
        self.gamma = self.add_weight((shape[-1],), start, name="gamma")

    def call(self, x):
        return x * self.gamma

    def get_config(self):
        return {**super().get_config(), "initial": self.initial}


@register
class Patches(layers.Layer):
    """Cuts images into patches: (rows, patches, pixels of a patch)."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, images):
        rows, height, width, channels = ops.shape(images)
        down, across = height // self.size, width // self.size
        x = ops.reshape(images, (rows, down, self.size, across, self.size, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (rows, down * across, self.size**2 * channels))

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@register
class PatchEncoder(layers.Layer):
    """Projects patches and adds an embedding of their positions."""

    def __init__(self, patches, width, **kwargs):
        super().__init__(**kwargs)
        self.patches, self.width = patches, width
        self.projection = layers.Dense(width)
        self.position = layers.Embedding(patches, width)

    def call(self, patches):
        positions = ops.expand_dims(ops.arange(self.patches), 0)
        return self.projection(patches) + self.position(positions)

    def get_config(self):
        own = {"patches": self.patches, "width": self.width}
        return {**super().get_config(), **own}


@register
class ClassToken(layers.Layer):
    """Puts a learned token before those of every row."""

    def build(self, shape):
        self.token = self.add_weight(
            shape=(1, 1, shape[-1]), initializer="random_normal", name="token"
        )

    def call(self, x):
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([ops.cast(token, x.dtype), x], axis=1)
