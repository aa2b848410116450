"""Old names of public arguments work, with a warning."""

import keras
import numpy as np
import pytest

import keras_bdl
from keras_bdl.core.renamed import renamed


def vae(**options):
    encoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    decoder = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    return keras_bdl.VAE(encoder, decoder, **options)


def test_an_old_name_is_passed_on_with_a_warning():
    @renamed(num="num_samples", noise="with_noise")
    def sample(num_samples, with_noise=False):
        return num_samples, with_noise

    with pytest.warns(DeprecationWarning, match="`num` is `num_samples` now"):
        assert sample(num=3) == (3, False)
    with pytest.warns(DeprecationWarning):
        assert sample(2, noise=True) == (2, True)
    with pytest.raises(TypeError, match="Received: num_samples=1, num=2"):
        sample(num_samples=1, num=2)


def test_the_weight_of_the_kl_of_a_vae():
    with pytest.warns(DeprecationWarning, match="`beta` is `kl_weight` now"):
        model = vae(beta=0.5)
    assert model.get_config()["kl_weight"] == 0.5
    assert "beta" not in model.get_config()


def test_samples_of_a_vae():
    model = vae()
    with pytest.warns(DeprecationWarning, match="`noise` is `with_noise` now"):
        old = model.sample(num=4, seed=1, noise=True)
    np.testing.assert_array_equal(old, model.sample(4, seed=1, with_noise=True))


def test_the_rate_of_gaussian_dropout():
    with pytest.warns(DeprecationWarning, match="`rate` is `initial_rate` now"):
        layer = keras_bdl.VariationalGaussianDropout(rate=0.3)
    assert layer.rate == layer.initial_rate == layer.get_config()["initial_rate"] == 0.3


@pytest.mark.parametrize(
    "old, new",
    [
        (
            lambda: keras_bdl.SparseVDDense(2, kl="approximate"),
            lambda: keras_bdl.SparseVDDense(2, kl_form="approximate"),
        ),
        (
            lambda: keras_bdl.posteriors.SparseVD(kl="approximate"),
            lambda: keras_bdl.posteriors.SparseVD(kl_form="approximate"),
        ),
        (
            lambda: keras_bdl.priors.NormalPerWeight(stddev=0.5),
            lambda: keras_bdl.priors.NormalPerWeight(0.5),
        ),
    ],
)
def test_configs_have_the_new_name(old, new):
    with pytest.warns(DeprecationWarning, match="now"):
        config = old().get_config()
    config.pop("name", None)
    expected = new().get_config()
    expected.pop("name", None)
    assert config == expected
