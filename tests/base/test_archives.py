"""Archives that would unpack to far more than they hold."""

import zipfile

import pytest

from collaborative_experts.base.archives import UNPACKED_BYTES, check_archive, check_expansion


def test_an_archive_of_zeros_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in "ab":
            file.writestr(name, bytes(UNPACKED_BYTES // 2 + 1))
    with pytest.raises(ValueError, match=r"a\.npz: refused, its [\d,]+ bytes would unpack to 67,108,866"):
        check_archive(path)


def test_what_a_file_holds_may_be_large(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(2**20))
    check_expansion(path, UNPACKED_BYTES)
    check_expansion(path, 200 * 2**20)
    with pytest.raises(ValueError, match="refused"):
        check_expansion(path, 200 * 2**20 + 1)
