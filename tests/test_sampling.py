"""Noise: uncorrelated streams, repeatable scope, nothing assigned inside it."""

import itertools

import keras
import numpy as np
import pytest
from contract import to_numpy

from keras_bdl.core import scopes
from keras_bdl.core.noise import NoiseGenerator

BACKEND = keras.backend.backend()
SIZE = 2000


def draws(generator, count=5):
    return [
        to_numpy(keras.random.normal((SIZE,), seed=generator)) for _ in range(count)
    ]


def assert_uncorrelated(streams):
    for a, b in itertools.combinations(streams, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5.5 / np.sqrt(SIZE)


def test_neighbouring_seeds_and_equal_seeds_of_two_layers_are_uncorrelated():
    streams = []
    for seed, name in ((0, "a"), (1, "a"), (2, "a"), (0, "b")):
        streams += draws(NoiseGenerator(seed, salt=name))
    assert_uncorrelated(streams)


def test_equal_seed_and_name_repeat():
    first, second = (draws(NoiseGenerator(3, salt="x")) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_draws_in_the_scope_differ_by_seed_block_layer_and_order():
    layers = [NoiseGenerator(0, salt=name) for name in "ab"]
    streams = []
    for seed, block, layer in itertools.product((0, 1), (0, 1), layers):
        with scopes.SamplingScope(seed, block, 1):
            streams += draws(layer, count=2)
    assert_uncorrelated(streams)


def test_the_scope_assigns_nothing_and_restarts():
    generator = NoiseGenerator(0)
    before = to_numpy(generator.state)
    with scopes.SamplingScope(5, 0, 1) as scope:
        first = draws(generator, count=2)
        scope.restart(generator)
        again = draws(generator, count=2)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(before, to_numpy(generator.state))
    assert scopes.SamplingScope.current() is None


def test_frozen_noise_repeats_the_next_draw():
    generator = NoiseGenerator(0)
    with scopes.FrozenNoise():
        frozen = draws(generator, count=2)
    live = draws(generator, count=2)
    np.testing.assert_array_equal(frozen[0], frozen[1])
    np.testing.assert_array_equal(frozen[0], live[0])
    assert np.abs(live[0] - live[1]).max() > 0


def test_many_draws_never_share_a_seed():
    generator = NoiseGenerator(0)
    seeds = {tuple(to_numpy(generator.next()).tolist()) for _ in range(500)}
    assert len(seeds) == 500


def test_noise_in_a_branch():
    generator = NoiseGenerator(0)

    def draw(flag):
        with scopes.SamplingScope(0, 0, 1):
            return keras.ops.cond(
                flag,
                lambda: keras.random.normal((3,), seed=generator),
                lambda: keras.ops.zeros((3,)),
            )

    assert np.abs(to_numpy(draw(keras.ops.convert_to_tensor(True)))).min() > 0
    assert np.abs(to_numpy(draw(keras.ops.convert_to_tensor(False)))).max() == 0


def test_replicas_draw_different_noise(only_tensorflow):
    import subprocess
    import sys
    import textwrap

    script = textwrap.dedent(
        """
        import numpy as np, tensorflow as tf
        cpus = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )
        import keras
        from keras_bdl.core.noise import NoiseGenerator
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            generator = NoiseGenerator(0)
        @tf.function
        def draw():
            return strategy.run(lambda: keras.random.normal((2000,), seed=generator))
        streams = [v.numpy() for _ in range(5) for v in draw().values]
        correlation = np.corrcoef(streams) - np.eye(len(streams))
        assert len(streams) == 10
        assert np.abs(correlation).max() < 5.5 / np.sqrt(2000), correlation
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


_RANK = """
import sys, keras, torch
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.core.scopes import SamplingScope
rank, path = int(sys.argv[1]), sys.argv[2]
generator = NoiseGenerator(0)
alone = generator.next()
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{path}", rank=rank, world_size=2
)
words = [generator.next().tolist() for _ in range(3)]
with SamplingScope(0, 0, 1):
    inside = generator.next().tolist()
print(alone.tolist(), words, inside, sep="|")
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(BACKEND != "torch", reason="ranks of torch.distributed")
def test_noise_depends_on_the_rank(monkeypatch):
    import torch

    alone = NoiseGenerator(0).next().tolist()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    words = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        words.append(NoiseGenerator(0).next().tolist())
        with scopes.SamplingScope(0, 0, 1):
            words.append(NoiseGenerator(0).next().tolist())
    first, inside, second, other_inside = words
    assert inside == other_inside  # a sample is the same on every rank
    assert len({tuple(alone), tuple(first), tuple(second), tuple(inside)}) == 4


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="processes of torch.distributed")
def test_ranks_draw_different_noise(tmp_path):
    import subprocess
    import sys

    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0].split("|") for rank in ranks]
    (alone, first, inside), (other_alone, second, other_inside) = outputs
    assert alone == other_alone and inside == other_inside
    assert not {*map(tuple, eval(first))} & {*map(tuple, eval(second))}


def test_bad_seed_of_a_layer_names_the_argument():
    import keras_bdl

    with pytest.raises(TypeError, match="seed.*Received"):
        keras_bdl.VariationalDense(2, seed="zero")
