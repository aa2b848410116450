"""Imports go one way, and the package stays as light and small as DESIGN says."""

import ast
import pathlib

import keras
from suite import IMPORTED

import keras_bdl

PACKAGE = pathlib.Path(keras_bdl.__file__).parent
MAX_LINES = 420


def _module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}

# A part may import itself, what is on its floor or below, and `interop`.
FLOORS = (
    ("core", "ops"),
    ("priors", "maps", "posteriors", "losses", "metrics", "plots"),
    ("layers",),
    ("graphs", "training"),
    ("prediction",),
    ("conversion",),
    ("sparsity", "early_exit"),
    ("callbacks", "exact", "generative", "models", "inference", "optimizers"),
)
# Public namespaces, which give names of other parts.
NAMESPACES = ("keras_bdl", "keras_bdl.models")
# Pure mathematics: of `core` it may take only these.
OF_OPS = ("ops", "core.typing", "core.validation")
# Tools know what layers have in common and no concrete layer, so that a new layer
# changes no tool.
TOOLS = ("graphs", "training", "prediction", "conversion", "sparsity", "early_exit")
COMMON = ("layers.bayesian", "layers.kl_weight", "layers.latent", "layers.wrapper")

# Packages that one module may import, or none.
ONLY_IMPORTER = {
    "tensorflow": "keras_bdl.interop.tensorflow",
    "tensorflow_probability": "keras_bdl.interop.tfp",
    "tf_keras": None,
    "jax": "keras_bdl.interop.jax",
    "torch": "keras_bdl.interop.torch",
}


def within(name, parts):
    """Whether a module is one of these parts of the package, or inside one."""
    full = [f"keras_bdl.{part}".rstrip(".") for part in parts]
    return any(name == part or name.startswith(f"{part}.") for part in full)


def imported(source):
    """Every module or name that a source imports, with the line, also lazily."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            found += [(f"{prefix}.{alias.name}", node.lineno) for alias in node.names]
    return found


def imported_modules(source):
    """As `imported`, with names of keras_bdl shortened to the module they are in."""
    found = []
    for name, line in imported(source):
        if name.startswith("keras_bdl"):
            while name not in PATHS:
                name = name.rpartition(".")[0]
        found.append((name, line))
    return found


def dotted(node):
    """`a.b.c` of an attribute chain, or None where it starts with a call or so."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])


def wrong_imports(name, source):
    """Imports of keras_bdl that go against the one way."""
    if name in NAMESPACES:
        return []
    part = name.split(".")[1]
    floor = next((i for i, parts in enumerate(FLOORS) if part in parts), -1)
    allowed = ["interop", *(below for parts in FLOORS[: floor + 1] for below in parts)]
    if part in TOOLS:
        allowed = [*(below for below in allowed if below != "layers"), *COMMON]
    if part == "ops":
        allowed = OF_OPS
    wrong = []
    for target, line in imported_modules(source):
        if target.startswith("."):
            wrong.append((target, line))  # absolute imports only
        elif target.startswith("keras_bdl") and not (
            target != "keras_bdl" and within(target, allowed)
        ):
            wrong.append((target, line))
    return wrong


def wrong_backends(name, source):
    """Imports of a backend outside the one file that may."""
    return [
        (target, line)
        for target, line in imported(source)
        for package, importer in ONLY_IMPORTER.items()
        if target.split(".")[0] == package and name != importer
    ]


def wrong_keras(source):
    """Uses of `keras.src` and of what `keras.backend` does not publish."""
    wrong, aliases = [], {"keras.backend": "keras.backend"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "keras":
            for alias in node.names:
                if alias.name == "backend":
                    aliases[alias.asname or alias.name] = "keras.backend"
    used = imported(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and dotted(node):
            used.append((dotted(node), node.lineno))
    for name, line in used:
        for alias, full in aliases.items():
            if name.startswith(f"{alias}."):
                name = full + name.removeprefix(alias)
        parts = name.split(".")
        if parts[:2] == ["keras", "src"]:
            wrong.append((name, line))
        if parts[:2] == ["keras", "backend"] and len(parts) > 2:
            private = parts[2].startswith("_") or not hasattr(keras.backend, parts[2])
            if private:
                wrong.append((name, line))
    return wrong


def imports_when_loaded(source, package):
    """Lines that import a package as soon as the module is imported."""

    def visit(node):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if any(name.split(".")[0] == package for name in names):
            yield node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return list(visit(ast.parse(source)))


def violations(check, *, with_name=True):
    """What a check finds, by module; empty when all is well."""
    found = {
        name: check(name, source) if with_name else check(source)
        for name, source in SOURCES.items()
    }
    return {name: wrong for name, wrong in found.items() if wrong}


def test_imports_go_one_way():
    assert violations(wrong_imports) == {}


def test_no_module_imports_a_backend_or_keras_internals():
    assert violations(wrong_backends) == {}
    assert violations(wrong_keras, with_name=False) == {}


def test_no_module_imports_matplotlib_when_loaded():
    for package in ("matplotlib", "pandas", "sklearn", "tensorflow_datasets"):
        assert not any(imports_when_loaded(s, package) for s in SOURCES.values())


def test_the_one_private_method_of_keras_is_called_in_one_place():
    places = [
        name
        for name, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr == "_flatten_layers"
    ]
    assert places == ["keras_bdl.core.finding"]


def test_files_stay_small():
    lengths = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_the_checks_see_violations():
    for check, name, source in (
        (wrong_imports, "keras_bdl.ops.new", "from keras_bdl import priors"),
        (wrong_imports, "keras_bdl.ops.new", "from keras_bdl.core import scopes"),
        (wrong_imports, "keras_bdl.priors.new", "import keras_bdl.layers.bayesian"),
        (wrong_imports, "keras_bdl.layers.new", "from keras_bdl.models import X"),
        (wrong_imports, "keras_bdl.layers.new", "def f():\n import keras_bdl"),
        (wrong_imports, "keras_bdl.graphs.new", "from keras_bdl import layers"),
        (
            wrong_imports,
            "keras_bdl.sparsity.new",
            "from keras_bdl.layers.variational import VariationalDense",
        ),
        (wrong_imports, "keras_bdl.sparsity.new", "from .layers import bayesian"),
        (wrong_imports, "keras_bdl.conversion.new", "from keras_bdl import sparsity"),
        (wrong_imports, "keras_bdl.unknown", "from keras_bdl.core import finding"),
        (wrong_backends, "keras_bdl.core.noise", "def f():\n import tensorflow as tf"),
        (wrong_backends, "keras_bdl.core.noise", "from jax import numpy"),
        (wrong_backends, "keras_bdl.priors", "import tensorflow_probability.python"),
    ):
        assert check(name, source), source
    for source in (
        "import keras.src.layers",
        "from keras.src import backend",
        "import keras\nkeras.src.layers.Dense",
        "from keras.backend import common",
        "from keras import backend\nbackend.tensorflow.nn",
        "import keras\nkeras.backend._name",
    ):
        assert wrong_keras(source), source


def test_the_checks_pass_what_is_right():
    tool = "from keras_bdl import ops\nfrom keras_bdl.layers import bayesian\n"
    assert not wrong_imports("keras_bdl.graphs.new", tool)
    assert not wrong_keras("from keras import backend\nbackend.backend()")
    lazy = "def f():\n    import matplotlib.pyplot as plt"
    assert not imports_when_loaded(lazy, "matplotlib")
    assert imports_when_loaded("import matplotlib.pyplot", "matplotlib") == [1]


def test_importing_the_package_imports_nothing_heavy():
    # Beyond `import keras`, which itself takes matplotlib where it finds it.
    assert "keras_bdl" in IMPORTED
    heavy = {"tensorflow_probability", "tf_keras", "tensorflow", "jax", "torch"}
    heavy |= {"matplotlib", "sklearn", "tensorflow_datasets"}
    assert not IMPORTED & heavy


def test_public_names_exist_and_are_documented():
    for name in keras_bdl.__all__:
        value = getattr(keras_bdl, name)
        own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
        assert own and own.strip(), name


def test_all_lists_every_public_name():
    public = {name for name in vars(keras_bdl) if not name.startswith("_")}
    modules = {name.split(".")[1] for name in PATHS if name.count(".") == 1}
    assert set(keras_bdl.__all__) <= public
    assert public - modules <= set(keras_bdl.__all__)
    assert list(keras_bdl.__all__) == sorted(set(keras_bdl.__all__))


def test_scopes_are_in_one_file():
    kept = {
        name
        for name, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and dotted(node) in ("threading.local", "contextvars.ContextVar")
    }
    assert kept == {"keras_bdl.core.scopes"}


def test_public_modules_say_what_is_public():
    for name in ("losses", "metrics", "callbacks", "plots", "layers", "priors", "ops"):
        module = getattr(keras_bdl, name)
        assert module.__all__ == sorted(module.__all__)
        assert all(hasattr(module, public) for public in module.__all__)
