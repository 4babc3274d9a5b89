"""Weights are fetched from where people keep them, survive bad lines, are checked, and are kept for the whole node."""

import contextlib
import fcntl
import http.server
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import oras.provider
import pytest
import torch
from safetensors.torch import save_file

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource, WeightsError, caching
from splitplane.model.weights import WeightsFile
from tests.support import file_servers
from tests.support.file_servers import PASSWORD, USER, digest_of, line, oci_registry, put_object, s3_server, web_server
from tests.support.registry import registry_program

NAMES = ("a.weight", "b.weight")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of 6 MB, in a folder of its own."""
    path = tmp_path_factory.mktemp("origin") / "model v1.safetensors"
    save_file({name: torch.randn(750_000) for name in NAMES}, path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nothing of the user's own is looked at, and pauses are short."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPLITPLANE_WEIGHTS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(caching, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(caching, "ATTEMPTS", 2)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def web(origin: Path) -> Iterator[int]:
    with web_server(origin.parent) as port:
        yield port


@pytest.fixture(scope="module")
def registry() -> Path:
    return registry_program()


def credentials(monkeypatch: pytest.MonkeyPatch, folder: Path, **keys: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, value in keys.items():
        (folder / name.replace("__", ".")).write_text(value)
    monkeypatch.setenv("SPLITPLANE_WEIGHTS_CREDENTIALS", str(folder))


def opened(uri: str, origin: Path, sha256: str | None = "") -> WeightsFile:
    digest = digest_of(origin.read_bytes()) if sha256 == "" else sha256
    return WeightsFile.open(ModelSource("m", "m:build", uri, digest, (TensorSpec("x", "FP32", (1,)),)))


def check(file: WeightsFile, origin: Path) -> None:
    assert file.path.read_bytes() == origin.read_bytes()
    assert {name: tensor.shape for name, tensor in file.read(NAMES, {}).items()} == dict.fromkeys(NAMES, (750_000,))


def test_a_web_server_is_asked_once_for_all_that_want_the_file(origin: Path, web: int, cache: Path) -> None:
    with line(web) as relay:
        uri = f"http://127.0.0.1:{relay.port}/model%20v1.safetensors"
        code = (
            "from tests.unit.test_model_weights_elsewhere import *\n"
            f"check(opened({uri!r}, Path({str(origin)!r})), Path({str(origin)!r}))"
        )
        processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
        assert [process.wait(180) for process in processes] == [0, 0]
        check(opened(uri, origin), origin)
    assert sum(head.startswith("get ") for head in relay.requests) == 1
    assert [path.name for path in cache.iterdir() if path.name[0] != "."] == [digest_of(origin.read_bytes())]


def test_a_broken_download_goes_on_in_the_next_process(
    origin: Path, web: int, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with line(web) as relay:
        uri = f"http://127.0.0.1:{relay.port}/model%20v1.safetensors"
        relay.breaks = [2_500_000, *[0] * 100]
        with pytest.raises(WeightsError, match=r"cannot be fetched: .*: check weights\.uri"):
            opened(uri, origin)
        (part,) = cache.glob("*.part")
        had = part.stat().st_size
        assert 1_000_000 < had < origin.stat().st_size
        relay.breaks.clear()
        relay.requests.clear()
        check(opened(uri, origin), origin)
    assert f"range: bytes={had}-" in relay.requests[0]
    assert "6 of 6 MB" in caplog.text


def test_a_server_that_cannot_resume_is_read_from_the_start(origin: Path, cache: Path) -> None:
    class Plain(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(origin.parent))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    digest = digest_of(origin.read_bytes())
    cache.mkdir()
    (cache / f"{digest}.part").write_bytes(origin.read_bytes()[:1_000_000])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check(opened(f"http://127.0.0.1:{server.server_port}/model%20v1.safetensors", origin), origin)
        server.shutdown()


def test_a_server_in_trouble_costs_nothing_of_what_is_here_already(origin: Path, cache: Path) -> None:
    content, ranges = origin.read_bytes(), list[str | None]()

    class Troubled(http.server.BaseHTTPRequestHandler):
        """Answers the first few requests for a range with 503, as it would any other at that time."""

        def do_GET(self) -> None:
            ranges.append(self.headers["Range"])
            if len(ranges) <= 3:
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(content) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[first:])

        def log_message(self, *_: object) -> None:
            pass

    cache.mkdir()
    (cache / f"{digest_of(content)}.part").write_bytes(content[:1_234_567])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Troubled) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check(opened(f"http://127.0.0.1:{server.server_port}/model.safetensors", origin), origin)
        server.shutdown()
    assert set(ranges) == {"bytes=1234567-"}


def test_a_line_that_breaks_early_each_time_gets_on(origin: Path, web: int, cache: Path) -> None:
    with line(web) as relay:
        relay.breaks = [400_000] * 4
        check(opened(f"http://127.0.0.1:{relay.port}/model%20v1.safetensors", origin), origin)
    assert len(relay.requests) == 5


@contextlib.contextmanager
def serving(respond: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """An address that is answered so, after which the connection ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/model.safetensors"
        server.shutdown()


def test_a_file_that_is_replaced_while_it_is_fetched_is_fetched_anew(origin: Path, cache: Path) -> None:
    content, asked = origin.read_bytes(), list[int]()

    def respond(to: http.server.BaseHTTPRequestHandler) -> None:
        first = int((to.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        asked.append(first)
        to.send_response(206 if first else 200)
        to.send_header("Content-Length", str(len(content) - first))
        if first:
            to.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        to.end_headers()
        to.wfile.write(bytes(2_000_000) if len(asked) == 1 else content[first:])

    with serving(respond) as uri:
        check(opened(uri, origin), origin)
    assert [first > 0 for first in asked] == [False, True, False]


def test_a_server_that_tells_no_size_is_refused_at_once(origin: Path, cache: Path) -> None:
    asked = list[str]()

    def respond(to: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(to.path)
        to.send_response(200)
        to.end_headers()
        to.wfile.write(origin.read_bytes())

    with serving(respond) as uri, pytest.raises(WeightsError, match="does not say how long the file is"):
        opened(uri, origin)
    assert len(asked) == 1


def test_what_an_older_file_left_is_not_built_upon(origin: Path, web: int, cache: Path) -> None:
    cache.mkdir()
    (cache / f"{digest_of(origin.read_bytes())}.part").write_bytes(b"x" * 1_000_000)
    check(opened(f"http://127.0.0.1:{web}/model%20v1.safetensors", origin), origin)


def test_a_download_whose_process_ended_before_it_was_named_is_taken_as_it_is(origin: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / f"{digest_of(origin.read_bytes())}.part").write_bytes(origin.read_bytes())
    check(opened("http://127.0.0.1:9/nobody/listens.safetensors", origin), origin)


SIGNED = "X-Amz-Credential=KEY%2F20261127%2Fus-east-1%2Fs3&X-Amz-Signature=abcdef0123456789&X-Amz-Expires=60"


def test_a_signed_address_is_asked_for_as_it_is_and_told_without_its_signature(
    origin: Path, web: int, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with line(web) as relay:
        relay.breaks = [2_500_000]
        check(opened(f"http://127.0.0.1:{relay.port}/model%20v1.safetensors?{SIGNED}", origin), origin)
    first, second = (head for head in relay.requests if head.startswith("get "))
    assert first.startswith(f"get /model%20v1.safetensors?{SIGNED} http".lower())
    assert second.startswith(f"get /model%20v1.safetensors?{SIGNED} http".lower())
    assert "range: bytes=" in second
    assert "model%20v1.safetensors?...: 6 of 6 MB" in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("splitplane")]
    assert not [text for text in ours if "abcdef" in text]
    assert not [path for path in cache.iterdir() if "abcdef" in path.name]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_no_error_tells_a_signature(origin: Path, status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    class Refusing(http.server.BaseHTTPRequestHandler):
        """As stores answer that tell what they were given."""

        def do_GET(self) -> None:
            text = f"<Error>{self.path} <SignatureProvided>abcdef0123456789</SignatureProvided></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(WeightsError) as refused:
            opened(f"http://127.0.0.1:{server.server_port}/model.safetensors?{SIGNED}", origin)
        server.shutdown()
    assert "/model.safetensors?..." in str(refused.value)
    assert "abcdef" not in str(refused.value) + caplog.text
    assert ("sign weights.uri anew" in str(refused.value)) == (status == 403)


@pytest.mark.parametrize("address", ["s3://bucket/a?versionId=abcdef01", "https://127.0.0.1:9/a#abcdef01"])
def test_what_an_address_cannot_say_is_refused_rather_than_cut_short(origin: Path, address: str) -> None:
    with pytest.raises(WeightsError, match="an address with # is not supported, nor with") as refused:
        opened(address, origin)
    assert "abcdef" not in str(refused.value)


def test_a_wrong_file_is_refused_and_not_kept(origin: Path, web: int, cache: Path) -> None:
    told = f"expected {'0' * 64}, got {digest_of(origin.read_bytes())} .{origin.stat().st_size:,} bytes"
    with pytest.raises(WeightsError, match=told):
        opened(f"http://127.0.0.1:{web}/model%20v1.safetensors", origin, "0" * 64)
    assert not [path for path in cache.iterdir() if path.name[0] != "."]
    with pytest.raises(WeightsError, match=r"give weights\.sha256"):
        opened(f"http://127.0.0.1:{web}/model%20v1.safetensors", origin, None)


def test_a_cached_file_that_was_altered_is_fetched_again(origin: Path, web: int) -> None:
    uri = f"http://127.0.0.1:{web}/model%20v1.safetensors"
    kept = opened(uri, origin).path
    kept.write_bytes(b"something else")
    check(opened(uri, origin), origin)


def test_what_was_not_used_for_longest_makes_room(
    origin: Path, web: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    for age, name in enumerate(("a" * 64, "b" * 64, "c" * 64)):
        (cache / name).write_bytes(b"x" * 4_000_000)
        os.utime(cache / name, (age, 0))
    for name in ("d", "e"):
        (cache / f"{name * 64}.part").write_bytes(b"x" * 2_000_000)

    class Full:
        @property
        def free(self) -> int:
            return 12_500_000 - sum(path.stat().st_size for path in cache.iterdir())

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full())
    with (cache / f".{'e' * 64}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # by a process that is at it
        check(opened(f"http://127.0.0.1:{web}/model%20v1.safetensors", origin), origin)
    assert [path.name[0] for path in cache.glob("*.part")] == ["e"]
    assert [len(set(path.name)) == 1 and path.name[0] for path in cache.glob("[abc]" * 64)] == ["c"]


def test_a_file_that_never_fits_costs_the_cache_nothing(
    origin: Path, web: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    (cache / ("a" * 64)).write_bytes(b"x" * 4_000_000)
    (cache / "somebody's own").write_bytes(b"x" * 4_000_000)

    class Small:
        free = 1_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Small())
    with pytest.raises(WeightsError, match=r"of 6 MB do not fit into the cache .*, where 5 MB can be had"):
        opened(f"http://127.0.0.1:{web}/model%20v1.safetensors", origin)
    assert (cache / ("a" * 64)).exists()


def test_missing_files_and_refused_keys_are_told_apart(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server(origin.parent, token="secret") as port:
        uri = f"http://127.0.0.1:{port}/model%20v1.safetensors"
        with pytest.raises(WeightsError, match=r"access denied: check weights\.secretRef"):
            opened(uri, origin)
        credentials(monkeypatch, tmp_path / "keys", token="secret\n")
        with pytest.raises(WeightsError, match=r"no such file: correct weights\.uri"):
            opened(uri.replace("v1", "v2"), origin)
        check(opened(uri, origin), origin)
        with pytest.raises(WeightsError, match="not sent without TLS"):
            opened("http://192.0.2.1/x", origin, "1" * 64)


def test_an_s3_compatible_store_resumes_too(
    origin: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path) as port, line(port) as relay:
        put_object(port, "models", "crepe/model v1.safetensors", origin.read_bytes())
        uri = "s3://models/crepe/model%20v1.safetensors"
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
        with pytest.raises(WeightsError, match="access denied"):
            opened(uri, origin)
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        credentials(monkeypatch, tmp_path / "keys", **keys)
        cache.mkdir(exist_ok=True)
        (cache / f"{digest_of(origin.read_bytes())}.part").write_bytes(origin.read_bytes()[:3_000_000])
        relay.requests.clear()
        check(opened(uri, origin), origin)
        assert "range: bytes=3000000-" in relay.requests[0]
        with pytest.raises(WeightsError, match="no such file"):
            opened("s3://models/other", origin, "1" * 64)


@pytest.mark.parametrize("guarded", [False, True])
def test_a_layer_of_an_oci_artifact_is_resumed_over_a_bad_line(
    guarded: bool, registry: Path, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with oci_registry(registry, tmp_path, guarded=guarded) as port, line(port) as relay:
        client = oras.provider.Registry(insecure=True, auth_backend="basic")
        client.auth.set_basic_auth(USER, PASSWORD)
        client.push(f"127.0.0.1:{port}/models/crepe:1.0", files=[str(origin)], disable_path_validation=True)
        uri = f"oci://127.0.0.1:{relay.port}/models/crepe:1.0"
        if guarded:
            with pytest.raises(WeightsError, match="access denied"):
                opened(uri, origin)
            auth = file_servers.docker_config(f"https://127.0.0.1:{relay.port}/v2/")
            credentials(monkeypatch, tmp_path / "keys", __dockerconfigjson=auth)
        relay.breaks = [3_000_000] * 4
        check(opened(uri, origin), origin)
        assert any("range: bytes=" in head for head in relay.requests)
        kept = opened(uri, origin).path
        kept.rename(kept.with_suffix(".part"))
        with kept.with_suffix(".part").open("ab") as part:
            part.write(b"longer than the layer")
        check(opened(uri, origin), origin)
        with pytest.raises(WeightsError, match=r"no layer has the digest sha256:1{64}; it has .*v1\.safetensors"):
            opened(uri, origin, "1" * 64)
        with pytest.raises(WeightsError, match="no such artifact"):
            opened(uri.replace("1.0", "2.0"), origin, "1" * 64)


def test_a_public_bucket_with_a_region_is_read_unsigned(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def respond(to: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(f"{to.path} {to.headers['Authorization']}")
        to.send_response(200)
        to.send_header("Content-Length", str(origin.stat().st_size))
        to.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        to.send_header("ETag", '"1"')
        to.end_headers()
        to.wfile.write(origin.read_bytes())

    with serving(respond) as address:
        credentials(
            monkeypatch, tmp_path / "keys", AWS_REGION="eu-central-1", AWS_ENDPOINT_URL=address.rpartition("/")[0]
        )
        check(opened("s3://bucket/model.safetensors", origin), origin)
        with pytest.raises(WeightsError, match="it names a bucket, and no file"):
            opened("s3://bucket", origin, "1" * 64)
    assert asked == ["/bucket/model.safetensors None"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": "key"}, "AWS_ACCESS_KEY_ID is given without AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ENDPOINT_URL": "minio:9000"}, "AWS_ENDPOINT_URL must be https://host or http://host"),
    ],
)  # fmt: skip
def test_a_secret_that_lacks_something_is_refused_before_a_store_is_asked(
    keys: dict[str, str], told: str, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials(monkeypatch, tmp_path / "keys", **keys)
    with pytest.raises(WeightsError, match=told):
        opened("s3://bucket/model.safetensors", origin)


def test_an_index_of_several_artifacts_is_told_from_a_file(origin: Path) -> None:
    def respond(to: http.server.BaseHTTPRequestHandler) -> None:
        text = b'{"manifests": [{"digest": "sha256:abcd"}]}'
        to.send_response(200)
        to.send_header("Content-Length", str(len(text)))
        to.end_headers()
        to.wfile.write(text)

    with serving(respond) as uri, pytest.raises(WeightsError, match=r"an index of several artifacts \(sha256:abcd\)"):
        opened(f"{uri.replace('http', 'oci').rpartition('/')[0]}/models/crepe:1.0", origin)
