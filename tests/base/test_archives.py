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


@pytest.mark.parametrize("there", [1, 0])
def test_a_directory_that_lost_entries_is_refused(tmp_path, there):
    """Of the first entry, a length of a comment that swallows the others; the size of the directory as 0."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name in "abc":
            file.writestr(name, b"content")
    check_archive(path)
    content = bytearray(path.read_bytes())
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    where, value = (start + 32, 2 * (end - start) // 3) if there else (end + 12, 0)
    content[where : where + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match=f"its directory has {there} entries of 3"):
        check_archive(path)
