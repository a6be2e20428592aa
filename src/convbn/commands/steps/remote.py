"""URLs on the command line: what is read is fetched first, what is written is put there once all went well."""

from __future__ import annotations

import argparse
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from convbn.errors import ConvBNError, FileAccessError
from convbn.export.loading import remote

__all__ = ["local_files"]

_READ = ("input", "reference", "candidate", "result", "before", "after", "baseline", "inputs", "calibration")
_WRITTEN = ("output", "json", "markdown", "html", "junit", "github_benchmark", "bencher")


@contextmanager
def local_files(options: argparse.Namespace) -> Iterator[None]:
    """Put local files in the place of URLs while the block runs, and write those that it wrote to their URLs.

    Raises:
        FileAccessError: a URL cannot be read or written, or something is there that is not to be replaced.
    """
    given = {name: str(value) for name, value in vars(options).items() if remote.is_url(value)}
    fetched = {name: given[name] for name in _READ if name in given}
    wanted = {name: given[name] for name in _WRITTEN if name in given}
    others = [url for url in getattr(options, "others", ()) if remote.is_url(url)]
    if not (fetched or wanted or others):
        yield
        return
    for url in wanted.values():
        if not getattr(options, "force", False) and remote.exists(url):
            raise FileAccessError("already exists; use --force to replace it", source=remote.shown(url))
    names: dict[str, str] = {}
    options.shown_as = names

    def local(url: str) -> str:
        path = str(remote.fetch(url))
        names[path] = remote.shown(url)
        return path

    with ExitStack() as folders:
        for name, url in fetched.items():
            setattr(options, name, local(url))
        if others:
            options.others = [local(url) if url in others else url for url in options.others]
        places = {}
        for name, url in wanted.items():
            folder = folders.enter_context(tempfile.TemporaryDirectory(prefix="convbn-"))
            path = Path(folder, posixpath.basename(url))
            places[path] = url
            names[str(path)] = remote.shown(url)
            setattr(options, name, str(path))
        try:
            yield
        except ConvBNError as error:
            error.source = names.get(str(error.source), error.source)
            raise
        for path, url in places.items():
            # What goes with a file lies beside it: weights, a sidecar. The file itself comes last.
            made = [beside for beside in sorted(path.parent.iterdir()) if beside != path]
            for file in (*made, *([path] if path.exists() else [])):
                remote.put(file, f"{posixpath.dirname(url)}/{file.name}")
