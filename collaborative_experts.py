"""The operator under the name that Towhee's hub knows.

Python started in this folder finds this file before the package of the same name. The file then stands aside: it
loads the folder as the package `collaborative_experts`, and runs the package's commands where it was asked to
(`python -m collaborative_experts`).
"""

import sys

if __package__:

    def __getattr__(name: str) -> object:
        if name != "CollaborativeExperts":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .hub.operator import CollaborativeExperts

        return CollaborativeExperts

else:
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    _FOLDER = Path(__file__).resolve().parent
    _SPEC = spec_from_file_location(
        "collaborative_experts", _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
    )
    # The import system hands out what it finds here, not this module.
    sys.modules["collaborative_experts"] = module_from_spec(_SPEC)
    try:
        _SPEC.loader.exec_module(sys.modules["collaborative_experts"])
    except BaseException:
        del sys.modules["collaborative_experts"]
        raise
    if __name__ == "__main__":
        from collaborative_experts.__main__ import run

        sys.exit(run())
