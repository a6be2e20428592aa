"""Caches that several processes share: fault 24."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from convbn.errors import FileAccessError
from convbn.export.engines.backends import caches
from convbn.export.engines.backends.caches import CacheFile, cache_file
from convbn.export.engines.backends.gpus import Gpu
from convbn.export.engines.build.builder import keep_timings, use_timings

ADA = Gpu("NVIDIA GeForce RTX 4090", (8, 9), "570.1")

# Stands for TensorRT's merge: a cache is a set of lines, a merge the union.
WRITER = """
import sys
from pathlib import Path
from convbn.export.engines.backends.caches import CacheFile
cache, name = CacheFile(Path(sys.argv[1])), sys.argv[2]
for i in range(int(sys.argv[3])):
    def merge(old):
        lines = set((old or b"").splitlines()) | {f"{name}-{i}".encode()}
        return b"\\n".join(sorted(lines)) + b"\\n"
    cache.update(merge)
    print(flush=True)
"""


def start(path, name, count):
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_eight_processes_lose_nothing(tmp_path, names):
    path = tmp_path / "new" / "t.cache"
    processes = [start(path, f"p{number}", 20) for number in range(8)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    wanted = {f"p{number}-{i}".encode() for number in range(8) for i in range(20)}
    assert set(path.read_bytes().splitlines()) == wanted
    assert names(path.parent) == ["t.cache", "t.cache.lock"]


def test_a_killed_writer_leaves_a_whole_cache_and_no_lock(tmp_path):
    path = tmp_path / "t.cache"
    CacheFile(path).update(lambda old: b"first\n")
    for _ in range(3):
        with start(path, "killed", 100_000) as process:
            assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        data = CacheFile(path).read()
        assert data is not None
        assert data.endswith(b"\n")
        assert b"first" in data
    CacheFile(path).update(lambda old: (old or b"") + b"last\n")
    assert b"last" in path.read_bytes()


def test_who_waits_too_long_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "_PATIENCE", 0.1)
    cache = CacheFile(tmp_path / "t.cache")

    def meanwhile(old):
        with pytest.raises(FileAccessError, match="is held by another process; try again") as error:
            cache.update(lambda old: b"other")
        assert "\n" not in str(error.value)
        return b"own"

    cache.update(meanwhile)
    assert cache.read() == b"own"


def test_a_merge_that_fails_changes_nothing(tmp_path):
    cache = CacheFile(tmp_path / "t.cache")
    cache.update(lambda old: b"one")
    with pytest.raises(ZeroDivisionError):
        cache.update(lambda old: 1 // 0)
    assert cache.read() == b"one"
    cache.update(lambda old: old + b"two")
    assert cache.read() == b"onetwo"


def test_missing_and_empty_caches_are_none(tmp_path):
    assert CacheFile(tmp_path / "no" / "t.cache").read() is None
    (tmp_path / "t.cache").touch()
    assert CacheFile(tmp_path / "t.cache").read() is None
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileAccessError, match="cannot be read: is a directory"):
        CacheFile(tmp_path / "folder").read()
    with pytest.raises(FileAccessError, match="cannot be made"):
        CacheFile(tmp_path / "t.cache" / "under" / "a").update(lambda old: b"x")


def test_another_version_gpu_or_driver_is_another_file(tmp_path):
    paths = {
        cache_file(tmp_path, "timing", version, gpu).path
        for version in ("10.16.1", "11.4.0")
        for gpu in (
            ADA,
            Gpu(ADA.name, (8, 9), "571.0"),
            Gpu(ADA.name, (8, 6), "570.1"),
            Gpu("Other", (8, 9), "570.1"),
        )
    }
    assert len(paths) == 8
    path = cache_file(tmp_path, "timing", "10.16.1", ADA).path
    assert path == tmp_path / "timing-10.16.1-sm89-NVIDIA_GeForce_RTX_4090-driver570.1.cache"
    evil = Gpu("../../x", (8, 9), "/etc")
    assert cache_file(tmp_path, "timing", "1", evil).path.parent == tmp_path


def test_the_users_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file("auto", "timing", "1", ADA).path.parent == tmp_path / "convbn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_file("auto", "timing", "1", ADA).path.parent == tmp_path / ".cache" / "convbn"


class Timings:
    """Behaves as ITimingCache does; the calls themselves are held against TensorRT in tests/contract."""

    def __init__(self, data: bytes):
        self.keys = set(data.split())

    def combine(self, other, ignore_mismatch):
        assert ignore_mismatch is False
        self.keys |= other.keys
        return True

    def serialize(self):
        return b" ".join(sorted(self.keys))


class Config:
    def __init__(self):
        self.used = None

    def create_timing_cache(self, data):
        return None if data.startswith(b"garbage") else Timings(data)

    def set_timing_cache(self, timings, ignore_mismatch):
        assert ignore_mismatch is False
        if b"stale" in timings.keys:
            return False
        self.used = timings
        return True

    def get_timing_cache(self):
        return self.used


def test_timings_are_used_and_merged(tmp_path):
    cache = CacheFile(tmp_path / "t.cache")
    cache.update(lambda old: b"a b")
    config = Config()
    assert use_timings(config, cache) == []
    config.used.keys.add(b"c")
    cache.update(lambda old: old + b" meanwhile")
    assert keep_timings(config, cache) == []
    assert cache.read() == b"a b c meanwhile"


@pytest.mark.parametrize("content", [b"stale a", b"garbage"])
def test_timings_that_do_not_fit_are_not_used(tmp_path, content):
    cache = CacheFile(tmp_path / "t.cache")
    cache.update(lambda old: content)
    config = Config()
    (warning,) = use_timings(config, cache)
    assert "does not fit and was not used" in warning
    assert config.used.keys == set()
    config.used.keys.add(b"own")
    assert keep_timings(config, cache) == []
    if content == b"garbage":
        assert cache.read() == b"own"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache_is_a_warning(tmp_path):
    tmp_path.chmod(0o500)
    config = Config()
    assert use_timings(config, CacheFile(tmp_path / "t.cache")) == []
    (warning,) = keep_timings(config, CacheFile(tmp_path / "t.cache"))
    assert warning.startswith("The timing cache was not written: ")


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    config = Config()
    use_timings(config, CacheFile(tmp_path / "t.cache"))
    (warning,) = keep_timings(config, CacheFile(tmp_path / "file" / "t.cache"))
    assert warning.startswith("The timing cache was not written: ")
    (tmp_path / "t.cache").mkdir()
    (warning,) = use_timings(config, CacheFile(tmp_path / "t.cache"))
    assert warning.startswith("The timing cache was not used: ")
