"""The READMEs keep their promises: their commands, options, links and paths exist, and CI runs the test command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from sdm_ray.cli.app import app
from tests import ROOT

README = ROOT / "README.md"
FOLDERS = ("sdm_ray", "sweeps", "infra", "tests")
FOUND = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md"))]
READMES = [README, *(path for path in FOUND if "fixtures" not in path.parts)]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TOP = (*(f"{folder}/" for folder in FOLDERS), ".ci/")


def bash_blocks(path: Path) -> str:
    """The bash blocks of a README, continued lines joined, without comments."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
    return re.sub(r"(^|\s)#.*", "", blocks.replace("\\\n", " "), flags=re.MULTILINE)


def prose(path: Path) -> str:
    """A README without its code blocks."""
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def code_spans(path: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(path))]


def places(path: Path) -> list[str]:
    """Relative links, and code spans that look like files or folders of the repository."""
    links = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)) if "://" not in target]
    spans = [
        span for span in code_spans(path)
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", span)
        and (span.startswith(TOP) or (span.endswith((".py", ".yaml")) and "/" in span and not span.startswith("runs/")))
    ]  # fmt: skip
    return [place for place in dict.fromkeys(links + spans) if place]


def exists(place: str, readme: Path) -> bool:
    return any((base / place).exists() for base in (readme.parent, ROOT, ROOT / "sdm_ray"))


def in_readmes(found: list[tuple[Path, str]]) -> pytest.MarkDecorator:
    names = [f"{path.relative_to(ROOT)}: {text}" for path, text in found]
    return pytest.mark.parametrize(("readme", "text"), found, ids=names)


IN_BLOCKS = [(path, text) for path in READMES for text in re.findall(r"sdm-ray (?=[a-z])[^\n&>|]*", bash_blocks(path))]
IN_PROSE = [(path, text) for path in READMES for text in code_spans(path) if re.match(r"sdm-ray [a-z]", text)]


@in_readmes(IN_BLOCKS)
def test_every_command_is_one_that_the_command_line_takes(readme: Path, text: str) -> None:
    _, name, *arguments = shlex.split(text)
    assert name in COMMANDS
    COMMANDS[name].make_context(name, arguments, resilient_parsing=False)


@in_readmes(IN_PROSE)
def test_commands_within_sentences_have_the_options_they_name(readme: Path, text: str) -> None:
    _, name, *arguments = text.split()
    assert name in COMMANDS
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {word.split("=")[0] for word in arguments if word.startswith("--")} <= known | {"--help"}


@in_readmes([(path, place) for path in READMES for place in places(path)])
def test_links_and_paths_lead_somewhere(readme: Path, text: str) -> None:
    assert exists(text, readme)


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_registry_address_stands_in_a_readme(path: Path) -> None:
    assert not re.search(r"--\S*index\S*|/simple\b", path.read_text(encoding="utf-8"))


def test_there_are_commands_and_places_to_check() -> None:
    assert len(IN_BLOCKS) >= 8
    assert places(README)


def test_the_first_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = next(line for line in bash_blocks(README).splitlines() if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text()
