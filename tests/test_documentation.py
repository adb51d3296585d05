"""Documents: links and anchors that lead somewhere, files and tests that exist, commands and fields that the code has."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import typing
from functools import cache
from pathlib import Path

import pytest

from dv2_jax.config import Config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "tpu" / "README.md"])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """Returns a document without its code blocks."""
    return re.sub(r"```.*?```", "", text(path), flags=re.DOTALL)


def slug(heading: str) -> str:
    """Returns the anchor of a heading, as GitHub and Python-Markdown make it for plain headings."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower().replace("`", "")))


def anchors(path: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE)}


def broken_links(path: Path) -> list[str]:
    """Returns the relative links of a document whose file or anchor does not exist."""
    broken = []
    for match in LINK.finditer(prose(path)):
        link = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


def field_names(kind: type, prefix: str = "") -> set[str]:
    """Returns the dotted names of all fields of a configuration class."""
    found, hints = set(), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        found.add(prefix + field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            found |= field_names(hints[field.name], f"{prefix}{field.name}.")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(path):
    """Catches a page, figure or heading that was moved or renamed without the documents that link to it."""
    assert broken_links(path) == []


def test_the_link_check_finds_each_kind_of_broken_link(tmp_path):
    """Catches a check that passes because it no longer finds links, files or anchors."""
    (tmp_path / "b.md").write_text("# A `heading`, here\n")
    (tmp_path / "a.md").write_text(
        "[1](b.md) [2](b.md#a-heading-here) [3](https://a.b/c) ![4](none.svg) [5](none.md) [6](b.md#none)\n"
    )
    assert broken_links(tmp_path / "a.md") == ["none.svg", "none.md", "b.md#none"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_named_test_exists(path):
    """Catches an invariant whose test was moved, renamed or removed."""
    known = {name(file) for file in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`([\w/]*test_\w+\.py)`", text(path))
    assert [test for test in named if not any(f"/{file}".endswith(f"/{test}") for file in known)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_module_of_a_command_exists(path):
    """Catches a command for a module that was moved or renamed."""
    modules = set(re.findall(r"python -m ((?:dv2_jax|tools_service|benchmarks)[\w.]*\w)", text(path)))
    assert [module for module in sorted(modules) if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_configuration_field_exists(path):
    """Catches a field that was renamed or removed, in a command or in a sentence."""
    fields = field_names(Config)
    sections = {field.partition(".")[0] for field in fields if "." in field}
    named = set(re.findall(r"--config\.([a-z_.]+[a-z_])", text(path)))
    for quoted in re.findall(r"`([a-z]+\.[a-z_]+)(?:=[^`]*)?`", text(path)):
        if quoted.partition(".")[0] in sections and not re.search(r"\.(py|md|json|html|safetensors)$", quoted):
            module = ROOT / "dv2_jax" / quoted.replace(".", "/")
            if not module.exists() and not module.with_suffix(".py").exists():
                named.add(quoted)
    assert sorted(named - fields) == []


def test_the_fast_target_leaves_out_files_that_exist():
    """Catches a slow test file that was renamed, so that `make fast` runs it again."""
    variables = re.findall(r"^SLOW_\w+ = ((?:.*\\\n)*.*)$", text(ROOT / "Makefile"), flags=re.MULTILINE)
    paths = " ".join(variables).replace("\\\n", " ").split()
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / "tests" / path).exists()] == []


def test_the_readme_is_short():
    """Catches a README that grows back into a manual; details belong in docs/."""
    assert len((ROOT / "README.md").read_bytes()) <= 8_000
