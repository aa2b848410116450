"""Export of a VAE as a SavedModel, with an endpoint for each of its queries."""

import keras

from keras_bdl.core import scopes, stochastic
from keras_bdl.generative import programs

# The most codes of each row that `log_prob` holds at a time.
_BLOCK = 64


def export(vae, filepath, verbose=None):
    """Writes the SavedModel that `VAE.export` describes."""
    from keras_bdl.interop import tensorflow

    def serve(x):
        return vae(x, training=False)

    def encode(x):
        return programs.encoding(vae, x)

    def decode(z):
        return vae.explained(z)

    def sample(num, seed):
        with scopes.SamplingScope(seed, 0, 1, stochastic.places(vae)):
            codes = vae.latent.prior.draw(num, vae.latent.noise)
        return decode(codes)

    def log_prob(x, num_samples, seed):
        return programs.evidence(vae, x, num_samples, block, seed)["log_prob"]

    block = programs.codes_held(vae, _BLOCK)
    x = keras.InputSpec(dtype="float32", shape=(None, *vae.example_shape), name="x")
    z = keras.InputSpec(dtype="float32", shape=(None, vae.latent_dim), name="z")
    num, seed, num_samples = (
        keras.InputSpec(dtype="int32", shape=(), name=name)
        for name in ("num", "seed", "num_samples")
    )
    archive = keras.export.ExportArchive()
    archive.track(vae)
    for endpoint, signature in (
        (serve, [x]),
        (encode, [x]),
        (decode, [z]),
        (sample, [num, seed]),
        (log_prob, [x, num_samples, seed]),
    ):
        archive.add_endpoint(endpoint.__name__, endpoint, input_signature=signature)
    tensorflow.write_saved_model(archive, filepath, verbose)
