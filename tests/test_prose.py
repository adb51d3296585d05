"""Vocabulary of comments, docstrings, identifiers and documentation."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("dv2_jax", "tools_service", "configs", "benchmarks", "tests", "tpu")
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")

# Words without a technical meaning here → the words to use instead.
BANNED_WORDS = {
    "lie": "be sharded, replicated, resident, stored", "lies": "is sharded, replicated, resident, stored",
    "lay": "arrange, shard", "lays": "arranges, shards", "lying": "sharded, resident, stored",
    "beside": "next to, in addition to", "besides": "in addition to, also",
    "whole": "entire, complete, replicated, full", "told": "given, set, reported", "nowhere": "padding, unset",
    "reckon": "compute", "reckoned": "computed", "picture": "image", "pictures": "images",
    "spell": "write, format", "spells": "writes, formats", "spelled": "written", "spelt": "written",
    "mend": "fix", "mended": "fixed",
}  # fmt: skip
BANNED_PHRASES = {"worked out": "computed, recomputed", "for ever": "forever, without limit", "goes without": "has no"}
BRITISH = re.compile(
    r"\w*(?:colour|behaviour|favour|neighbour|honour|catalogue|artefact|modelling|modelled|labelled|labelling|travell"
    r"|misspelt|fulfil\b|centre|metre\b|licence|defence|grey|sceptic|judgement|programme\b"
    r"|(?:normal|optim|initial|recogn|serial|material|organ|summar|token|quant|minim|maxim|util|real|synchron|parallel"
    r"|general|special|final|local|vector|categor|priorit|author|random|visual|standard|penal|equal|custom|capital"
    r"|character|memor|emphas|critic|apolog)is(?:e|es|ed|er|ers|ing|ation|ations)\b|analys(?:e|ed|es|ing)\b)\w*",
    re.IGNORECASE,
)
QUESTION_START = re.compile(r"(?:What|Whether|Where|How|Which|Why)\b")

# (file, word) where the word is right: a quotation, or a name that is part of an interface.
ALLOWED: dict[tuple[str, str], str] = {
    ("tests/test_prose.py", "*"): "names the words",
    ("dv2_jax/config/migrations.py", "*"): "names of fields in stored runs",
    ("tests/config/test_config_loader.py", "*"): "names of fields in stored runs",
}


class Finding(NamedTuple):
    path: str
    line: int
    kind: str
    word: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind} {self.word!r}: {self.hint}"


class Text(NamedTuple):
    line: int
    kind: str  # comment, docstring, document
    text: str


def texts_of(source: str) -> Iterator[Text]:
    """Yields the comments and docstrings of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(token.start[0], "comment", token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            if docstring is not None:
                yield Text(node.body[0].lineno, "docstring", docstring)


def identifiers_of(source: str) -> Iterator[tuple[int, str]]:
    """Yields (line, name) of the names that a Python file binds: definitions, parameters, variables, attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg


def words_of(identifier: str) -> list[str]:
    """Splits `snake_case` and `CamelCase` into lower-case words."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier)]


def check_prose(text: Text, path: str) -> Iterator[Finding]:
    """Yields banned words, British spelling, double backticks, and docstrings that start with a question word."""
    for offset, line in enumerate(text.text.split("\n")):
        number = text.line + offset
        for word in re.findall(r"[A-Za-z]+", line):
            if word.lower() in BANNED_WORDS:
                yield Finding(path, number, text.kind, word, BANNED_WORDS[word.lower()])
        for phrase, hint in BANNED_PHRASES.items():
            if re.search(rf"\b{phrase}\b", line, re.IGNORECASE):
                yield Finding(path, number, text.kind, phrase, hint)
        for match in BRITISH.finditer(line):
            yield Finding(path, number, text.kind, match.group(), "American spelling")
        if text.kind != "document" and "``" in line:
            yield Finding(path, number, text.kind, "``", "single backticks")
    if text.kind == "docstring" and QUESTION_START.match(text.text.strip()):
        start = text.text.split()[0]
        yield Finding(path, text.line, text.kind, start, "start with a sentence that says what it does or returns")


def check_identifier(line: int, name: str, path: str) -> Iterator[Finding]:
    for word in words_of(name):
        if word in BANNED_WORDS:
            yield Finding(path, line, "identifier", name, BANNED_WORDS[word])
        elif BRITISH.fullmatch(word):
            yield Finding(path, line, "identifier", name, "American spelling")


def python_files() -> list[Path]:
    return [
        path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if not GENERATED.search(path.name)
    ]


def documents() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "WORKSPACE.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if path.exists()]


def is_allowed(finding: Finding) -> bool:
    return (finding.path, "*") in ALLOWED or (finding.path, finding.word.lower()) in ALLOWED


def findings() -> list[Finding]:
    """Returns every violation in the project, in the order of files and lines."""
    found = []
    for path in python_files():
        source, name = path.read_text(), str(path.relative_to(ROOT))
        for text in texts_of(source):
            found += check_prose(text, name)
        for line, identifier in identifiers_of(source):
            found += check_identifier(line, identifier, name)
    for path in documents():
        # Code blocks hold commands and model output, which are not prose.
        prose = re.sub(r"```.*?```", lambda match: "\n" * match.group().count("\n"), path.read_text(), flags=re.DOTALL)
        prose = re.sub(r"`[^`\n]*`", "``", prose)
        found += check_prose(Text(1, "document", prose), str(path.relative_to(ROOT)))
    return sorted({finding for finding in found if not is_allowed(finding)})


def test_prose_uses_the_terms_of_the_field():
    """Catches words of place for shardings, two words for one concept, British spelling and double backticks."""
    wrong = findings()
    assert not wrong, f"{len(wrong)} findings\n" + "\n".join(map(str, wrong[:60]))


def test_the_prose_check_finds_each_kind_of_violation():
    """Catches a check that passes because it no longer reads comments, docstrings or identifiers."""
    source = (
        '"""Whether it holds."""\n'
        "big_picture = 1  # it lies ``here``\n"
        "def normalise(whole_rows):\n"
        '    """Returns values that are worked out."""\n'
    )
    found = [finding for text in texts_of(source) for finding in check_prose(text, "x.py")]
    found += [finding for line, name in identifiers_of(source) for finding in check_identifier(line, name, "x.py")]
    words = {finding.word for finding in found}
    assert words == {"Whether", "lies", "``", "worked out", "big_picture", "normalise", "whole_rows"}


if __name__ == "__main__":
    report = findings()
    print("\n".join(map(str, report)))
    sys.exit(bool(report))
