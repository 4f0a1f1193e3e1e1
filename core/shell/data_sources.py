"""``longseq data``: real data sets that package archives carry, downloaded and unpacked into a
cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import ZIP_ERRORS, cache_dir, require_file


@dataclass(frozen=True)
class DataSource:
    """A data set in a package of Debian or of the Python package index.

    Args:
        domain: whose data it is.
        kind: where the package is: "debian" or "pypi".
        package: its name; for "pypi" with its version.
        inside: folder in the package that holds the data.
        licence: the data's.
        about: one line.
    """

    domain: str
    kind: Literal["debian", "pypi"]
    package: str
    inside: str
    licence: str
    about: str


SOURCES: dict[str, DataSource] = {
    "bacterial-strains": DataSource(
        "genomics",
        "debian",
        "ragout-examples",
        "usr/share/doc/ragout/examples",
        "BSD 3-clause; GenBank records",
        "strains of E. coli, H. pylori, S. aureus and V. cholerae, and draft contigs, FASTA",
    ),
    "e-coli-536": DataSource(
        "genomics",
        "debian",
        "bowtie-examples",
        "usr/share/doc/bowtie/examples/genomes",
        "Artistic; GenBank records",
        "E. coli 536 (NC_008253), FASTA",
    ),
    "variant-calls": DataSource(
        "genomics",
        "debian",
        "r-bioc-variantannotation",
        "usr/lib/R/site-library/VariantAnnotation/extdata",
        "Artistic 2.0",
        "VCF of the 1000 Genomes Project and others: chr22 (10,376 records), an exome, structural",
    ),
    "fashion-mnist": DataSource(
        "vision",
        "debian",
        "dataset-fashion-mnist",
        "usr/share/datasets/fashion-mnist",
        "MIT",
        "70,000 grey images of clothes in ten classes, IDX files",
    ),
    "singularity-music": DataSource(
        "audio",
        "debian",
        "singularity-music",
        "usr/share/games/singularity/music",
        "CC BY-SA 3.0",
        "music of the game Endgame: Singularity, Ogg Vorbis",
    ),
    "hyperrogue-music": DataSource(
        "audio",
        "debian",
        "hyperrogue-music",
        "usr/share/hyperrogue/music",
        "CC BY-SA 3.0",
        "music of the game HyperRogue, Ogg Vorbis",
    ),
    "iris-sample-data": DataSource(
        "weather",
        "pypi",
        "iris-sample-data==2.5.2",
        "iris_sample_data/sample_data",
        "UK Open Government Licence",
        "climate model output of the UK Met Office, CF NetCDF: scenarios A1B and E1 over North "
        "America",
    ),
}


def fetch(name: str, out: str | Path | None = None, archive: str | Path | None = None) -> Path:
    """Downloads a data set once and returns the folder that holds it.

    Args:
        name: of ``SOURCES``.
        out: folder to unpack into; the cache if None.
        archive: the package's file, if it was downloaded by hand.

    Raises:
        ConfigError: for an unknown name.
        DataError: if it cannot be downloaded or unpacked; what is there already stays as it was.
    """
    if name not in SOURCES:
        raise ConfigError(f"no data set named {name!r}; {did_you_mean(name, SOURCES)}")
    source = SOURCES[name]
    target = Path(out) / name if out is not None else cache_dir("data") / name
    if (target / source.inside).is_dir():
        return target / source.inside
    if target.exists():
        raise DataError("is in the way", path=target, hint="remove it, or give another --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as scratch:
        folder = Path(scratch)
        file = (
            require_file(archive, "package") if archive is not None else _download(source, folder)
        )
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        (_unpack_debian if source.kind == "debian" else _unpack_wheel)(file, unpacked)
        if not (unpacked / source.inside).is_dir():
            hint = f"give the package {source.package}"
            raise DataError(f"holds no {source.inside}", path=file, hint=hint)
        unpacked.rename(target)
    return target / source.inside


def _download(source: DataSource, folder: Path) -> Path:
    """Downloads the package into a folder and returns its file."""
    if source.kind == "debian":
        command = ["apt-get", "download", "-q", source.package]
        pattern = "*.deb"
    else:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            ".",
            source.package,
        ]
        pattern = "*.whl"
    by_hand = f"download the package {source.package} by hand and give it with --archive FILE"
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is not on this machine", path=source.package, hint=by_hand)
    print(f"downloading {source.package} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = sorted(folder.glob(pattern))
    if done.returncode != 0 or not found:
        said = next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given"
        )
        raise DataError(f"cannot be downloaded: {said.strip()}", path=source.package, hint=by_hand)
    return found[0]


def _unpack_debian(file: Path, folder: Path) -> None:
    """Unpacks a Debian package's files, none of them outside the folder."""
    if shutil.which("dpkg-deb") is None:
        raise DataError(
            "dpkg-deb is not on this machine, to unpack", path=file, hint="install dpkg"
        )
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    unpack_member(archive, member, folder, file)
        except (tarfile.TarError, EOFError, FileNotFoundError, FileExistsError) as error:
            raise DataError(
                f"is not a Debian package, or is damaged: {error}", path=file
            ) from error
        process.stdout.read()
        if process.wait() != 0:
            raise DataError("is not a Debian package, or is damaged", path=file)


def unpack_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, file: Path
) -> None:
    """Unpacks one file, folder or link; tarfile's own filters are not in every Python 3.11.

    Args:
        archive: that is read.
        member: of it.
        folder: to unpack into.
        file: the archive's, for errors.

    Raises:
        DataError: for what is no file, folder or link, or leads outside the folder.
    """
    to = _inside(folder, member.name, file)
    if member.isdir():
        to.mkdir(parents=True, exist_ok=True)
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        _inside(folder, str(Path(member.name).parent / member.linkname), file)
        to.symlink_to(member.linkname)
    elif member.islnk():
        shutil.copyfile(_inside(folder, member.linkname, file), to)
    elif (content := archive.extractfile(member)) is not None:
        with to.open("wb") as out:
            shutil.copyfileobj(content, out)
    else:
        raise DataError(f"holds a device or the like: {member.name!r}", path=file)


def _inside(folder: Path, name: str, file: Path) -> Path:
    """Returns where a name in an archive lies in the folder.

    Raises:
        DataError: if it lies outside.
    """
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise DataError(f"names a file outside its folder: {name}", path=file)
    return folder / name


def _unpack_wheel(file: Path, folder: Path) -> None:
    """Unpacks a wheel's files, none of them outside the folder."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                _inside(folder, member, file)
            archive.extractall(folder)
    except DataError:
        raise
    except ZIP_ERRORS as error:
        raise DataError(f"is not a wheel, or is damaged: {error}", path=file) from error


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq data [name]``."""
    parser = CommandParser(
        prog="longseq data",
        description="Lists real data sets, or downloads one and prints its folder.",
        example=f"longseq data {next(iter(SOURCES))}",
    )
    parser.add_argument("name", nargs="?", help=f"of {', '.join(SOURCES)}; none for the list")
    parser.add_argument("--out", help="folder to unpack into (the cache, LONGSEQ_CACHE_DIR)")
    parser.add_argument("--archive", help="the package's file, if it was downloaded by hand")
    args = parser.parse_args(list(argv))
    if args.name is None:
        for name, source in SOURCES.items():
            where = f"{'Debian' if source.kind == 'debian' else 'PyPI'} {source.package}"
            print(f"{name:<18} {source.domain:<9} {source.about} ({where}, {source.licence})")
        return 0
    folder = fetch(args.name, args.out, args.archive)
    source = SOURCES[args.name]
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    # The folder alone on standard output: $(longseq data NAME) is a path.
    print(f"{len(files)} files, {size:.1f} MB; licence: {source.licence}", file=sys.stderr)
    print(folder)
    return 0
