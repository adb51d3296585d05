"""Architecture rules: direction of imports, permitted and declared dependencies, unique names, file sizes."""

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

# An import goes to a lower level, or stays on its own level without a cycle.
LEVELS = {
    "files": 0, "config": 0, "telemetry": 0,
    "ops": 1, "parallel": 1, "endpoint": 1,
    "model": 2, "checkpoint": 2,
    "engine": 3, "rl": 3, "agent": 3, "rewards": 3, "data": 3, "toy.tasks": 3,
    "rollout": 4, "trainer": 4, "policy": 4, "report": 4,
    "evaluation": 5, "toy": 5, "aot": 5, "serving": 5,
    "recipes": 6, "curation": 6,
    "curate": 7, "train": 7, "evaluate": 7, "export": 7, "chat": 7, "compile_ahead": 7, "data.check": 7,
    "serve": 7, "compare": 7, "export_evaluation": 7, "report.__main__": 7,
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
    """Returns the absolute module of every import in the file, including imports inside functions."""
    package = module_name(path).split(".")[: None if path.name == "__init__.py" else -1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` imports the module; any other name belongs to its parent.
            found += [full if is_module(full := f"{module}.{alias.name}") else module for alias in node.names]
    return tuple(found)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def part(module: str) -> str:
    """Maps `dv2_jax.rl.losses` to `rl`, and the package itself to an empty string.

    Some modules are parts of their own: `toy.tasks`, and the commands `data.check` and `report.__main__`, in the package
    whose files they check or write.
    """
    for own in ("toy.tasks", "data.check", "report.__main__"):
        if module == f"dv2_jax.{own}" or module.startswith(f"dv2_jax.{own}."):
            return own
    return module.split(".")[1] if "." in module else ""


def edges() -> dict[tuple[str, str], list[str]]:
    """Returns (importing part, imported part) → the importing files, within dv2_jax."""
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
    """Catches a model that imports the agent or a loss that imports the recipe, also inside functions."""
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
    """Catches an import of JAX or of the trainer in the tools service, which runs on machines without JAX."""
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources("tools_service")
        for module in imports(path)
        if module.split(".")[0] in {"jax", "jaxlib", "flax", "optax", "orbax", "dv2_jax"}
    ]
    assert wrong == []


# Each process of the tools service and the folders of processes that run other code: the server and the manager run no
# untrusted code, so they must not load the modules that do.
FORBIDDEN_IN_SERVICE = {
    "tools_service.server": ("tools_service.sandbox.worker", "tools_service.client", "tools_service.cli"),
    "tools_service.sandbox.manager": ("tools_service.sandbox.worker", "tools_service.server", "tools_service.search"),
    "tools_service.sandbox.protocol": ("tools_service.sandbox.worker", "tools_service.sandbox.manager", "tools_service.server"),
    "tools_service.sandbox.worker": ("tools_service.sandbox.manager", "tools_service.server", "tools_service.search"),
    "tools_service.client": ("tools_service.server", "tools_service.sandbox", "tools_service.search"),
}  # fmt: skip


@pytest.mark.parametrize("process", FORBIDDEN_IN_SERVICE)
def test_a_process_of_the_tools_service_imports_no_code_of_another(process):
    """Catches a server that imports the modules in which the policy's code runs, also through other modules."""
    by_name = {module_name(path): path for path in sources("tools_service")}
    waiting = [name for name in by_name if name == process or name.startswith(f"{process}.")]
    seen, wrong = set(waiting), []
    while waiting:
        name = waiting.pop()
        for module in imports(by_name[name]):
            if module.startswith(FORBIDDEN_IN_SERVICE[process]):
                wrong.append(f"{name} imports {module}")
            elif module in by_name and module not in seen:
                seen.add(module)
                waiting.append(module)
    assert wrong == []


@pytest.mark.parametrize(
    "module", ["tools_service.server.servicer", "tools_service.server.startup", "tools_service.sandbox.manager.manager"]
)
def test_server_and_manager_load_no_code_of_a_session(module):
    """Catches an import, also of a library, that makes server or manager load what only sessions need."""
    program = (
        f"import sys, {module}\n"
        "print(sorted(m for m in sys.modules if m in ('PIL', 'numpy', 'cv2', 'matplotlib')"
        " or m.startswith('tools_service.sandbox.worker')))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert shown.stdout == "[]\n", shown.stderr


def test_only_the_client_of_the_tools_service_is_used():
    """Catches an import of the service's internals in the trainer, which may only use its client and its statuses."""
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources("dv2_jax")
        for module in imports(path)
        if module.split(".")[0] == "tools_service"
        and module not in {"tools_service.client", "tools_service.common.status"}
    ]
    assert wrong == []


# Files outside `agent/tools` that may contain the name or the closing tag of a tool as a string.
KNOW_TOOLS = {
    "config/schema.py": "the default of `agent.tools`",
    "agent/prompts.py": "prompts as released",
    "toy/scripted.py": "the teacher writes calls as a policy does",
    "toy/pretraining.py": "weights of the curriculum",
    "data/tokenizer.py": "tokens of Qwen's vocabulary",
    "endpoint/retry_rules.py": "a field of the errors of chat endpoints",
    "checkpoint/smol.py": "tokens of Qwen's vocabulary",
    "serving/api_error.py": "a key of the errors of the OpenAI API",
}


def test_only_the_files_of_the_tools_name_them():
    """Catches a branch on the name of a tool, and a second source of a closing tag, outside `agent/tools`.

    The name `search` is also that of a skill and of a data source.
    """
    names = {"code", "image_search", "</code>", "</tool_call>", "<code>", "<tool_call>"}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in sources("dv2_jax")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
        if "agent/tools/" not in str(path) and str(path.relative_to(ROOT / "dv2_jax")) not in KNOW_TOOLS
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


# Declared and not imported by the project itself: distribution → reason.
NOT_IMPORTED = {
    "matplotlib": "importable by code in the sandbox",
    "pandas": "importable by code in the sandbox",
    "scipy": "importable by code in the sandbox",
    "sympy": "importable by code in the sandbox",
    "mendeleev": "its database is read as a file; importing the package takes seconds",
    "opentelemetry-exporter-otlp-proto-http": "imported by name when traces are sent to a collector",
}
# Modules whose name occurs more than once: file name without suffix → reason.
SAME_MODULE_NAME = {
    "__init__": "Python's name of a package",
    "__main__": "Python's name of a package's command",
}


def normalize_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distribution(requirement: str) -> str:
    """Returns the normalized distribution name of a requirement such as `jax>=0.10,<0.13`."""
    return normalize_name(re.split(r"[\[<>=!~; ]", requirement)[0])


def runtime_requirements() -> set[str]:
    """Returns the distributions that pyproject.toml declares for the packages, optional features included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [line for name in ("wandb", "smol", "traces", "vectors") for line in extras[name]]
    return {distribution(line) for line in [*project["dependencies"], *optional]}


def imported_distributions() -> dict[str, tuple[set[str], list[str]]]:
    """Returns top-level module → (distributions that provide it, files that import it), without the standard library."""
    owners = packages_distributions()
    found: dict[str, tuple[set[str], list[str]]] = {}
    for path in sources("dv2_jax", "tools_service", "configs"):
        for module in imports(path):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in {"dv2_jax", "tools_service", "configs"}:
                continue
            names = {normalize_name(name) for name in owners.get(top, [top])}
            found.setdefault(top, (names, []))[1].append(str(path.relative_to(ROOT)))
    return found


def test_every_imported_distribution_is_declared():
    """Catches an import of a package that is installed only as a dependency of another one."""
    declared = runtime_requirements()
    missing = {top: (names, files) for top, (names, files) in imported_distributions().items() if not names & declared}
    assert missing == {}


def test_every_declared_distribution_is_imported():
    """Catches a dependency that remains declared after its last import is removed."""
    imported = set().union(*(names for names, _ in imported_distributions().values()))
    generated = {"protobuf", "grpcio"}  # imported by the generated modules of tools_service/proto
    assert runtime_requirements() - imported - NOT_IMPORTED.keys() - generated == set()


def test_every_dependency_of_the_tests_is_imported():
    """Catches a dependency of the test extra that neither tests nor benchmarks import."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    owners = packages_distributions()
    modules = {module.split(".")[0] for path in sources("tests", "benchmarks") for module in imports(path)}
    imported = {normalize_name(name) for module in modules for name in owners.get(module, [module])}
    not_imported = {
        "beartype": "imported by jaxtyping's import hook",
        "grpcio-tools": "run as a program",
        "ipykernel": "started as a kernel by jupyter_client",
        "jinja2": "used by transformers to render chat templates",
        "pytest-xdist": "pytest plugin",
        "ruff": "run as a program",
        "setuptools": "builds the wheel",
    }
    unused = {distribution(line) for line in extra} - imported - not_imported.keys() - runtime_requirements()
    assert unused == set()


def test_no_two_modules_share_a_name():
    """Catches a second `metrics.py`: an import or a traceback then no longer says which one is meant."""
    files: dict[str, list[str]] = {}
    for path in sources("dv2_jax", "tools_service"):
        files.setdefault(path.stem, []).append(str(path.relative_to(ROOT)))
    shared = {name: paths for name, paths in files.items() if len(paths) > 1 and name not in SAME_MODULE_NAME}
    assert shared == {}


def test_no_two_classes_share_a_name():
    """Catches a second class `Session`: searching for the name then finds two unrelated things."""
    places: dict[str, list[str]] = {}
    for path in sources("dv2_jax", "tools_service"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: lines for name, lines in places.items() if len(lines) > 1} == {}


def test_the_constraints_satisfy_every_declared_range():
    """Catches a version range that was raised without constraints.txt, and a dependency without a pin."""
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normalize_name(name): version for name, version in (line.split("==") for line in lines if "==" in line)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wrong = []
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["test"], *extras["docs"], *extras["dev"]]:
        requirement = Requirement(text)
        if normalize_name(requirement.name) == normalize_name(project["name"]):
            continue
        version = pinned.get(normalize_name(requirement.name))
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


LIGHT_IMPORTS = [
    "import dv2_jax",
    "import dv2_jax.config",
    "import tools_service.client",
    "import " + ", ".join(module_name(path) for path in sources("dv2_jax/agent")),
]


@pytest.mark.parametrize("statement", LIGHT_IMPORTS)
def test_light_imports_stay_light(statement):
    """Catches an agent module that loads JAX through the package that it takes an image's token count from."""
    heavy = "{'jax', 'flax', 'optax', 'orbax', 'torch', 'tensorflow', 'transformers', 'matplotlib', 'pandas'}"
    program = f"import sys\n{statement}\nprint(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert shown.stdout == "[]\n", shown.stderr


def test_help_of_train_loads_no_jax():
    """Catches a `--help` that takes seconds because it loads JAX."""
    program = (
        "import runpy, sys\nsys.argv = ['train', '--config=configs/rl.py', '--help']\n"
        "try:\n    runpy.run_module('dv2_jax.train', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "print('loaded', sorted({'jax', 'flax', 'orbax', 'grpc'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert shown.stdout.endswith("loaded []\n"), shown.stderr


@pytest.mark.parametrize("command", [("check",), ("format", "--check", "--diff")])
def test_the_code_is_linted_and_formatted(command):
    """Catches files that `ruff check --fix . && ruff format .` would change."""
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
