"""Archives that come from elsewhere: what is honest is unpacked whole, everything else leaves no trace."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flr_bench.data.archives import Limits, is_archive, unpack
from flr_bench.errors import DamagedFileError, DataError, FlrBenchError

KINDS = ("zip", "tar", "tar.gz")


def make(path: Path, members: list[tuple[str, bytes]]) -> Path:
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content, compress_type=zipfile.ZIP_DEFLATED)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def leftovers(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", KINDS)
def test_honest_archives_are_unpacked_whole(kind: str, tmp_path: Path) -> None:
    members = [("ml-9m/ratings.dat", b"1::2::3\n" * 1000), ("./ml-9m/sub/movies.dat", b"x"), ("ml-9m/empty", b"")]
    archive = make(tmp_path / f"ml-9m.{kind}", members)
    assert unpack(archive, tmp_path / "out") == (
        Path("ml-9m/ratings.dat"),
        Path("ml-9m/sub/movies.dat"),
        Path("ml-9m/empty"),
    )
    assert (tmp_path / "out/ml-9m/ratings.dat").read_bytes() == members[0][1]
    assert leftovers(tmp_path) == {
        archive.name,
        *("out", "out/ml-9m", "out/ml-9m/sub"),
        *("out/ml-9m/ratings.dat", "out/ml-9m/sub/movies.dat", "out/ml-9m/empty"),
    }


def test_gzip_file_gets_its_name_from_the_archive_not_from_its_header(tmp_path: Path) -> None:
    archive = tmp_path / "Books_5.json.gz"
    with archive.open("wb") as raw, gzip.GzipFile("../../evil.json", "wb", fileobj=raw) as stream:
        stream.write(b"{}\n")
    assert unpack(archive, tmp_path / "out") == (Path("Books_5.json"),)
    assert (tmp_path / "out/Books_5.json").read_bytes() == b"{}\n"


def test_kinds_are_told_by_name(tmp_path: Path) -> None:
    assert [name for name in ("a.ZIP", "a.tar", "a.tgz", "a.tar.gz", "a.gz", "a.csv", "a.7z") if is_archive(name)] == [
        *("a.ZIP", "a.tar", "a.tgz", "a.tar.gz", "a.gz")
    ]
    (tmp_path / "a.7z").write_bytes(b"x")
    with pytest.raises(DataError, match="no archive that can be unpacked"):
        unpack(tmp_path / "a.7z", tmp_path / "out")


BAD_NAMES = [
    *("../evil", "a/../../evil", "/etc/evil", "\\evil", "..\\evil", "a\\..\\..\\evil", "C:\\evil", "c:evil"),
    *("a/../b", "a/.. /b", "a/.../b", "a:stream", "a/b\x01", "x" * 300, "/".join(["long"] * 300)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BAD_NAMES, ids=[name[:12].encode().hex() for name in BAD_NAMES])
def test_members_outside_their_folder_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / f"a.{kind}", [("good", b"1"), (name, b"2")])
    with pytest.raises(DataError, match="is refused: its member") as error:
        unpack(archive, tmp_path / "deep" / "out")
    assert "\n" not in str(error.value)
    assert leftovers(tmp_path) == {archive.name, "deep"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names",
    [("a", "A"), ("d/a", "D/b"), ("a", "a"), ("a", "a/b"), ("a/b", "a"), ("é", unicodedata.normalize("NFD", "é"))],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_meet_in_one_place_are_refused(kind: str, names: tuple[str, str], tmp_path: Path) -> None:
    archive = make(tmp_path / f"a.{kind}", [(name, b"1") for name in names])
    with pytest.raises(DataError, match="meets another member"):
        unpack(archive, tmp_path / "out")
    assert leftovers(tmp_path) == {archive.name}


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z"],
)
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as opened:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, "/etc/passwd"
        opened.addfile(member)
    with pytest.raises(DataError, match="link or a device"):
        unpack(archive, tmp_path / "out")
    assert leftovers(tmp_path) == {"a.tar"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(kind: int, tmp_path: Path) -> None:
    member = zipfile.ZipInfo("link")
    member.create_system, member.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(DataError, match="link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert leftovers(tmp_path) == {"a.zip"}


def test_modes_of_an_archive_do_not_reach_the_disk(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        member = tarfile.TarInfo("run.sh")
        member.mode = 0o6777
        opened.addfile(member)
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert (tmp_path / "out/run.sh").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize("kind", [*KINDS, "gz"])
def test_bombs_are_stopped_while_they_grow(kind: str, tmp_path: Path) -> None:
    content = bytes(4 << 20)
    if kind == "gz":
        archive = tmp_path / "a.gz"
        archive.write_bytes(gzip.compress(content))
    else:
        archive = make(tmp_path / f"a.{kind}", [("zeros", content)])
    assert unpack(archive, tmp_path / "free", Limits(ratio=1.0, free_bytes=8 << 20))
    limits = [Limits(total_bytes=1 << 20)] + ([Limits(ratio=10.0, free_bytes=1 << 16)] if kind != "tar" else [])
    for limit in limits:
        with pytest.raises(DataError, match="grows beyond"):
            unpack(archive, tmp_path / "out", limit)
        assert not (tmp_path / "out").exists()


def test_many_members_are_refused(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", [(f"f{i}", b"") for i in range(11)])
    with pytest.raises(DataError, match="more than 10 members"):
        unpack(archive, tmp_path / "out", Limits(members=10))


def test_bomb_in_the_header_of_a_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as opened:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"comment": "x" * (8 << 20)}
        opened.addfile(member)
    with pytest.raises(DataError, match="one of its headers"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("kind", [*KINDS, "gz"])
def test_cut_archives_are_found(kind: str, tmp_path: Path) -> None:
    content = os.urandom(200_000)
    if kind == "gz":
        archive = tmp_path / "a.gz"
        archive.write_bytes(gzip.compress(content))
    else:
        archive = make(tmp_path / f"a.{kind}", [("noise", content)])
    archive.write_bytes(archive.read_bytes()[:100_000])
    with pytest.raises(DamagedFileError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out")
    assert leftovers(tmp_path) == {archive.name}


def test_encrypted_members_are_refused_with_one_line(tmp_path: Path) -> None:
    make(tmp_path / "a.zip", [("a", b"content")])
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[6] |= 1  # the flag in the member's own header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DamagedFileError, match="encrypted"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_empty_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no file"):
        unpack(make(tmp_path / "a.zip", []), tmp_path / "out")


# --- generated archives ------------------------------------------------------------------------

pieces = st.sampled_from(["a", "A", "b", "..", ".", "", "é", "x y", "C:", "nul\x00", "...", "-", "ß", "SS", "link"])
names = st.builds(
    lambda parts, slash, first: first + slash.join(parts),
    st.lists(pieces, min_size=1, max_size=4),
    st.sampled_from(["/", "\\"]),
    st.sampled_from(["", "", "", "/", "\\", "../"]),
)
types = st.sampled_from([tarfile.REGTYPE] * 6 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
generous = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def hostile_tar(members: list[tuple[str, bytes, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.GNU_FORMAT) as opened:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../outside"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            opened.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def hostile_zip(members: list[tuple[str, bytes, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, kind, content in members:
            member = zipfile.ZipInfo(name or "empty")
            member.filename = name or "empty"
            mode = stat.S_IFLNK if kind == tarfile.SYMTYPE else stat.S_IFREG
            member.create_system, member.external_attr = 3, (mode | 0o777) << 16
            opened.writestr(member, content)
    return buffer.getvalue()


@generous
@pytest.mark.filterwarnings("ignore:Duplicate name")
@given(
    members=st.lists(st.tuples(names, types, st.binary(max_size=20)), max_size=5),
    kind=st.sampled_from(["zip", "tar.gz"]),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=2),
)
def test_no_archive_writes_outside_its_folder_or_leaves_a_trace(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[tuple[str, bytes, bytes]],
    kind: str,
    flips: list[tuple[int, int]],
) -> None:
    top = tmp_path_factory.mktemp("hostile")
    content = bytearray((hostile_zip if kind == "zip" else hostile_tar)(members))
    for place, change in flips:
        content[place % len(content)] ^= change
    archive = top / f"a.{kind}"
    archive.write_bytes(content)
    out = top / "x" / "y" / "out"
    refusals: list[FlrBenchError] = []
    written: tuple[Path, ...] = ()
    try:
        written = unpack(archive, out)
    except FlrBenchError as error:
        refusals.append(error)
    if refusals:
        assert "\n" not in str(refusals[0])
        assert leftovers(top) <= {archive.name, "x", "x/y"}
        return
    assert {name for name in leftovers(top) if not name.startswith("x/y/out")} == {archive.name, "x", "x/y"}
    assert set(written) == {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert not any(path.is_symlink() for path in out.rglob("*"))
    if not flips and kind == "tar.gz":
        assert len(written) == sum(type_ == tarfile.REGTYPE for _, type_, _ in members)
