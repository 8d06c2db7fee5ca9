"""The file that keeps spending over restarts. It is written as a new file, which then replaces the old one."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from manallm_proxy.config.model import Config
from manallm_proxy.config.yaml_file import open_regular
from manallm_proxy.routing.ledger import Row

NAME: Final = "spend.json"
SIZE_LIMIT: Final = 2**24
"""Max bytes. A larger file is not ours: there are at most 31 rows of some 60 bytes for each key and alias."""


class SpendFile(msgspec.Struct):
    """``spent``: account, day since the epoch, USD, tokens."""

    version: int
    spent: list[Row]


def file_path(config: Config, environ: Mapping[str, str]) -> Path | None:
    """``spend_file`` of the configuration, else a file in systemd's StateDirectory; None if there is neither."""
    if config.spend_file is not None:
        return config.spend_file
    folder = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(folder) / NAME if folder else None


def read(path: Path) -> tuple[list[Row], str | None]:
    """The rows, and what is wrong with the file, if anything. A missing one is fine; one that is corrupt or cannot be
    read is renamed, since the next `write` would replace it."""
    try:
        with open_regular(path) as file:
            data = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        return [], None if path.parent.is_dir() else f"its folder {path.parent} is not there"
    except OSError as error:
        return [], f"it cannot be read ({error.strerror or 'input/output error'}){_set_aside(path)}"
    try:
        found = msgspec.json.decode(data, type=SpendFile) if len(data) <= SIZE_LIMIT else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    rows = found.spent if found is not None and found.version == 1 else None
    if rows is not None and all(0 <= day < 10**6 and 0 <= usd < 1e15 and tokens >= 0 for _, day, usd, tokens in rows):
        return rows, None
    return [], f"it was not written by this proxy{_set_aside(path)}"


def _set_aside(path: Path) -> str:
    """Renames a file that is of no use to us, but may be to others. Returns what to add to the message."""
    aside = path.with_name(f"{path.name}.unreadable")
    try:
        if not path.is_file():  # a device, a folder: never touched
            return ""
        os.replace(path, aside)
    except OSError:
        return ", and counting begins at 0"
    return f"; it is {aside.name} now, and counting begins at 0"


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes `rows`. Raises OSError. The old file is replaced only once the new one is complete on the disk; what is no
    file, such as /dev/null, is never replaced."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    data = msgspec.json.format(msgspec.json.encode(SpendFile(1, list(rows))), indent=1)
    beside = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
