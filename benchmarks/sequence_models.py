"""Recurrent layers, a transformer block and a table of words, beside their twins.

    KERAS_BACKEND=jax python benchmarks/sequence_models.py

A training step of the Bayesian model beside that of the plain one, in turns, medians of
several epochs of `fit`. Then 32 posterior samples of a batch beside 32 compiled calls
of the plain network.

"two_tables" is no Bayesian model: it has two plain tables in place of one, which is
what the means and deviations of a table cost without any noise or KL. "bert_lora" is
BERT tiny of KerasHub, where it is installed: Bayesian adapters of rank 8 beside those
of Keras in the same layers.
"""

import argparse
import importlib.util
import time

import common
import keras
import numpy as np
from keras import layers

import keras_bdl
from keras_bdl.core.finding import flatten_layers

STEPS, ROUNDS, SAMPLES = 30, 15, 32
WIDTH, LENGTH, BATCH, WORDS, RANK = 64, 32, 64, 20_000, 8
NUM_EXAMPLES = 60_000


def recurrent(cls):
    inputs = keras.Input((LENGTH, WIDTH))
    return keras.Model(inputs, layers.Dense(10)(cls(WIDTH)(inputs)))


def transformer_block():
    inputs = keras.Input((LENGTH, WIDTH))
    attended = layers.MultiHeadAttention(4, WIDTH // 4)(inputs, inputs)
    x = layers.LayerNormalization()(inputs + attended)
    hidden = layers.Dense(4 * WIDTH, activation="gelu")(x)
    x = layers.LayerNormalization()(x + layers.Dense(WIDTH)(hidden))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def embedding():
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH)(inputs)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def two_tables():
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH)(inputs) + layers.Embedding(WORDS, WIDTH)(inputs)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def bert_tiny():
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30_522,
        num_layers=2,
        num_heads=2,
        hidden_dim=128,
        intermediate_dim=512,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.BertTextClassifier(backbone, 10, preprocessor=None)


def with_keras_lora(model):
    """Adapters of Keras in every layer that has them; nothing else is trained."""
    for layer in flatten_layers(model):
        if isinstance(layer, (layers.Dense, layers.EinsumDense, layers.Embedding)):
            layer.enable_lora(RANK)
    for variable in model.trainable_variables:
        variable.trainable = variable.name.startswith("lora_")
    return model


def pair(name):
    """The plain model and the Bayesian one."""
    if name == "bert_lora":
        model = bert_tiny()
        options = {"method": "lora", "rank": RANK}
        bayesian = keras_bdl.to_bayesian(model, NUM_EXAMPLES, **options)
        return with_keras_lora(model), bayesian
    plain = MODELS[name]()
    if name == "two_tables":
        return embedding(), plain
    return plain, keras_bdl.to_bayesian(plain, NUM_EXAMPLES)


MODELS = {
    "lstm": lambda: recurrent(layers.LSTM),
    "gru": lambda: recurrent(layers.GRU),
    "transformer_block": transformer_block,
    "embedding": embedding,
    "two_tables": two_tables,
    "bert_lora": bert_tiny,
}


def data(model, rows):
    rng = np.random.default_rng(0)
    if isinstance(model.input, dict):
        ones = np.ones((rows, LENGTH), "int32")
        tokens = {"token_ids": rng.integers(0, WORDS, (rows, LENGTH))}
        return {**tokens, "padding_mask": ones, "segment_ids": 0 * ones}
    if model.input.dtype == "int32":
        return rng.integers(0, WORDS, (rows, LENGTH))
    return rng.normal(size=(rows, *model.input_shape[1:])).astype("float32")


def step_times(models, rounds):
    """Milliseconds of a training step by model: a list of one value per round."""
    x = data(next(iter(models.values())), BATCH * STEPS)
    y = np.random.default_rng(1).integers(0, 10, BATCH * STEPS)
    times = {name: [] for name in models}
    for model in models.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss)
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
            times[name].append((time.perf_counter() - start) / STEPS * 1e3)
    return times


def compiled_call(model):
    """A compiled function of the backend that calls a model."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: model(x, training=False))
    import jax

    values = (
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    )
    run = jax.jit(lambda x: model.stateless_call(*values, x, training=False)[0])
    return lambda x: run(x).block_until_ready()


def predict_times(plain, bayesian, rounds):
    """Milliseconds of 32 samples, and of 32 compiled calls of the plain network."""
    x = data(plain, BATCH)
    tensor = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    call = compiled_call(plain)
    options = {"outputs": "logits", "batch_size": BATCH, "verbose": 0, "seed": 0}

    def calls():
        for _ in range(SAMPLES):
            call(tensor)

    runs = {
        "samples": lambda: keras_bdl.predict(bayesian, x, SAMPLES, **options),
        "calls": calls,
    }
    times = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: values[1:] for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=MODELS, help="one model")
    args = parser.parse_args()
    table = {}
    for name in MODELS:
        if args.only not in (None, name):
            continue
        if name == "bert_lora" and importlib.util.find_spec("keras_hub") is None:
            print(f"{name:20s} left out: KerasHub is not installed")
            continue
        plain, bayesian = pair(name)
        models = {"plain": plain, "bayesian": bayesian}
        times = step_times(models, args.rounds)
        ratios = np.divide(times["bayesian"], times["plain"])
        row = {key: float(np.median(values)) for key, values in times.items()}
        row["step_ratio"] = float(np.median(ratios))
        if name != "two_tables":
            predicted = predict_times(plain, bayesian, args.rounds)
            row |= {key: float(np.median(values)) for key, values in predicted.items()}
            row["predict_ratio"] = float(
                np.median(np.divide(predicted["samples"], predicted["calls"]))
            )
        table[name] = row
        print(f"{name:20s}", *(f"{k} {v:.2f}" for k, v in row.items()), flush=True)
    if args.only is None:
        backend = keras.backend.backend()
        common.save(f"sequence_models_{backend}", {"milliseconds": table})


if __name__ == "__main__":
    main()
