"""The project's files agree with one another: packages, versions, commands, promises in the README."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ppkit

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings the package there
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONDA_NAMES = {"torch": "pytorch"}


def requirements(*extras: str) -> dict[str, Requirement]:
    """Return what pyproject.toml asks for, by canonical name; extras that name extras are followed."""
    lines = list(PROJECT["dependencies"])
    waiting = list(extras)
    while waiting:
        for line in PROJECT["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(line)
            if requirement.name == PROJECT["name"]:
                waiting.extend(requirement.extras)
            else:
                lines.append(line)
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def constraints() -> dict[str, Requirement]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every text file that belongs to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                yield name, content.decode("utf-8")


# --- packages ---


def test_conda_environment_is_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [Requirement(line) for line in environment["dependencies"] if isinstance(line, str)]
    ranges = {package.name: package.specifier for package in conda}
    newest = max(int(line.rpartition(".")[2]) for line in PROJECT["classifiers"] if " 3." in line)  # that was tried
    assert ranges.pop("python") == Requirement(f"python{PROJECT['requires-python']},<3.{newest + 1}").specifier
    assert not str(ranges.pop("pip"))
    assert ranges == {CONDA_NAMES.get(name, name): need.specifier for name, need in requirements("lab").items()}
    assert [line for line in environment["dependencies"] if isinstance(line, dict)] == [{"pip": ["-e ."]}]


def test_constraints_pin_every_direct_dependency_within_its_range() -> None:
    pinned = constraints()
    for name, need in requirements("lab", "course", "test").items():
        assert name in pinned, f"constraints.txt does not pin {name}"
        (pin,) = pinned[name].specifier
        assert pin.operator == "==", f"constraints.txt must pin {name} with =="
        assert need.specifier.contains(pin.version), f"{name}=={pin.version} is outside {need.specifier}"


def test_every_extra_is_installed_by_make() -> None:
    installed = {extra for group in re.findall(r'-e "\.\[([a-z,]+)\]"', MAKEFILE) for extra in group.split(",")}
    assert requirements(*installed).keys() == requirements(*PROJECT["optional-dependencies"]).keys()


def test_type_information_is_shipped() -> None:
    assert (Path(ppkit.__file__).parent / "py.typed").is_file()


def test_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    elsewhere = [
        name for name, text in tracked_texts() if f'"{ppkit.__version__}"' in text and name != "ppkit/__init__.py"
    ]
    assert elsewhere == []
    released = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == "Unreleased"


# --- commands and promises ---


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):(?!=)", MAKEFILE, re.MULTILINE))


def test_readme_names_commands_that_exist() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)", README)) | set(
        re.findall(r"`make ([a-z]+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    )
    assert {"lab", "test"} <= named
    assert named <= make_targets()


def test_make_help_lists_every_target() -> None:
    described = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
    assert described == make_targets()


def test_ci_runs_make_test() -> None:
    assert re.search(r"^make test\b", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["steps"][-1]["run"] == "bash .ci/run"
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    promised = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert tested == promised


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_lists_every_lesson_that_exists() -> None:
    linked = set(re.findall(r"\((notebooks/[^)]+\.ipynb)\)", README))
    assert linked == {path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_license() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("BSD 3-Clause License")
    assert "the ppkit authors" in text
    assert PROJECT["license"] == "BSD-3-Clause"


# --- nothing of one machine ---


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        (
            "a package registry's address",
            r"pypi\.(?:org|python)|pythonhosted\.|registry\.npmjs|deb\.debian\.org",
        ),
        ("a package index", r"--(?:extra-)?index-url|index_url\s*=|find-links"),
        ("a path of one machine", r"(?<![\w.$}])/(?:work|root|home/\w+|Users/\w+)/\w|[A-Z]:\\\\?Users"),
    ],
)
def test_no_tracked_file_holds(what: str, pattern: str) -> None:
    this_file = "tests/test_project.py"  # names the patterns themselves
    found = [
        f"{name}: {match.group()!r}"
        for name, text in tracked_texts()
        if name != this_file and (match := re.search(pattern, text))
    ]
    assert found == [], f"holds {what}"


def test_the_readmes_picture_is_what_its_code_draws(project_root: Path) -> None:
    from ppkit import Costs, one_f_one_b, simulate

    drawn = simulate(one_f_one_b(4, 8), Costs(forward=0.02, backward=0.04, latency=0.002)).to_svg()
    readme = (project_root / "README.md").read_text(encoding="utf-8")
    assert "simulate(one_f_one_b(4, 8), Costs(forward=0.02, backward=0.04, latency=0.002))" in readme
    assert (project_root / "docs" / "gantt.svg").read_text(encoding="utf-8").strip() == drawn.strip()
