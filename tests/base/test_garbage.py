import gc
import sys

import pytest

from collaborative_experts.base.dependencies import extra
from collaborative_experts.base.garbage import no_collection


def test_searches_for_garbage_go_on_afterwards_where_they_went_on_before():
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), no_collection():
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_optional_module_is_imported_without_them(tmp_path, monkeypatch):
    (tmp_path / "looks_for_garbage.py").write_text("import gc\nis_enabled = gc.isenabled()")
    monkeypatch.syspath_prepend(tmp_path)
    assert extra("looks_for_garbage", "index").is_enabled is False
    assert gc.isenabled()
    sys.modules.pop("looks_for_garbage")
