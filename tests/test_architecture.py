"""The shape of the house: which way imports run, what may be imported at all, how large a file may be."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 450

# Lower number: lower level. An import runs to a lower level, or stays on its own without making a cycle.
LEVELS = {
    "config": 0, "telemetry": 0,
    "ops": 1, "parallel": 1, "report": 1,
    "model": 2, "checkpoint": 2,
    "engine": 3, "rl": 3, "agent": 3, "rewards": 3, "data": 3, "toy.tasks": 3,
    "rollout": 4, "trainer": 4,
    "evaluation": 5, "toy": 5, "aot": 5,
    "recipes": 6,
    "train": 7, "evaluate": 7, "export": 7, "chat": 7, "compile_ahead": 7,
}  # fmt: skip
GENERATED = re.compile(r"_pb2(_grpc)?\.py$")


@cache
def sources(*packages: str) -> tuple[Path, ...]:
    return tuple(
        path
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        if not GENERATED.search(path.name)
    )


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> tuple[str, ...]:
    """The absolute module of every import in the file, those inside functions included."""
    package = module_name(path).split(".")[: None if path.name == "__init__.py" else -1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` imports the module; a name that is no module is its parent's.
            found += [full if is_module(full := f"{module}.{alias.name}") else module for alias in node.names]
    return tuple(found)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def part(module: str) -> str:
    """``dv2_jax.rl.losses`` → ``rl``; ``dv2_jax.toy.tasks`` is a part of its own; the package itself → ````."""
    if module.startswith("dv2_jax.toy.tasks"):
        return "toy.tasks"
    return module.split(".")[1] if "." in module else ""


def edges() -> dict[tuple[str, str], list[str]]:
    """(importing part, imported part) → the files that do it, within dv2_jax."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sources("dv2_jax"):
        here = part(module_name(path))
        for module in imports(path):
            if module.startswith("dv2_jax.") and part(module) != here:
                found.setdefault((here, part(module)), []).append(str(path.relative_to(ROOT)))
    return found


def test_every_part_has_a_level():
    parts = {part(module_name(path)) for path in sources("dv2_jax")} - {""}
    assert parts - LEVELS.keys() == set()


def test_imports_run_downward():
    """Catches a model that knows of the agent, a loss that reads files of the recipe, imports in functions included."""
    upward = {
        f"{above} imports {below}": files
        for (above, below), files in edges().items()
        if above and LEVELS[below] > LEVELS[above]
    }
    assert upward == {}


def test_parts_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for above, below in edges():
        graph.setdefault(above, set()).add(below)
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"circle: {' → '.join([*trail[trail.index(node) :], node])}"
        if node not in done:
            for below in sorted(graph.get(node, ())):
                visit(below, (*trail, node))
            done.add(node)

    for node in sorted(graph):
        visit(node, ())


def test_the_tools_service_stands_alone():
    """Its machines have no accelerator and no JAX; and a policy must not be able to reach into the trainer."""
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources("tools_service")
        for module in imports(path)
        if module.split(".")[0] in {"jax", "jaxlib", "flax", "optax", "orbax", "dv2_jax"}
    ]
    assert wrong == []


def test_only_the_client_of_the_tools_service_is_used():
    """What runs the untrusted code shares no code with the trainer; starting the service is the client's affair."""
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources("dv2_jax")
        for module in imports(path)
        if module.split(".")[0] == "tools_service" and module != "tools_service.client"
    ]
    assert wrong == []


def test_no_torch_and_no_tensorflow_at_run_time():
    banned = {"torch", "torchvision", "tensorflow", "transformers", "accelerate", "datasets"}
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources("dv2_jax", "tools_service", "configs")
        for module in imports(path)
        if module.split(".")[0] in banned
    ]
    assert wrong == []


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_imported_distribution_is_declared():
    """Catches a package that is here only because another one needs it today."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        normal(re.split(r"[\[<>=!~; ]", line)[0])
        for line in [
            *project["dependencies"],
            *(
                line
                for extra in ("wandb", "smol", "traces", "vectors")
                for line in project["optional-dependencies"][extra]
            ),
        ]
    }
    owners = packages_distributions()
    missing = set()
    for path in sources("dv2_jax", "tools_service", "configs"):
        for module in imports(path):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in {"dv2_jax", "tools_service", "configs"}:
                continue
            names = {normal(name) for name in owners.get(top, [top])}
            if not names & declared:
                missing.add(f"{top} ({', '.join(sorted(names))}) in {path.relative_to(ROOT)}")
    assert missing == set()


def test_the_constraints_satisfy_every_declared_range():
    """Catches a range that was raised without the tested set, and a dependency that was never pinned."""
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(name): version for name, version in (line.split("==") for line in lines if "==" in line)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wrong = []
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        requirement = Requirement(text)
        version = pinned.get(normal(requirement.name))
        if version is None or not requirement.specifier.contains(version):
            wrong.append(f"{text}: constraints.txt has {version}")
    assert wrong == []


def test_files_are_small():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources("dv2_jax", "tools_service", "configs", "tests", "tpu")
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


@pytest.mark.parametrize("statement", ["import dv2_jax", "import dv2_jax.config", "import tools_service.client"])
def test_light_imports_stay_light(statement):
    heavy = "{'jax', 'flax', 'optax', 'orbax', 'torch', 'tensorflow', 'transformers', 'matplotlib', 'pandas'}"
    program = f"import sys\n{statement}\nprint(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert shown.stdout == "[]\n", shown.stderr


def test_help_of_train_loads_no_jax():
    """Catches a command line that takes seconds to say what its flags are."""
    program = (
        "import runpy, sys\nsys.argv = ['train', '--config=configs/rl.py', '--help']\n"
        "try:\n    runpy.run_module('dv2_jax.train', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "print('loaded', sorted({'jax', 'flax', 'orbax', 'grpc'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert shown.stdout.endswith("loaded []\n"), shown.stderr


def test_no_two_test_files_have_the_same_name():
    """pytest imports test files by their base name: of two that share it, one is an error at collection."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("command", [("check",), ("format", "--check", "--diff")])
def test_the_code_is_linted_and_formatted(command):
    """Catches what `ruff check --fix . && ruff format .` would change."""
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
