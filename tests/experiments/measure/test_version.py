"""The version of the measured values changes with the sources that decide them, or somebody says that it need not.

``version_sources.json`` records the version together with a digest of each source. To record them again:

    .venv/bin/python tests/experiments/measure/test_version.py
"""

import ast
import hashlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECORD = Path(__file__).with_name("version_sources.json")
START = sorted(f"experiments.measure.{path.stem}" for path in (ROOT / "experiments/measure").glob("*.py"))
# Modules and packages that decide a value, where a measure imports them. The kernels change it by rounding alone.
DECIDING = (
    "analysis",
    "experiments.measure",
    "experiments.data.augment",
    "gconv.cost",
    "gconv.wiring",
    "gconv.partition",
)
NO_VALUES = ("experiments.measure.version", "experiments.measure.__init__")
REMEDY = (
    "if a measured value can differ, or a measure was added, raise VERSION in experiments/measure/version.py; "
    "then run: .venv/bin/python tests/experiments/measure/test_version.py"
)


def source_of(module):
    """Path of a module; None if it is none of this project."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported_by(tree):
    """Names of all modules that a source imports, also inside functions; ``from a import b`` may mean ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def decides(module):
    return any(module == name or module.startswith(f"{name}.") for name in DECIDING)


def deciding_sources():
    """Sources that decide measured values: the measures, and what they import of ``DECIDING``, and so on."""
    trees, open_modules = {}, list(START)
    while open_modules:
        module = open_modules.pop()
        path = source_of(module)
        if path is None or path in trees or module in NO_VALUES:
            continue
        trees[path] = ast.parse(path.read_text(encoding="utf-8"))
        open_modules += filter(decides, imported_by(trees[path]))
    return {str(path.relative_to(ROOT)): trees[path] for path in sorted(trees)}


def form(node):
    """A syntax tree as nested tuples, alike in all versions of Python; without docstrings, comments and imports."""
    if isinstance(node, list):
        return tuple(form(item) for item in node if not is_ignored(item))
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):  # early Pythons 3.12 put empty texts into nested formats
        return "JoinedStr", *(form(part) for part in node.values if getattr(part, "value", None) != "")
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return type(node).__name__, *((name, form(value)) for name, value in fields if name not in ("ctx", "kind"))


def is_ignored(node):
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return is_text or isinstance(node, ast.Import | ast.ImportFrom)


def digest(tree):
    return hashlib.sha256(repr(form(tree)).encode()).hexdigest()[:12]


def current():
    """The version and the digests of the sources as they are."""
    version = ast.literal_eval(ast.parse(source_of("experiments.measure.version").read_text()).body[-1].value)
    return {"version": version, "sources": {path: digest(tree) for path, tree in deciding_sources().items()}}


def test_the_version_of_measured_values_goes_with_the_sources_that_decide_them():
    recorded, now = json.loads(RECORD.read_text()), current()
    changed = sorted(
        path
        for path in recorded["sources"].keys() | now["sources"].keys()
        if recorded["sources"].get(path) != now["sources"].get(path)
    )
    if changed or recorded["version"] != now["version"]:
        what = f"changed: {', '.join(changed)}" if changed else f"VERSION is {now['version']}, not the recorded one"
        pytest.fail(f"{what}; {REMEDY}", pytrace=False)


def test_the_sources_are_those_that_measures_import():
    sources = set(deciding_sources())
    assert {"experiments/measure/lesions.py", "analysis/colour.py", "analysis/stats.py"} <= sources
    assert {"experiments/data/augment.py"} <= sources
    assert any(path.startswith("gconv/wiring") for path in sources)
    assert not any(path.startswith(("analysis/figures", "experiments/report")) for path in sources)


SOURCE = 'import math\n\n\ndef area(r):\n    """Return the area."""\n    return math.pi * r**2  # of a disc\n'


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Return the area.", "Area of a disc.", True),
        ("  # of a disc", "", True),
        ("import math", "import cmath as math", True),
        ("def area(r):", "def area(\n    r,\n):", True),
        ("r**2", "r**3", False),
        ("math.pi", "math.tau", False),
    ],
)
def test_words_and_layout_change_no_digest_and_code_does(old, new, same):
    assert old in SOURCE
    assert (digest(ast.parse(SOURCE)) == digest(ast.parse(SOURCE.replace(old, new)))) is same


if __name__ == "__main__":
    RECORD.write_text(json.dumps(current(), indent=1) + "\n")
