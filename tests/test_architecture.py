"""The rules of the house: imports run one way, one door for each heavy library, no cycles, small files, no pickle."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dicom_node", "secure_infer", "fl_agent")
#: Whom a room may import, besides itself. `dicom_node.core` is a room of its own below the others.
ALLOWED = {
    "dicom_node.core": set(),
    "dicom_node": {"dicom_node.core"},
    "secure_infer": {"dicom_node", "dicom_node.core"},
    "fl_agent": {"secure_infer", "dicom_node", "dicom_node.core"},
}
#: Of `secure_infer`, training may know the networks, the model stores and the answer that a card defines.
FOR_TRAINING = {
    "secure_infer",
    *(f"secure_infer.{name}" for name in ("trunks", "network", "networks", "public", "program", "compile", "clear")),
    *(f"secure_infer.{name}" for name in ("card", "models", "site_models", "answer")),
}
DOORS = {
    "pynetdicom": ("dicom_node.scp", "dicom_node.scu"),
    "pyorthanc": ("dicom_node.orthanc",),
    "highdicom": ("secure_infer.report",),
    "crypten": ("secure_infer.crypten_engine",),
    "opacus": ("fl_agent.train", "fl_agent.accounting"),
    "torch": ("secure_infer", "fl_agent"),
    "torchvision": ("secure_infer", "fl_agent"),
    "fastapi": ("dicom_node.web",),
    "prometheus_client": ("secure_infer.operations.metrics",),
    "alembic": ("dicom_node.core",),
    "numba": ("secure_infer.protocol.kernels",),
    "nibabel": ("fl_agent.research.pictures",),
    "matplotlib": ("fl_agent.runreport.charts",),
    "nvflare": ("fl_agent.courier.nvflare",),
    "gdcm": ("dicom_node.pixels",),
    "optuna": ("fl_agent.search.study",),
}
FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def sources() -> dict[str, Path]:
    return {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that `module` names in an import, also inside functions, as absolute names."""
    path = sources()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in sources() else base)
    return frozenset(found)


def room(module: str) -> str:
    return "dicom_node.core" if f"{module}.".startswith("dicom_node.core.") else module.partition(".")[0]


def under(module: str, roots: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{root}.") for root in roots)


def test_every_package_has_modules() -> None:
    assert {room(module) for module in sources()} == set(ALLOWED)


@pytest.mark.parametrize("module", sources())
def test_imports_run_one_way(module: str) -> None:
    ours = {name for name in imports(module) if name.partition(".")[0] in PACKAGES}
    if room(module) == "dicom_node.core":
        ours -= {"dicom_node"}  # a relative import of a sibling names the parent too
    outside = {name for name in ours if room(name) != room(module)}
    assert {room(name) for name in outside} <= ALLOWED[room(module)]
    if room(module) == "fl_agent":
        assert {name for name in outside if room(name) == "secure_infer"} <= FOR_TRAINING


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_is_imported_behind_its_door_alone(library: str) -> None:
    users = {module for module in sources() if any(under(name, (library,)) for name in imports(module))}
    assert {module for module in users if not under(module, DOORS[library])} == set()


def test_nothing_can_unpickle() -> None:
    users = {module: imports(module) & FORBIDDEN for module in sources() if imports(module) & FORBIDDEN}
    assert users == {}


def test_the_import_graph_has_no_cycle() -> None:
    graph = {module: {name for name in imports(module) if name in sources()} - {module} for module in sources()}
    for module, path in sources().items():
        if path.name == "__init__.py":  # a package's parts import their parent by nature; only its own imports count
            graph = {key: value - {module} if under(key, (module,)) else value for key, value in graph.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_no_file_is_too_long_to_read() -> None:
    python = [*sources().values(), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_the_lock_file_names_no_host_and_pins_every_package_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert pinned
    assert all("==" in line and line.endswith("\\") for line in pinned)
