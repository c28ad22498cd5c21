"""What surrounds the package is whole, and says of versions what pyproject.toml and constraints.txt say."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [
    found[1] for line in PROJECT["classifiers"] if (found := re.fullmatch(r"Programming Language .* (3\.\d+)", line))
]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: str | Path) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def pins(path: str) -> dict[str, str]:
    """Versions by name, as this Python has them."""
    lines = [line.split("#")[0].strip() for line in (ROOT / path).read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    here = [one for one in requirements if one.marker is None or one.marker.evaluate()]
    assert len({canonicalize_name(one.name) for one in here}) == len(here), "a package is pinned twice"
    return {one.name: str(one.specifier).removeprefix("==") for one in here}


def steps(workflow: str, job: str) -> list[dict[str, Any]]:
    return read(f".github/workflows/{workflow}.yml")["jobs"][job]["steps"]


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "what a CITATION.cff must have"
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["title"] == f"{PROJECT['name']}: {PROJECT['description'][0].lower()}{PROJECT['description'][1:]}"


def test_hooks_before_a_commit_run_what_make_runs():
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert set(hooks) == {"ruff", "ruff-format", "mypy"}
    for name in ("ruff", "ruff-format"):
        assert hooks[name]["additional_dependencies"] == [f"ruff=={pins('constraints.txt')['ruff']}"]
    assert hooks["mypy"]["entry"] == ".venv/bin/mypy", "of the environment, which is pinned"
    assert "\t$(BIN)/mypy\n" in (ROOT / "Makefile").read_text()


def test_ci_runs_on_every_python_that_is_promised():
    assert f">={PYTHONS[0]}" == PROJECT["requires-python"]
    matrix = read(".github/workflows/ci.yml")["jobs"]["all"]["strategy"]["matrix"]
    assert matrix == {"python": PYTHONS}
    (run,) = [step for step in steps("ci", "all") if "run" in step]
    assert run["run"] == ".ci/run"
    (oldest,) = [
        step["with"]["python-version"] for step in steps("ci", "oldest") if "python-version" in step.get("with", {})
    ]
    assert oldest == PYTHONS[0]


def test_ci_tests_the_oldest_of_what_is_allowed():
    needed = [Requirement(line) for line in PROJECT["dependencies"]]
    lowest = {
        each.name: Version(next(one.version for one in each.specifier if one.operator == ">=")) for each in needed
    }
    oldest = {name: Version(version) for name, version in pins("tests/compat/oldest.txt").items()}
    assert oldest == lowest
    (run,) = [step for step in steps("ci", "oldest") if "run" in step]
    constraints = run["env"]["CONSTRAINTS"]
    assert constraints == "tests/compat/oldest.txt"
    assert "-c $(CONSTRAINTS) -e" in (ROOT / "Makefile").read_text()


def test_a_release_is_built_from_a_tag_and_published_without_a_password():
    release = read(".github/workflows/release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML takes the word `on` for true
    publish = release["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["steps"][-1] == {"uses": "pypa/gh-action-pypi-publish@release/v1"}
    commands = [step.get("run", "") for step in release["jobs"]["build"]["steps"]]
    assert 'python .ci/tag_is_version.py "$GITHUB_REF_NAME"' in commands
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a release is made with a Python that reads TOML by itself")
@pytest.mark.parametrize(
    ("tag", "heading", "told"),
    [
        ("v1.2.3", "## [1.2.3] - 2026-01-31", None),
        ("v1.2.4", "## [1.2.3] - 2026-01-31", "the tag is v1.2.4, the version in pyproject.toml 1.2.3: tag v1.2.3"),
        ("1.2.3", "## [1.2.3] - 2026-01-31", "the tag is 1.2.3, the version"),
        ("v1.2.3", "## [Unreleased]", "CHANGELOG.md has no section [1.2.3]"),
    ],
)
def test_a_tag_that_is_not_the_version_is_not_released(
    tag: str, heading: str, told: str | None, tmp_path: Path
) -> None:
    script = tmp_path / ".ci" / "tag_is_version.py"
    script.parent.mkdir()
    script.write_text((ROOT / ".ci" / "tag_is_version.py").read_text())
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    ended = subprocess.run([sys.executable, "-S", script, tag], capture_output=True, text=True, check=False)
    assert ended.returncode == (0 if told is None else 1)
    assert told is None or ended.stderr.startswith(told)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_no_more_unless_a_job_says_so(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] == "ubuntu-24.04"
        assert all("run" in step or re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", step["uses"]) for step in job["steps"])
    scripts = re.findall(r"\.ci/\w+(?:\.py)?", path.read_text())
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_documentation_is_built_with_what_is_pinned():
    settings = read(".readthedocs.yaml")
    assert settings["version"] == 2
    assert settings["build"]["tools"]["python"] in PYTHONS
    (install,) = settings["build"]["jobs"]["install"]
    assert "-c constraints.txt" in install
    assert install.endswith("-e '.[dev]'")
    assert settings["sphinx"]["fail_on_warning"]
    assert (ROOT / settings["sphinx"]["configuration"]).is_file()


def test_issues_ask_for_what_is_needed():
    forms = [path for path in TEMPLATES if path.name != "config.yml"]
    assert {path.name for path in forms} == {"bug.yml", "feature.yml"}
    for path in forms:
        form = read(path)
        assert form["name"]
        assert form["description"]
        assert len({each["id"] for each in form["body"]}) == len(form["body"])
        assert all(each["attributes"]["label"] for each in form["body"])
        assert any(each.get("validations", {}).get("required") for each in form["body"])
        assert "attach" in path.read_text().lower(), "say what to attach"


def test_badges_of_the_readme_say_what_the_metadata_say():
    badges = re.findall(r"!\[([^\]]+)\]\((https?://[^)]+)\)", (ROOT / "README.md").read_text())
    shown = {text: address.rsplit("/", 1)[-1] for text, address in badges}
    licence = PROJECT["license"].replace("-", "--")
    checked = {
        f"Python {PYTHONS[0]} to {PYTHONS[-1]}": f"python-{PYTHONS[0]}_to_{PYTHONS[-1]}-blue",
        f"Licence {PROJECT['license']}": f"licence-{licence}-blue",
        "Typed: mypy strict, pyright": "typed-mypy_strict,_pyright-blue",
    }
    assert shown == checked
    assert "Typing :: Typed" in PROJECT["classifiers"]
