from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys

import pytest

from convbn.errors import FileAccessError
from convbn.export.files.atomic import sha256_file, write_atomically


def put(data: bytes):
    return lambda file: file.write(data)


def line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(FileAccessError, match="no such file"):
        sha256_file(tmp_path / "b")
    with pytest.raises(FileAccessError, match="is a directory"):
        sha256_file(tmp_path)


def test_new_file_gets_ordinary_permissions(tmp_path, names):
    write_atomically(tmp_path / "a", put(b"1"), overwrite=False)
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert names(tmp_path) == ["a", "plain"]


def test_existing_file_is_replaced_only_when_asked(tmp_path, names):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with pytest.raises(FileAccessError, match=r"a: already exists; use --force to replace it") as error:
        write_atomically(path, put(b"new"), overwrite=False)
    line(error)
    assert path.read_bytes() == b"old"
    write_atomically(path, put(b"new"), overwrite=True)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["a"]


def test_file_that_appears_meanwhile_is_kept(tmp_path, names):
    path = tmp_path / "a"

    def write(file):
        file.write(b"mine")
        path.write_bytes(b"theirs")

    with pytest.raises(FileAccessError, match="already exists"):
        write_atomically(path, write, overwrite=False)
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a"]


def test_symbolic_link_is_followed(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(folder / "target")
    write_atomically(tmp_path / "link", put(b"new"), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (folder / "target").read_bytes() == b"new"
    (tmp_path / "dangling").symlink_to(folder / "later")
    write_atomically(tmp_path / "dangling", put(b"new"), overwrite=False)
    assert (folder / "later").read_bytes() == b"new"


@pytest.mark.parametrize("failure", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_a_failing_writer_leaves_the_old_file(tmp_path, names, failure):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise failure

    with pytest.raises((FileAccessError, type(failure))) as error:
        write_atomically(path, write, overwrite=True)
    assert isinstance(error.value, FileAccessError) == isinstance(failure, OSError)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_impossible_targets(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    targets = {
        "is a folder": tmp_path,
        "does not exist": tmp_path / "no" / "a",
        "not a regular file": tmp_path / "pipe",
        "file name too long": tmp_path / ("n" * 300),
    }
    for told, target in targets.items():
        with pytest.raises(FileAccessError, match=told) as error:
            write_atomically(target, put(b""), overwrite=True)
        line(error)
    with pytest.raises(FileAccessError):
        write_atomically(tmp_path / "loop", put(b""), overwrite=True)
    with pytest.raises(FileAccessError):
        write_atomically("/dev/null", put(b""), overwrite=True)
    write_atomically(tmp_path / ("n" * 250), put(b""), overwrite=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileAccessError, match="not writable"):
            write_atomically(tmp_path / "a", put(b""), overwrite=False)
    finally:
        tmp_path.chmod(0o700)


def test_full_disk(tmp_path, names):
    # A file-size limit stands in for a full disk: the write fails in the middle.
    (tmp_path / "a").write_bytes(b"old")
    code = (
        "import resource, signal, sys\n"
        "from convbn.errors import FileAccessError\n"
        "from convbn.export.files.atomic import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        "    write_atomically(sys.argv[1], lambda f: f.write(b'x' * (4 << 20)), overwrite=True)\n"
        "except FileAccessError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path / 'a'}: cannot be written: file too large\n"
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_kill_leaves_old_or_new(tmp_path):
    path, size = tmp_path / "a", 1 << 20
    path.write_bytes(b"0" * size)
    code = (
        "import itertools, sys\n"
        "from convbn.export.files.atomic import write_atomically\n"
        "for i in itertools.count(1):\n"
        "    write_atomically(sys.argv[1], lambda f: f.write(b'%d' % (i % 10) * (1 << 20)), overwrite=True)\n"
        "    print(flush=True)\n"
    )
    seen = set()
    for turn in range(12):
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
            for _ in range(turn + 1):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert len(data) == size
        assert len(set(data)) == 1
        seen.add(data[0])
    assert len(seen) > 1  # the loop really wrote
