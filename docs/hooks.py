"""Writes the reference of the documentation: one page per package, generated from the docstrings of its modules."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "reference"


def packages() -> dict[str, list[str]]:
    """Returns package → its modules, for every package with modules; `dv2_jax.rl.losses` is a package of its own."""
    found: dict[str, list[str]] = {}
    for top in ("dv2_jax", "tools_service"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__main__" or "_pb2" in path.name or {"assets", "configs"} & set(parts):
                continue
            package = ".".join(parts[:-1])
            module = package if parts[-1] == "__init__" else ".".join(parts)
            found.setdefault(package, []).append(module)
    return found


def page(package: str, modules: list[str]) -> str:
    """Returns the Markdown of one reference page."""
    entries = [f"::: {module}\n    options:\n      show_submodules: false\n" for module in modules]
    return f"# `{package}`\n\n" + "\n".join(entries)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the reference pages to the navigation."""
    if config.nav is not None:
        config.nav.append({"Reference": [{name: f"{FOLDER}/{name}.md"} for name in packages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference pages to the files of the site."""
    for package, modules in packages().items():
        files.append(File.generated(config, f"{FOLDER}/{package}.md", content=page(package, modules)))
    return files
