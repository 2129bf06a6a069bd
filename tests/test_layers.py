"""Which package may import which, written down once; and light imports, kept light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTROLLER = {f"carbs.launchers.{room}" for room in ("cli", "controller", "cluster")}
# A package may import those of the rows above it, and its own modules.
LAYERS = ("carbs", "carbs.analysis", "carbs.launchers")


def modules() -> dict[str, Path]:
    """Every module by its name. `carbs/analysis` and `carbs/launchers` are links."""
    paths = [path for layer in ("carbs", "analysis", "launchers") for path in python_files(layer)]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    known = [name if name.startswith("carbs") else f"carbs.{name}" for name in names]
    return {name.removesuffix(".__init__"): path for name, path in zip(known, paths, strict=True)}


def python_files(folder: str) -> list[Path]:
    return [path for path in (ROOT / folder).rglob("*.py") if not path.parent.is_symlink()]


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Those that run when the module is imported: not in functions, not for type checkers alone."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & set(known)) or {node.module}
    return found & set(known)


def layer(module: str) -> str:
    return next(layer for layer in reversed(LAYERS) if module.startswith(layer))


def package(module: str) -> str:
    """``carbs.launchers.job`` of one of its modules; one beside the packages is its own."""
    return ".".join(module.split(".")[: layer(module).count(".") + 2])


def test_no_module_imports_itself_by_a_detour() -> None:
    known = modules()
    # Raises CycleError, which names the circle.
    order = list(TopologicalSorter({m: imports(p, known) for m, p in known.items()}).static_order())
    assert len(order) == len(known)


def test_no_package_imports_itself_by_a_detour() -> None:
    known = modules()
    packages: dict[str, set[str]] = {}
    for module, path in known.items():
        others = {package(other) for other in imports(path, known)} - {package(module)}
        packages.setdefault(package(module), set()).update(others)
    assert list(TopologicalSorter(packages).static_order())


def test_packages_import_downwards() -> None:
    known = modules()
    for module, path in known.items():
        allowed = LAYERS[: LAYERS.index(layer(module)) + 1]
        upwards = {other for other in imports(path, known) if layer(other) not in allowed}
        assert not upwards, f"{module} imports {sorted(upwards)}"


def test_a_trials_process_knows_nothing_of_the_controller() -> None:
    known = modules()
    for module, path in known.items():
        if module.startswith(("carbs.launchers.job", "carbs.launchers.lm")):
            of_controller = {
                other for other in imports(path, known) if package(other) in CONTROLLER
            }
            assert not of_controller, f"{module} imports {sorted(of_controller)}"


@pytest.mark.parametrize(
    "module", ["carbs", "carbs.analysis", "carbs.launchers.cli.app", "carbs.launchers.job.process"]
)
def test_an_import_brings_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
