"""Files of `save_sparse`: damage is seen, claims are not believed, good files stay."""

import io
import json
import os
import tracemalloc
import zipfile

import keras
import numpy as np
import pytest
from contract import to_numpy

import keras_bdl
from keras_bdl.core import files

X = np.random.default_rng(1).normal(size=(4, 6)).astype("float32")
OLD_FORMAT = "keras_bdl sparse 2"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file with a sparse and a dense matrix, and the outputs of its model."""
    rng = np.random.default_rng(0)
    sparse, dense = keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((6,)), sparse, dense])
    kernel = rng.normal(size=(6, 8)) * (rng.random((6, 8)) < 0.4)
    sparse.set_weights([kernel, rng.normal(size=8)])
    path = tmp_path_factory.mktemp("saved") / "good.npz"
    keras_bdl.save_sparse(model, path, dtype="float32")
    return path, to_numpy(model(X))


def parts_of(path):
    with np.load(path) as archive:
        parts = {name: archive[name] for name in archive}
    return json.loads(parts.pop("header").tobytes()), parts


def write(path, header, parts, old=False):
    """Writes what may be wrong; a file of the old format has no digest."""
    if old:
        header = {**header, "format": OLD_FORMAT}
        parts = {name: part for name, part in parts.items() if name != "sha256"}
    content = np.frombuffer(json.dumps(header).encode(), "uint8")
    np.savez_compressed(path, header=content, **parts)


def is_refused(path, expected):
    """Whether a file is refused by a clear error; else it has the right model."""
    try:
        model = keras_bdl.load_sparse(path)
    except ValueError as error:
        assert "Expected a" in str(error) and "Received: path=" in str(error)
        return True
    np.testing.assert_allclose(to_numpy(model(X)), expected, atol=1e-6)
    return False


def test_cut_and_flipped_files_are_refused_or_right(saved, tmp_path):
    path, expected = saved
    good, bad = path.read_bytes(), tmp_path / "bad.npz"
    rng = np.random.default_rng(0)
    for end in rng.choice(len(good), size=100, replace=False):
        bad.write_bytes(good[:end])
        assert is_refused(bad, expected)
    refused = 0
    for position in rng.choice(len(good), size=200, replace=False):
        damaged = bytearray(good)
        damaged[position] ^= 1 << rng.integers(8)
        bad.write_bytes(damaged)
        refused += is_refused(bad, expected)
    # Dates and the like are in the file too, and do not matter.
    assert 120 < refused < 200


def changes(rng, value):
    """Another value in place of one in a header."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + rng.choice([-1, 1, 7, 10**6])
    if isinstance(value, str):
        return rng.choice(["", value + "x", "relu", "keras_bdl"])
    return rng.choice([None, 3, "x"])


def change_somewhere(rng, node):
    """Changes one leaf of nested lists and dictionaries, in place."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[rng.integers(len(keys))]
        child = node[key]
        if not isinstance(child, (dict, list)) or not child or rng.random() < 0.05:
            node[key] = changes(rng, child)
            if isinstance(node[key], np.generic):
                node[key] = node[key].item()
            return
        node = child


def test_another_header_does_not_have_the_digest(saved, tmp_path):
    path, expected = saved
    rng = np.random.default_rng(0)
    for _ in range(100):
        header, parts = parts_of(path)
        change_somewhere(rng, header)
        write(tmp_path / "bad.npz", header, parts)
        if json.dumps(header) != json.dumps(parts_of(path)[0]):
            assert is_refused(tmp_path / "bad.npz", expected)


def without_scales(header):
    return [
        {**entry, "scale": None} if isinstance(entry, dict) else entry
        for entry in header["layout"]
    ]


def test_old_files_load_and_what_does_not_fit_in_them_is_refused(saved, tmp_path):
    path, expected = saved
    header, parts = parts_of(path)
    write(tmp_path / "old.npz", header, parts, old=True)
    assert not is_refused(tmp_path / "old.npz", expected)
    rng = np.random.default_rng(0)
    for _ in range(50):
        header, parts = parts_of(path)
        change_somewhere(rng, header["layout"])
        write(tmp_path / "bad.npz", header, parts, old=True)
        same = without_scales(header) == without_scales(parts_of(path)[0])
        # Without a digest a wrong scale is not seen.
        assert same or is_refused(tmp_path / "bad.npz", expected)


def wrong_parts():
    def with_nan(part):
        part[0] = np.nan

    def at(index, value):
        def change(part):
            part[index] = value

        return change

    return {
        "nan": ("values", with_nan),
        "nan in a bias": ("vectors", with_nan),
        "infinity": ("vectors", at(1, np.inf)),
        "beyond the scale": ("values", at(0, 2.0)),
        "column": ("columns", at(0, 8)),
        "twice": ("columns", lambda part: at(1, part[0])(part)),
        "count": ("counts", at(0, 9)),
        "more": ("values", None),
        "more in a bias": ("vectors", None),
        "more columns": ("columns", None),
        "more rows": ("counts", None),
        "no array": ("counts", "gone"),
        "another array": ("other", None),
    }


@pytest.mark.parametrize("name", wrong_parts())
@pytest.mark.parametrize("old", [False, True])
def test_wrong_numbers_are_refused(name, old, saved, tmp_path):
    path, _ = saved
    header, parts = parts_of(path)
    part, change = wrong_parts()[name]
    if change is None:
        extra = parts.get(part, np.zeros(0, "float32"))
        parts[part] = np.concatenate([extra, np.zeros(3, extra.dtype)])
    elif change == "gone":
        del parts[part]
    else:
        change(parts[part])
    write(tmp_path / "bad.npz", header, parts, old)
    with pytest.raises(ValueError, match="save_sparse.*Received: path="):
        keras_bdl.load_sparse(tmp_path / "bad.npz")


@pytest.mark.parametrize("old", [False, True])
def test_sizes_that_a_header_claims_are_not_allocated(old, saved, tmp_path):
    path, _ = saved
    header, parts = parts_of(path)
    header["layout"][0] |= {"shape": [6, 400_000_000]}
    write(tmp_path / "claims.npz", header, parts, old)
    file = io.BytesIO()
    claimed = {"descr": "|u1", "fortran_order": False, "shape": (10**10,)}
    np.lib.format.write_array_header_1_0(file, claimed)
    with zipfile.ZipFile(tmp_path / "array.npz", "w") as archive:
        archive.writestr("header.npy", file.getvalue())
    for name in ("claims", "array"):
        tracemalloc.start()
        with pytest.raises(ValueError, match="save_sparse.*Received: path="):
            keras_bdl.load_sparse(tmp_path / f"{name}.npz")
        assert tracemalloc.get_traced_memory()[1] < 5e6
        tracemalloc.stop()


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz"):
        keras_bdl.load_sparse(tmp_path / "none.npz")
    with pytest.raises(OSError):
        keras_bdl.load_sparse(tmp_path)


# Writing


def test_a_write_that_fails_leaves_the_good_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    path.write_bytes(saved[0].read_bytes())
    model = keras_bdl.load_sparse(path)

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space"):
        keras_bdl.save_sparse(model, path)
    with pytest.raises(OSError, match="No space"):
        keras_bdl.save_sparse(model, tmp_path / "new.npz")
    assert path.read_bytes() == saved[0].read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def test_a_file_that_is_replaced_keeps_its_mode_and_its_link(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    with files.replaced(link) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_usual_mode(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    with files.replaced(tmp_path / "file") as file:
        file.write(b"new")
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1 and sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_what_cannot_be_replaced_says_so_itself(tmp_path):
    nowhere = tmp_path / "nowhere" / "file"
    with pytest.raises(FileNotFoundError, match="nowhere/file"):
        files.replaced(nowhere).__enter__()
    with pytest.raises(IsADirectoryError):
        files.replaced(tmp_path).__enter__()
    with files.replaced(os.devnull) as file:
        file.write(b"gone")
    assert not os.path.isfile(os.devnull)
