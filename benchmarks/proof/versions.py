"""The suite on the oldest and the newest versions that the package says it supports.

    python benchmarks/proof/versions.py [--pythons python3.11 python3.13] [--sets oldest newest] [--tests tests ...]

For each Python that is there and each set, an environment of its own is made in a temporary folder, the package is
installed into it with the set's versions, and the tests run. What a library deprecates is an error where this package
uses it. "oldest" takes the lower bounds of requirements.txt and of the extras in `EXTRAS`; where there is no such
version for this Python, the first above it. "newest" takes what pip finds. Ends with one line of JSON; the exit status
is 1 where a set cannot be installed or a test fails.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("features", "index", "text", "training", "serve")
TEST_TOOLS = ("pytest", "hypothesis", "httpx", "nbclient", "nbformat", "ipykernel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", default=["python3.11", "python3.13"])
    parser.add_argument("--sets", nargs="+", choices=("oldest", "newest"), default=["oldest", "newest"])
    parser.add_argument("--tests", nargs="+", default=["tests"])
    options = parser.parse_args()
    results = {}
    for python in options.pythons:
        for name in options.sets:
            results[f"{python}, {name}"] = tried(python, name, options.tests)
            print(f"{python}, {name}: {results[f'{python}, {name}']['outcome']}", flush=True)
    print(json.dumps(results))
    sys.exit(any(result["outcome"] not in ("passed", "not here") for result in results.values()))


def tried(python: str, name: str, tests: list[str]) -> dict[str, object]:
    """Make the environment, run the tests, and remove it."""
    program = shutil.which(python)
    if program is None or run([program, "-c", ""]).returncode:
        return {"outcome": "not here"}
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        run([program, "-m", "venv", str(venv)])
        bin_python = str(venv / "bin" / "python")
        problem = installed(bin_python, name)
        if problem:
            return {"outcome": "cannot be installed", "said": problem}
        done = run(
            [bin_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", f"filterwarnings={WARNINGS}", *tests]
        )
        said = done.stdout.strip().splitlines()
        said = [line for line in said if line.startswith("FAILED")] + said[-1:]
        if done.returncode not in (0, 1):  # pytest itself ended, as by a crash of a library
            said += [f"exit status {done.returncode}", done.stderr.strip()[-500:]]
        versions = json.loads(run([bin_python, "-m", "pip", "list", "--format", "json"]).stdout)
        wanted = {requirement.name.lower() for requirement in requirements()}
        return {
            "outcome": "passed" if done.returncode == 0 else "failed",
            "said": said,
            "versions": {x["name"]: x["version"] for x in versions if x["name"].lower() in wanted},
        }


WARNINGS = "\n".join(f"error::{kind}:collaborative_experts" for kind in ("DeprecationWarning", "FutureWarning"))


def installed(python: str, name: str) -> str:
    """Install the set; what pip said where it could not."""
    pip = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    lines = [str(requirement) for requirement in requirements()]
    if name == "oldest":
        lines = [raised(python, requirement) for requirement in requirements()]
    done = run([*pip, *lines, *TEST_TOOLS])
    if done.returncode == 0:
        done = run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT)])
    return done.stderr.strip()[-500:] if done.returncode else ""


def raised(python: str, requirement: Requirement) -> str:
    """`name==bound`, or the first version above the bound that there is for this Python."""
    bound = next(str(x.version) for x in requirement.specifier if x.operator == ">=")
    # pip says which versions have a wheel for this Python where none of them is the one that is asked for
    asked = [python, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", f"{requirement.name}==0.dev0"]
    found = re.search(r"from versions: (.*?)\)", run(asked).stderr)
    there = [x.strip() for x in found[1].split(",")] if found else []
    fitting = sorted((x for x in there if requirement.specifier.contains(x, prereleases=False)), key=release)
    return f"{requirement.name}=={fitting[0] if fitting else bound}"


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def requirements() -> list[Requirement]:
    """Those of the package, of the extras that the tests need most, and of building."""
    lines = (ROOT / "requirements.txt").read_text().split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines += [line for extra in EXTRAS for line in project["project"]["optional-dependencies"][extra]]
    lines += project["build-system"]["requires"]
    # the last of a name counts: setuptools with a lower bound
    last = {requirement.name: requirement for requirement in map(Requirement, lines)}
    return [requirement for name, requirement in last.items() if name != project["project"]["name"]]  # extras of extras


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
