"""The house: who may import whom, what the package ships, how quickly it starts, what it says of itself."""

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module, metadata, resources
from pathlib import Path

import pytest
import yaml

import wsi2d

# Left may not import right. `configs` holds YAML files, `config_files` and `registry` belong to `config`.
STAGES = (
    "errors",
    "files",
    "config",
    "compute",
    "slides",
    "features",
    "data",
    "kernels",
    "models",
    "evaluation",
    "training",
    "explain",
    "exports",
    "report",
    "doctor",
    "demo",
    "cli",
)
ALIASES = {"config_files": "config", "configs": "config", "registry": "config"}
KERNELS_MAY_IMPORT = {"torch", "triton"}
NATIVE_KERNELS_MAY_IMPORT = {"torch", "numba", "llvmlite", "numpy"}
NAMED_MODULE = re.compile(r"wsi2d(\.[A-Za-z_]\w*)+(?=:\w+$|$)")


# --- who may import whom


def package_sources() -> dict[str, str]:
    """Source of every module of the package that Python imports, by dotted name."""
    sources = {}
    for root in wsi2d.__path__:
        for folder, folders, files in os.walk(root, followlinks=True):
            folders[:] = [f for f in folders if f != "__pycache__"]
            for file in files:
                if file.endswith(".py"):
                    path = Path(folder, file)
                    parts = ("wsi2d", *path.relative_to(root).with_suffix("").parts)
                    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                    sources[name] = path.read_text("utf-8")
    return sources


def imported(name: str, source: str, *, package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, wherever in it, and of modules of ours it names in
    strings (what is imported by name later)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = name.split(".")[: None if package and node.level == 1 else int(package) - node.level]
                base = ".".join([*home, *([node.module] if node.module else [])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED_MODULE.match(node.value):
            yield node.lineno, node.value.partition(":")[0]


def stage_of(module: str) -> str | None:
    """The stage that a dotted name of ours belongs to; None for the package itself (and names it holds)."""
    part = module.split(".")[1] if "." in module else ""
    part = ALIASES.get(part, part)
    return part if part in STAGES else None


def violations(sources: dict[str, str]) -> list[str]:
    """Imports against the direction, and imports of the kernels beyond what they may."""
    found = []
    for name, source in sources.items():
        stage = stage_of(name)
        if name == "wsi2d":
            continue  # the front door names every stage; it imports them when they are asked for
        if stage is None:
            found.append(f"{name}: belongs to no stage")
            continue
        package = any(other.startswith(f"{name}.") for other in sources)
        for line, target in imported(name, source, package=package):
            ours = target.split(".")[0] == "wsi2d"
            other = stage_of(target) if ours else None
            if other is not None and STAGES.index(other) > STAGES.index(stage):
                found.append(f"{name}:{line}: {stage} imports {other} ({target})")
            if stage == "kernels" and ours and other != "kernels":
                found.append(f"{name}:{line}: kernels import {target}")
            if stage == "kernels" and not ours:
                top = target.split(".")[0]
                native = name.startswith("wsi2d.kernels.native.")
                allowed = NATIVE_KERNELS_MAY_IMPORT if native else KERNELS_MAY_IMPORT
                if top not in allowed and top not in sys.stdlib_module_names:
                    found.append(f"{name}:{line}: kernels import {top}")
    return sorted(set(found))


def test_imports_run_in_one_direction() -> None:
    sources = package_sources()
    assert {stage_of(name) for name in sources} >= set(STAGES) - {"report"}, "the walk has seen every stage"
    assert violations(sources) == []


OFFENDERS = {
    "at the top": ("wsi2d.slides.reader", "from wsi2d.training.run import Run", "slides imports training"),
    "of a module": ("wsi2d.slides.reader", "import wsi2d.cli.main as m", "slides imports cli"),
    "of a stage": ("wsi2d.data.bags", "from wsi2d import models", "data imports models"),
    "in a function": ("wsi2d.data.bags", "def f():\n    from wsi2d.models import blocks", "data imports models"),
    "for types": ("wsi2d.models.blocks", "if TYPE_CHECKING:\n    import wsi2d.demo.cohort", "models imports demo"),
    "relative": ("wsi2d.data.bags", "from ..training import fold", "data imports training"),
    "relative, from a package": ("wsi2d.data", "from ..training import fold", "data imports training"),
    "relative, of the root": ("wsi2d.errors", "from . import config", "errors imports config"),
    "by name": ("wsi2d.features.encoders", "X = {'a': 'wsi2d.models.abmil:ABMIL'}", "features imports models"),
    "errors": ("wsi2d.errors", "import wsi2d.config", "errors imports config"),
    "config files": ("wsi2d.config_files", "from wsi2d.compute import x", "config imports compute"),
    "kernels: back": ("wsi2d.kernels.scan2d", "from wsi2d.errors import ConfigError", "kernels import wsi2d.errors"),
    "kernels: numpy": ("wsi2d.kernels.scan2d", "def f():\n    import numpy as np", "kernels import numpy"),
    "kernels: numba": ("wsi2d.kernels.scan2d", "import numba", "kernels import numba"),
    "kernels: native": ("wsi2d.kernels.native.host", "import pandas", "kernels import pandas"),
    "kernels: root": ("wsi2d.kernels.scan2d", "from wsi2d import __version__", "kernels import wsi2d"),
    "homeless": ("wsi2d.helpers", "import os", "belongs to no stage"),
}
FINE = {
    "wsi2d": "from wsi2d.cli import main",
    "wsi2d.config_files": "from wsi2d.config import RunConfig\nfrom wsi2d.errors import ConfigError",
    "wsi2d.cli.main": "from wsi2d import __version__\nfrom wsi2d.demo.cohort import x\nimport matplotlib, wsi2d.errors",
    "wsi2d.models": "",
    "wsi2d.models.blocks": "from . import output\nfrom .output import y\nfrom ..kernels.scan2d import z\n'a wsi2d.cli'",
    "wsi2d.models.output": "'''See wsi2d.training.fold.'''",
    "wsi2d.data": "from . import bags",
    "wsi2d.data.bags": "",
    "wsi2d.kernels.native.host": "import numba\nimport numpy as np\nfrom llvmlite import ir",
    "wsi2d.kernels.scan2d": "import math\nimport torch.nn\nfrom wsi2d.kernels.other import x\nfrom .other import y",
}


def test_the_walk_finds_nothing_where_nothing_is() -> None:
    assert violations(FINE) == []


@pytest.mark.parametrize("case", OFFENDERS)
def test_the_walk_finds_offenders(case: str) -> None:
    name, source, words = OFFENDERS[case]
    found = violations({**FINE, name: FINE.get(name, "") + "\n" + source})
    assert found, case
    assert all(line.startswith(name) for line in found)
    assert any(words in line for line in found), found


# --- what is shipped


def distribution() -> metadata.Distribution:
    """The installed wheel; skips where the package is imported from its checkout."""
    try:
        found = metadata.distribution("wsi2d")
    except metadata.PackageNotFoundError:
        pytest.skip("wsi2d is not installed, but imported from its checkout")
    return found


def wheel_files() -> list[str]:
    """Files of the installed wheel; skips an editable installation, which has none of its own."""
    found = distribution()
    if found.read_text("WHEEL") is None:
        pytest.skip("wsi2d is imported from its checkout, beside the metadata of an editable installation")
    files = [file.as_posix() for file in found.files or ()]
    if not any(file.startswith("wsi2d/") for file in files):
        pytest.skip("wsi2d is installed in editable mode")
    return files


def test_no_top_level_module_but_ours() -> None:
    """PyPI has a package `kernels`, and transformers imports it when it can."""
    ours = [f for f in wheel_files() if not f.startswith("..")]
    tops = {file.split("/")[0] for file in ours}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wsi2d"}


def test_every_folder_is_shipped() -> None:
    files = set(wheel_files())
    for name in package_sources():
        base = name.replace(".", "/")
        assert f"{base}.py" in files or f"{base}/__init__.py" in files, name
    assert {f"wsi2d/{stage}" for stage in ("cli", "kernels", "configs")} <= {f.rpartition("/")[0] for f in files}
    assert "wsi2d/py.typed" in files
    assert not [f for f in files if "/tests/" in f]


def test_version_is_the_installed_one() -> None:
    assert distribution().version == wsi2d.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", wsi2d.__version__)


def test_presets_are_there() -> None:
    folder = resources.files("wsi2d.configs")
    presets = {file.name: yaml.safe_load(file.read_text("utf-8")) for file in folder.iterdir() if file.is_file()}
    assert {"demo.yaml", "published-classification.yaml", "published-survival.yaml"} <= presets.keys()
    assert all(name.endswith(".yaml") and isinstance(values, dict) for name, values in presets.items())
    assert presets["demo.yaml"]["model"]["name"] == "mamba2d-mil"


def test_marked_as_typed() -> None:
    assert resources.files("wsi2d").joinpath("py.typed").is_file()


# --- how it starts


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_in_nothing_heavy() -> None:
    heavy = "openslide torch triton matplotlib numpy pandas h5py sklearn skimage scipy pydantic"
    code = f"import sys, wsi2d; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert run_python(code) == "[]\n"


def test_optional_packages_are_imported_where_they_are_used() -> None:
    """All modules imported, and still none of what an ordinary machine may lack or what is slow to come."""
    need_theirs = ("wsi2d.cli.main", "wsi2d.kernels.gpu.")  # an entry point; what exists for triton alone
    names = sorted(name for name in package_sources() if not name.startswith(need_theirs) and "sources" not in name)
    optional = (
        "openslide triton timm transformers huggingface_hub torchmil dask distributed matplotlib tifffile zarr "
        "numcodecs"
    )
    code = (
        f"import sys\nfrom importlib import import_module\nfor name in {names}: import_module(name)\n"
        f"print([m for m in '{optional}'.split() if m in sys.modules])"
    )
    assert run_python(code) == "[]\n"


def test_kernels_need_torch_and_nothing_else() -> None:
    """Imported with everything else out of reach."""
    code = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "pandas", "h5py", "sklearn", "skimage", "openslide", "typer", "yaml"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
from wsi2d.kernels.scan2d import selective_scan_2d
print(sorted(m for m in sys.modules if m.startswith("wsi2d") and not m.startswith("wsi2d.kernels")))
"""
    assert run_python(code) == "['wsi2d']\n"


def processor_s_of_children() -> float:
    """Of all that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def test_help_comes_in_under_a_second() -> None:
    """A process's start included, in processor time, since the machine may be busy; best of five."""
    seconds = []
    for _ in range(5):
        start = processor_s_of_children()
        done = subprocess.run(
            [sys.executable, "-m", "wsi2d.cli.main", "--help"], capture_output=True, text=True, timeout=60, check=False
        )
        seconds.append(processor_s_of_children() - start)
        assert done.returncode == 0, done.stderr
        assert "extract" in done.stdout
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1, seconds


# --- what it says of itself


def test_every_name_of_the_front_door_opens() -> None:
    for name in wsi2d.__all__:
        found = getattr(wsi2d, name)
        assert found is not None
        if name != "__version__":
            assert callable(found)
            assert found.__module__ == wsi2d._EXPORTS[name]
            assert found.__name__ == name
    assert set(wsi2d.__all__) <= set(dir(wsi2d))
    with pytest.raises(AttributeError, match="module 'wsi2d' has no attribute 'trian'"):
        wsi2d.trian  # noqa: B018


def test_type_checkers_see_the_same_front_door() -> None:
    """The names that are loaded late stand in a TYPE_CHECKING block as well; the two must say the same."""
    tree = ast.parse(inspect.getsource(wsi2d))
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "re-exported by the `as` form"
            seen[alias.name] = node.module
    assert seen == wsi2d._EXPORTS


def undocumented(name: str, source: str) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring; what stands in functions is not public."""
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        yield name

    def inside(body: list[ast.stmt], path: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(
                "_"
            ):
                if not ast.get_docstring(node):
                    yield f"{path}.{node.name}"
                if isinstance(node, ast.ClassDef):
                    yield from inside(node.body, f"{path}.{node.name}")

    yield from inside(tree.body, name)


def test_everything_public_is_documented() -> None:
    assert [found for name, source in package_sources().items() for found in undocumented(name, source)] == []


def test_the_search_for_docstrings_finds() -> None:
    source = (
        '"""M."""\nclass A:\n    """A."""\n    def f(self): ...\n    def _g(self): ...\ndef h():\n    def i(): ...\n'
    )
    assert list(undocumented("m", source)) == ["m.A.f", "m.h"]
    assert list(undocumented("m", "x = 1")) == ["m"]


def test_every_module_can_be_imported() -> None:
    """Where nothing is missing but a package that an extra brings."""
    declared = metadata.requires("wsi2d") or []
    extra = {re.split(r"[^\w.-]", line)[0] for line in declared if "extra ==" in line}
    for name in package_sources():
        try:
            assert import_module(name).__name__ == name
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in extra:
                raise


def test_the_library_never_prints() -> None:
    """Only the command line writes to the terminal, and through its console."""
    for name, source in package_sources().items():
        calls = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
        assert not [c.lineno for c in calls if c.func.id == "print"], name  # type: ignore[attr-defined]
