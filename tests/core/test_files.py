"""Outputs are whole or absent, whatever the path is and however the disk fails."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longseq.core import files
from longseq.core.errors import DataError
from longseq.core.files import atomic_path, check_writable, open_unzipped


def write(path: str | Path, text: str = "new") -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write(target, "old")
    with pytest.raises(ValueError, match="in the middle"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ValueError("in the middle")
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    real = tmp_path / "deep" / "real.txt"
    write(real, "old")
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    write(link)
    assert link.is_symlink() and real.read_text() == "new"


def test_a_pipe_is_written_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(pipe)
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_never_replaced() -> None:
    check_writable(os.devnull)
    write(os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_home_and_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write("~/a.txt")
    assert names(tmp_path) == ["a.txt"]
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~files._UMASK


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space is left on the disk"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_a_disk_that_fails_is_named(
    code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.txt"
    write(target, "old")

    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    for where in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, where, fail)
            with pytest.raises(DataError, match=f"a.txt: cannot be written: {words}"):
                write(target)
        assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_writers_that_hide_why_they_ended(tmp_path: Path) -> None:
    """torch's archive writer and safetensors name no error of the system."""
    resource = pytest.importorskip("resource")
    target = tmp_path / "last.ckpt"
    target.write_text("old")
    content = {"w": torch.arange(1 << 18)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python itself ignores the signal
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        for save in (torch.save, save_file):
            words = r"last\.ckpt: cannot be written: the file is larger"
            with pytest.raises(DataError, match=words), atomic_path(target) as temporary:
                save(content, temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_text() == "old" and names(tmp_path) == ["last.ckpt"]
    with pytest.raises(RuntimeError, match=r"^of the content$"), atomic_path(target):
        raise RuntimeError("of the content")
    assert target.read_text() == "old" and names(tmp_path) == ["last.ckpt"]


def test_a_full_disk_is_told_wherever_it_is_met() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "logs/events")
    words = "logs/events: cannot be written: no space is left on the disk"
    assert str(files.full_disk(full)) == words
    unnamed = files.full_disk(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert str(unnamed) == "a file of this command: cannot be written: the quota is used up"
    assert files.full_disk(OSError(errno.ENOENT, "none")) is None
    assert files.full_disk(ValueError("28")) is None


def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="a part of its path is a file"):
        check_writable(tmp_path / "file" / "a.csv")
    with pytest.raises(DataError, match="the name is too long"):
        check_writable(tmp_path / ("n" * 300))
    with pytest.raises(DataError, match="the name is too long"):
        write(tmp_path / ("n" * 300))
    with pytest.raises(DataError, match="is a folder"):
        check_writable(tmp_path)
    if Path("/proc").is_dir():  # which has no size
        with pytest.raises(DataError, match="the file system is read-only"):
            check_writable("/proc/a.csv")
    check_writable(tmp_path / "new" / "deeper" / "a.csv")
    assert names(tmp_path) == ["file"]
    write(tmp_path / ("n" * 251 + ".csv"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_named() -> None:
    with pytest.raises(DataError, match="/dev/full: cannot be written: no space is left"):
        write("/dev/full", "x" * 100_000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_told_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(DataError, match="permission denied"):
        check_writable(tmp_path / "a.csv")


def test_blocks_missing_at_the_end_of_a_bgzip_file_are_told(tmp_path: Path) -> None:
    def block(data: bytes) -> bytes:  # SAM specification, section 4.1
        packer = zlib.compressobj(wbits=-15)
        body = packer.compress(data) + packer.flush()
        head = bytes.fromhex("1f8b08040000000000ff060042430200")
        size = struct.pack("<H", len(head) + len(body) + 9)
        return head + size + body + struct.pack("<II", zlib.crc32(data), len(data))

    path = tmp_path / "x.vcf.gz"
    first = len(block(b"first\n"))
    path.write_bytes(block(b"first\n") + block(b"second\n") + block(b""))
    with open_unzipped(path) as file:
        assert file.read() == b"first\nsecond\n"
    whole = path.read_bytes()
    for size in (first, len(whole) - 28, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="truncated bgzip"), open_unzipped(path) as file:
            file.read()
    path.write_bytes(gzip.compress(b"plain gzip has no such end"))
    with open_unzipped(path) as file:
        assert file.read().startswith(b"plain")
    for size in (2, 3, 10, 13):  # a copy that broke off at once
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"x\.vcf\.gz"), open_unzipped(path) as file:
            file.read()


def test_a_misspelt_sample_is_suggested(tmp_path: Path) -> None:
    samples = ["electricity_demand", "tiny"]
    with pytest.raises(DataError, match=r"no such table .did you mean the packaged 'electricity_d"):
        files.require_file("electricty_demand", "table", samples)
    with pytest.raises(DataError, match=r"no such table$"):
        files.require_file(tmp_path / "a.csv", "table", samples)


@pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")
def test_a_folder_is_held_until_its_holder_ends(tmp_path: Path) -> None:
    code = "import sys; from longseq.core.files import hold_folder\n"
    code += "hold_folder(sys.argv[1], 'a test', 'wait'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(DataError, match=r"another test is writing here .*wait for it"):
            files.hold_folder(tmp_path, "another test", "wait for it")
        other.kill()
    handle = files.hold_folder(tmp_path, "another test", "wait for it")
    assert handle is not None
    with pytest.raises(DataError, match="is writing here"):
        files.hold_folder(tmp_path, "another test", "wait for it")
    os.close(handle)
