"""One clear error for a missing or too old dependency, with the command that mends it.

Towhee's loader compares names only, and of a requirements.txt it installs the last line at most; so the
package looks for itself before it imports anything else. What only some need is imported by `extra` when it
is needed. Standard library only.
"""

import re
import sys
from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from .garbage import no_collection

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def check_dependencies(requirements: Path = REQUIREMENTS) -> None:
    """Raise ImportError unless every line of `requirements` (`name`, `name>=1.2` or `name<1.2`) is met."""
    problems = []
    for line in requirements.read_text(encoding="utf-8").split():
        match = re.fullmatch(r"([\w.-]+?)(?:(>=|<)([\d.]+))?", line)
        if match is None:
            raise ValueError(f"{requirements}: expected lines such as name, name>=1.2 or name<1.2, got {line!r}")
        name, relation, limit = match.groups()
        try:
            installed = version(name)
        except PackageNotFoundError:
            problems.append(f"{line} (missing)")
            continue
        if relation and (_release(installed) >= _release(limit)) != (relation == ">="):
            problems.append(f"{line} (found {installed})")
    if problems:
        requirements_to_install = " ".join(f"'{problem.split()[0]}'" for problem in problems)
        raise ImportError(
            f"collaborative_experts needs {', '.join(problems)}; install with: pip install {requirements_to_install}"
        )


def extra(module: str, name: str) -> ModuleType:
    """The optional module, or an ImportError that says how to install the extra `name` which brings it."""
    try:
        with nullcontext() if module in sys.modules else no_collection():
            return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({error}); install with: pip install 'collaborative_experts[{name}]' "
            f"or the packages of [{name}] in pyproject.toml"
        ) from None


def is_panic(error: BaseException) -> bool:
    """True for a panic of a library in Rust, which is no Exception, since its author expected nobody to catch it."""
    return type(error).__name__ == "PanicException"


def _release(text: str) -> tuple[int, ...]:
    """'2.13.0+cpu' -> (2, 13, 0)"""
    return tuple(int(part) for part in re.findall(r"^\d+(?:\.\d+)*", text)[0].split("."))
