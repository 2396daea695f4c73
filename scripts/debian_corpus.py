"""Build a corpus of English prose from the documentation packages of Debian.

python scripts/debian_corpus.py --out corpus/

Needs apt-get and dpkg-deb (Debian or a system made from it), the package lists (apt-get update),
and the Python standard library. The packages are named in debian_packages.txt, beside this file.
"""

import argparse
import errno
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from corpus_markup import read_page
from corpus_prose import fingerprint, is_prose

PACKAGES = Path(__file__).with_name("debian_packages.txt")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "debian_corpus"
_SHARD_BYTES = 16 << 20
_MIN_DOCUMENT = 400  # characters; less is an index or a stub
_MAX_FILE = 32 << 20  # bytes; larger text files are data


@dataclass
class Document:
    """The paragraphs of prose in one file of a package."""

    path: str
    title: str
    paragraphs: list[str]


@dataclass
class Package:
    """A package and what it gave; the manifest's record."""

    name: str
    version: str
    sha256: str
    copyright: str
    bytes_read: int = 0
    duplicates: int = 0
    documents: int = 0
    paragraphs: int = 0
    bytes_kept: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the .jsonl files")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the packages")
    options = parser.parse_args()
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            fail(f"{tool} is missing; run this on Debian or a system made from it")
    try:
        options.cache.mkdir(parents=True, exist_ok=True)
        names = PACKAGES.read_text().split()
        debs = [deb for name in names if (deb := download(name, options.cache))]
        if not debs:
            fail("no package could be had; run apt-get update, and check the network")
        packages = build(debs, options.out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            fail("the disk is full; free some space, or name other folders (--out, --cache)")
        fail(f"{error.filename}: {error.strerror}")
    print(table(packages))


def fail(message: str) -> NoReturn:
    sys.exit(f"debian_corpus: {message}")


def warn(message: str) -> None:
    progress("")
    print(f"debian_corpus: {message}", file=sys.stderr)


def progress(message: str) -> None:
    """Replace the last line of a terminal; elsewhere say nothing."""
    if sys.stderr.isatty():
        print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)


def download(name: str, cache: Path) -> Path | None:
    """The package in the cache, downloaded if it is not there; None, and a warning, if neither."""
    if found := sorted(cache.glob(f"{name}_*.deb")):
        return found[-1]
    progress(f"downloading {name}")
    # By way of a folder of its own: an interrupted download never looks like a package.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = ["apt-get", "download", "--quiet", name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        debs = list(Path(folder).glob("*.deb"))
        if done.returncode == 0 and debs:
            return debs[0].rename(cache / debs[0].name)
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    reason = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [""]
    warn(f"{name}: left out: {reason[-1].removeprefix('E: ')}")
    return None


def build(debs: list[Path], out: Path) -> list[Package]:
    """Write the documents of the packages and the manifest; packages as records."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("debian-*.jsonl"):
        old.unlink()
    shards, seen = Shards(out), set[bytes]()
    packages: list[Package] = []
    with ProcessPoolExecutor() as pool:
        for deb, read in zip(debs, pool.map(read_package, debs), strict=True):
            if read is None:
                warn(f"{deb.name}: left out: damaged; delete {deb} and run again")
                continue
            package, documents = read
            for document in without_duplicates(documents, seen, package):
                shards.write(package.name, document)
            packages.append(package)
            progress(f"{len(packages)} of {len(debs)} packages read")
    progress("")
    shards.close()
    manifest = {"packages": [asdict(package) for package in packages], "files": shards.checksums}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return packages


def read_package(deb: Path) -> tuple[Package, list[Document]] | None:
    """The prose of a package's documentation; None if the file is damaged."""
    version = subprocess.run(
        ["dpkg-deb", "--field", deb, "Version"], capture_output=True, text=True
    ).stdout.strip()
    name = deb.name.partition("_")[0]
    copyright = f"/usr/share/doc/{name}/copyright"
    package = Package(name, version, checksum(deb), copyright)
    documents = []
    try:
        for path, content in files(deb):
            page = read_page(path, content)
            if page is not None:
                package.bytes_read += len(content)
                prose = [p for p in page.paragraphs if is_prose(p)]
                if prose:
                    documents.append(Document(path, page.title, prose))
    except tarfile.TarError:
        return None
    # HTML first: of several formats of one text it leaves the fewest traces of markup.
    return package, sorted(documents, key=lambda document: ".htm" not in document.path)


def files(deb: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content, decompressed, of a package's files; nothing is written to the disk."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is None or member.size > _MAX_FILE:
                continue
            path, content = member.name.removeprefix("."), file.read()
            if path.endswith((".gz", ".dz")):
                try:
                    content = gzip.decompress(content)
                except (OSError, EOFError, zlib.error):
                    continue  # one damaged file among thousands
            yield path, content


def without_duplicates(
    documents: Iterable[Document], seen: set[bytes], package: Package
) -> Iterator[Document]:
    """The documents less the paragraphs seen before.

    Short ones are left out, and those that repeat more than they add: the same text in another
    format, or on one page.
    """
    for document in documents:
        fresh = {fingerprint(paragraph): paragraph for paragraph in document.paragraphs}
        fresh = {key: paragraph for key, paragraph in fresh.items() if key not in seen}
        repeated = len(document.paragraphs) - len(fresh)
        package.duplicates += repeated
        paragraphs = list(fresh.values())
        if repeated <= len(fresh) and sum(map(len, paragraphs)) >= _MIN_DOCUMENT:
            seen.update(fresh)
            yield Document(document.path, document.title, paragraphs)
            package.documents += 1
            package.paragraphs += len(paragraphs)
            package.bytes_kept += len("\n\n".join(paragraphs).encode())


class Shards:
    """Files of about 16 MB, one document on a line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checksums: dict[str, str] = {}
        self.lines: list[bytes] = []
        self.size = 0

    def write(self, source: str, document: Document) -> None:
        text = "\n\n".join(document.paragraphs)
        record = {"source": source, "path": document.path, "title": document.title, "text": text}
        self.lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self.size += len(self.lines[-1])
        if self.size >= _SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """Write the lines gathered so far, if any, as the next file."""
        if not self.lines:
            return
        path = self.folder / f"debian-{len(self.checksums):02}.jsonl"
        path.write_bytes(b"".join(self.lines))
        self.checksums[path.name] = checksum(path)
        self.lines.clear()
        self.size = 0


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def table(packages: list[Package]) -> str:
    """The packages with counts, most text first, and their sum."""
    columns = ("documents", "paragraphs", "duplicates", "bytes_kept", "bytes_read")
    rows = [
        (p.name, p.version, *(getattr(p, column) for column in columns))
        for p in sorted(packages, key=lambda p: -p.bytes_kept)
    ]
    sums = [sum(getattr(p, column) for p in packages) for column in columns]
    rows.append((f"{len(packages)} packages", "", *sums))
    head = f"{'package':26} {'version':26} {'documents':>9} {'paragraphs':>10} {'dropped':>8} "
    head += f"{'MB kept':>8} {'MB read':>8}"
    return "\n".join(
        [head]
        + [
            f"{name[:26]:26} {version[:26]:26} {n:9,} {paragraphs:10,} {dropped:8,} "
            f"{kept / 1e6:8.2f} {read / 1e6:8.1f}"
            for name, version, n, paragraphs, dropped, kept, read in rows
        ]
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
