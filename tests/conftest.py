"""Sets the backend, KERAS_BACKEND (default TensorFlow), and loads the suite."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs of the tests are small and run a few times: what costs is to compile them,
# and threads that wait for each other.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")


def pytest_configure(config):
    # With `-n` this process hands out the tests, and the others run them: it need not
    # wait for an import of Keras.
    hands_out = config.getoption("numprocesses", None) and not hasattr(
        config, "workerinput"
    )
    if not hands_out:
        config.pluginmanager.import_plugin("suite")
