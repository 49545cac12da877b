"""Writes the device program as one file, and a bundle as one archive: equal contents, equal bytes.

It may import this folder.
"""

import gzip
import tarfile
import zipfile
from pathlib import Path

from edgetune.device import program

PROGRAM = "edgetune.pyz"
# Dates in archives: equal contents give equal archives.
EPOCH = (1980, 1, 1, 0, 0, 0)
# It parses on any Python, so that one that is too old is told so.
START = """\
import sys

if sys.version_info < (3, 8):
    sys.stderr.write("error: this needs Python 3.8 or later, and here is %d.%d\\n" % sys.version_info[:2])
    sys.stderr.write("  on JetPack 4: sudo apt install python3.8, then python3.8 edgetune.pyz; or see README.txt\\n")
    sys.exit(4)

from {package}.main import main

sys.exit(main())
"""


def write_program(path: Path) -> None:
    """Write the device program as one file that Python runs: a zip archive of its modules."""
    folder = Path(str(program.__file__)).parent
    sources = {f"{folder.name}/{file.name}": file.read_bytes() for file in sorted(folder.glob("*.py"))}
    start = START.format(package=folder.name)
    with path.open("wb") as handle:
        handle.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {"__main__.py": start.encode(), **sources}.items():
                archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)
    path.chmod(0o755)


def pack(folder: Path, names: list[str], archive: Path) -> None:
    """Write files of a folder into an archive that unpacks into one folder; the same files, the same bytes."""
    scratch = archive.with_name(f".{archive.name}.partial")
    try:
        with (
            scratch.open("wb") as raw,
            gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as squeezed,
            tarfile.open(fileobj=squeezed, mode="w") as packed,
        ):
            for file in (folder / name for name in sorted(names)):
                info = packed.gettarinfo(file, f"{folder.name}/{file.name}")
                info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
                with file.open("rb") as content:
                    packed.addfile(info, content)
        scratch.replace(archive)
    finally:
        scratch.unlink(missing_ok=True)
