"""One word for an input of the detector, and American spelling, in every text file and file name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TREES = [".ci", ".github", "benchmarks", "csrc", "docs", "examples", "frcnn", "frcnn_ops", "requirements"]
TREES += ["tests", "tools"]

IMAGE = "picture|photo|photograph"
"""The detector looks at images; a plot is a figure."""

# before -ise, -ised, -ising, -iser and -isation
IZE = """
    author binar canon capital categor character critic custom discret emphas equal factor final general
    harmon initial linear local material maxim memo memor minim normal optim organ parallel penal polar
    prior quant random raster real recogn regular sanit serial special stabil standard summar symbol
    synchron token util vector visual
"""
OUR = "arm behavi col endeav fav flav harb hon hum lab neighb od rum vap"
RE = "cent calib fib lit lust met spect theat"
DOUBLED = "cancel channel dial fuel label level model signal total travel tunnel"  # cancelled, labelling
REST = """
    acknowledgement afterwards ageing aluminium amongst analogue analyse artefact burnt catalogue catalyse
    cheque defence dreamt enrol fulfil grey instalment judgement kerb learnt licence maths mould offence
    paralyse plough practise pretence programme sceptic skilful spelt towards tyre whilst
"""


def any_of(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


BRITISH = "|".join(
    [
        rf"(?:a|de|pre|re|un)?{any_of(IZE)}is(?:e|ed|es|er|ers|ing|ations?|able)",
        rf"{any_of(OUR)}our(?:s|ed|ing|able|ful|less|ite|al|ally)?",
        rf"\w*{any_of(RE)}re[sd]?|centring",
        rf"{any_of(DOUBLED)}l(?:ed|ing|er|ers)",
        rf"{any_of(REST)}[sd]?",
        r"grey(?:scale|ish)",
    ]
)
UNWANTED = {
    "image": re.compile(f"(?:{IMAGE})s?"),
    "the American spelling": re.compile(BRITISH),
}
EXCEPTIONS = {
    "tests/test_words.py": "the words themselves",
    "LICENSE": "the text of Apache",
    "CITATION.cff": "titles of papers",
}


def words(text: str) -> list[str]:
    """In lower case; camelCase, CAPITALS and snake_case taken apart."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)]


def unwanted(text: str) -> list[str]:
    """What is wrong with a text, as `word: say ...`."""
    found = []
    for word in sorted(set(words(text))):
        found += [f"{word}: say {instead}" for instead, rule in UNWANTED.items() if rule.fullmatch(word)]
    return found


def text_files() -> Iterator[tuple[str, str]]:
    """Path and content of every text file, of the root and of the trees."""
    paths = [*ROOT.iterdir(), *(path for tree in TREES for path in (ROOT / tree).rglob("*"))]
    for path in sorted(paths):
        if not path.is_file() or path.name == ".git" or "__pycache__" in path.parts:
            continue
        content = path.read_bytes()
        try:
            text = "" if b"\0" in content else content.decode()
        except UnicodeDecodeError:
            text = ""
        yield path.relative_to(ROOT).as_posix(), text


def test_every_file_says_image_and_is_spelled_the_american_way():
    wrong = []
    for name, text in text_files():
        if name in EXCEPTIONS:
            continue
        wrong += [f"{name}: {problem}" for problem in unwanted(f"{name}\n{text}")]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "a picture",
        "PHOTOGRAPH",
        "from_pictures",
        "def normalise(",
        "ForbidSynchronisation",
        "uninitialised",
        "grey_level",
        "behaviours",
        "center or centre",
        "100 metres",
        "labelled",
        "the licence",
        "neighbouring",
    ],
)
def test_what_is_refused(text):
    assert len(unwanted(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "imread(IMREAD_GRAYSCALE), parameter, diameter, perimeter",
        "raise otherwise; noise, promises, precise, optimistic, realistic",
        "four hours, your source, a detour",
        "normalize, center, labeled, canceled, license, behavior, program, backward",
    ],
)
def test_what_is_not(text):
    assert unwanted(text) == []
