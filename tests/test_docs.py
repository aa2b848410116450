"""The documentation is true: its code runs, its links lead somewhere."""

import ast
import pathlib
import re

import keras
import pytest

pytestmark = pytest.mark.portable

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name != "README.md")
TEXTS = [
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(DOCS.glob("*.md")),
]
# Pages whose blocks are parts of programs for several devices; those are run by
# tests/test_distribution.py.
NOT_RUN = ("several_devices.md",)
# Pages that need TensorFlow, and what of it.
TENSORFLOW_ONLY = {"serving.md": "a SavedModel that samples is written on TensorFlow"}
MAX_PICTURE_BYTES = 120_000

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def fenced(path):
    """Language, first line and source of every fenced block of a page."""
    text = path.read_text(encoding="utf-8")
    return [
        (match[1], text.count("\n", 0, match.start(2)), match[2])
        for match in FENCE.finditer(text)
    ]


def skipped_elsewhere(path):
    """Marks of a page that needs TensorFlow."""
    if path.name not in TENSORFLOW_ONLY:
        return ()
    other = keras.backend.backend() != "tensorflow"
    return [pytest.mark.skipif(other, reason=TENSORFLOW_ONLY[path.name])]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_code_commands_or_text(page):
    languages = [language for language, _, _ in fenced(page)]
    assert set(languages) <= {"python", "sh", "text"}
    assert "python" in languages


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=skipped_elsewhere(page)) for page in PAGES],
    ids=name_of,
)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for language, line, source in fenced(page):
        if language == "python":
            # Empty lines before it, so that an error names the line of the page.
            code = compile("\n" * line + source, str(page), "exec")
            if page.name not in NOT_RUN:
                exec(code, namespace)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_lead_to_files(path):
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_index_names_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"]({page.name})" not in index] == []


def test_gallery_names_every_example():
    gallery = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    scripts = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(getattr(node, "name", None) == "main" for node in tree.body):
            scripts.append(path.name)
    assert scripts
    assert [name for name in scripts if f"python examples/{name}" not in gallery] == []


def test_pictures_are_small_and_shown():
    shown = "".join(path.read_text(encoding="utf-8") for path in TEXTS)
    for picture in sorted((DOCS / "images").iterdir()):
        assert picture.stat().st_size <= MAX_PICTURE_BYTES, picture.name
        assert f"images/{picture.name})" in shown
