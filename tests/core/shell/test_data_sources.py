"""``longseq data``: packages unpacked inside their folder, once; one-line errors; nothing half-done
left."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.core.shell.data_sources import SOURCES, fetch, unpack_member


def debian(path: Path, members: dict[str, bytes]) -> Path:
    """Writes a Debian package by hand: an ar archive of three members."""

    def tar(content: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    control = tar(
        {"./control": b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: n\nDescription: d\n"}
    )
    parts = {"debian-binary": b"2.0\n", "control.tar.gz": control, "data.tar.gz": tar(members)}
    content = b"!<arch>\n"
    for name, data in parts.items():
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data
        content += b"\n" * (len(data) % 2)
    path.write_bytes(content)
    return path


needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="no dpkg-deb on this machine"
)


@needs_dpkg
def test_a_debian_package_is_unpacked_once(tmp_path: Path, monkeypatch, capsys) -> None:
    inside = SOURCES["fashion-mnist"].inside
    file = debian(tmp_path / "x.deb", {f"./{inside}/a.gz": b"abc", "./usr/share/doc/b": b""})
    out = tmp_path / "out"
    assert main(["data", "fashion-mnist", "--archive", str(file), "--out", str(out)]) == 0
    folder = out / "fashion-mnist" / inside
    said = capsys.readouterr()
    assert said.out == f"{folder}\n"  # so that $(longseq data fashion-mnist) is a path
    assert "1 files, 0.0 MB; licence: MIT" in said.err
    assert (folder / "a.gz").read_bytes() == b"abc"
    monkeypatch.setattr(subprocess, "run", None)  # a second call downloads nothing
    assert fetch("fashion-mnist", out) == folder
    assert [path.name for path in out.iterdir()] == ["fashion-mnist"]


@needs_dpkg
@pytest.mark.parametrize("name", ["../../escape", "/escape"])
def test_no_file_leaves_the_folder(tmp_path: Path, name: str) -> None:
    file = debian(tmp_path / "x.deb", {name: b"abc"})
    with pytest.raises(DataError):
        fetch("fashion-mnist", tmp_path / "a/b", file)
    assert not list(tmp_path.rglob("escape")) and not Path("/escape").exists()
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, b"abc")
    with pytest.raises(DataError, match="names a file outside its folder"):
        fetch("iris-sample-data", tmp_path / "a/b", wheel)
    assert not list(tmp_path.rglob("escape")) and list((tmp_path / "a/b").iterdir()) == []


def test_a_wheel_is_unpacked_into_the_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("iris_sample_data/sample_data/a.nc", b"abc")
    folder = fetch("iris-sample-data", archive=tmp_path / "x.whl")
    assert folder.is_relative_to(tmp_path / "cache") and (folder / "a.nc").read_bytes() == b"abc"


def test_wrong_names_and_files_are_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(ConfigError, match="did you mean 'fashion-mnist'"):
        fetch("fashion_mnist", tmp_path)
    (tmp_path / "bad.whl").write_bytes(b"no zip")
    with pytest.raises(DataError, match="is not a wheel"):
        fetch("iris-sample-data", tmp_path / "out", tmp_path / "bad.whl")
    if shutil.which("dpkg-deb"):
        with pytest.raises(DataError, match="is not a Debian package"):
            fetch("fashion-mnist", tmp_path / "out", tmp_path / "bad.whl")
        other = debian(tmp_path / "x.deb", {"./usr/else": b""})
        with pytest.raises(DataError, match="holds no usr/share/datasets"):
            fetch("fashion-mnist", tmp_path / "out", other)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["data", "fashion-mnist", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "apt-get is not on this machine" in error
        and "--archive" in error
    )
    assert list((tmp_path / "out").iterdir()) == []
    assert main(["data"]) == 0
    assert all(name in capsys.readouterr().out for name in ["iris-sample-data"])


def tar_of(path: Path, *members: tarfile.TarInfo) -> tarfile.TarFile:
    with tarfile.open(path, "w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"abc") if member.isfile() else None)
    return tarfile.open(path)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 3 * (kind == tarfile.REGTYPE)
    return info


def test_links_inside_the_folder_are_kept(tmp_path: Path) -> None:
    inside = [
        member("./d", tarfile.DIRTYPE),
        member("./d/a"),
        member("./d/soft", tarfile.SYMTYPE, "a"),
        member("./hard", tarfile.LNKTYPE, "./d/a"),
    ]
    folder = tmp_path / "out"
    folder.mkdir()
    with tar_of(tmp_path / "x.tar", *inside) as archive:
        for one in archive:
            unpack_member(archive, one, folder, tmp_path / "x.tar")
    assert [(folder / name).read_bytes() for name in ("d/a", "d/soft", "hard")] == [b"abc"] * 3


@pytest.mark.parametrize(
    "one",
    [
        member("a", tarfile.SYMTYPE, "/etc/passwd"),
        member("d/a", tarfile.SYMTYPE, "../../a"),
        member("a", tarfile.LNKTYPE, "../secret"),
        member("a", tarfile.FIFOTYPE),
        member("../a"),
    ],
    ids=["absolute", "upwards", "hard", "fifo", "name"],
)
def test_links_that_leave_the_folder_are_refused(tmp_path: Path, one: tarfile.TarInfo) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    folder = tmp_path / "out"
    folder.mkdir()
    with tar_of(tmp_path / "x.tar", one) as archive, pytest.raises(DataError):
        unpack_member(archive, next(iter(archive)), folder, tmp_path / "x.tar")
    assert [path for path in tmp_path.rglob("*") if path.name == "a"] == []
