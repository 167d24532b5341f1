"""What the package is made of: licences of all that is installed for it, and pins with hashes.

    python benchmarks/proof/supply.py licences
    python benchmarks/proof/supply.py lock FILE [--requirements requirements-dev.txt]

`licences` follows the requirements of the package and of its extras through the installed packages, prints the licence
of each, and ends with one line of JSON. The exit status is 1 where a package says none, or one of `REFUSED`.

`lock` asks pip, for this Python and machine, what it would install for the requirements, and writes all of it with
versions and SHA-256. Then it has pip check the file with --require-hashes, which downloads everything once more or
takes it from pip's cache. The exit status is pip's. The file is installed by `pip install --require-hashes -r FILE`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "collaborative_experts"

REFUSED = re.compile(
    r"\b(AGPL|Affero|SSPL|(?<!L)GPL|(?<!Lesser )General Public License|Commons Clause|Non-?Commercial)\b", re.I
)
"""Licences that would bind what uses the package. Of several that are offered, one that is none of these will do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("licences")
    locking = verbs.add_parser("lock")
    locking.add_argument("file", type=Path)
    locking.add_argument("--requirements", type=Path, default=ROOT / "requirements-dev.txt")
    options = parser.parse_args()
    sys.exit(print_licences() if options.verb == "licences" else lock(options.requirements, options.file))


# --- licences -------------------------------------------------------------------------------------------------


def print_licences() -> int:
    found = {name: licence(package) for name, package in sorted(installed().items())}
    unknown = [name for name, said in found.items() if not said]
    refused = [name for name, said in found.items() if said and all(map(REFUSED.search, said.split(" OR ")))]
    for name, said in found.items():
        print(f"{name:32} {said or 'UNKNOWN'}")
    kinds = Counter(found.values()).most_common()
    print(json.dumps({"packages": len(found), "unknown": unknown, "refused": refused, "licences": dict(kinds)}))
    return bool(unknown or refused)


def installed() -> dict[str, Distribution]:
    """The packages that the package and its extras need, and those need, as far as they are installed."""
    own = distribution(PACKAGE)
    found: dict[str, Distribution] = {}
    waiting = [(own, extra) for extra in ("", *own.metadata.get_all("Provides-Extra", []))]
    seen = set(waiting)
    while waiting:
        package, extra = waiting.pop()
        for line in package.requires or ():
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
                continue
            try:
                other = distribution(needed.name)
            except PackageNotFoundError:
                continue
            name = canonicalize_name(needed.name)
            if name != canonicalize_name(PACKAGE):
                other = found.setdefault(name, other)
            for asked in ("", *needed.extras):
                if (other, asked) not in seen:
                    seen.add((other, asked))
                    waiting.append((other, asked))
    return found


def licence(package: Distribution) -> str:
    """The licence in a line: the expression, else the classifiers, else the first line of what is said or brought."""
    facts = package.metadata
    if facts["License-Expression"]:
        return facts["License-Expression"]
    classified = [x.rsplit(" :: ", 1)[1] for x in facts.get_all("Classifier", []) if x.startswith("License :: ")]
    classified = [x for x in classified if x != "OSI Approved"]
    said = (facts["License"] or "").strip().splitlines()
    in_words = said[0].strip() if said and said[0] != "UNKNOWN" else ""
    return " OR ".join(classified) or in_words or _head_of_licence(package)


def _head_of_licence(package: Distribution) -> str:
    """The first line of the licence file that the package brings."""
    files = [file for file in package.files or () if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))]
    lines = (files[0].read_text() or "").splitlines() if files else []
    return next((line.strip() for line in lines if line.strip()), "")


# --- hashes ---------------------------------------------------------------------------------------------------


def lock(requirements: Path, target: Path) -> int:
    """Write and check the file. Returns pip's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        status = pip("--ignore-installed", "--report", str(report), "--requirement", str(requirements))
        if status:
            return status
        lines = locked(json.loads(report.read_text()))
    target.write_text("\n".join(lines) + "\n")
    status = pip("--ignore-installed", "--require-hashes", "--no-deps", "--requirement", str(target))
    print(json.dumps({"packages": len(lines), "checked": not status}))
    return status


def locked(report: dict) -> list[str]:
    """The lines of a file of requirements with hashes."""
    lines = []
    for entry in report["install"]:
        hashes = entry["download_info"]["archive_info"]["hashes"]
        facts = entry["metadata"]
        lines.append(f"{canonicalize_name(facts['name'])}=={facts['version']} --hash=sha256:{hashes['sha256']}")
    return sorted(lines)


def pip(*arguments: str) -> int:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", *arguments]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    main()
