"""An S3 server on this machine, behind a proxy that fails by plan: python tests/object_store.py FOLDER starts
both, with a certificate in FOLDER. A port (of HTTP) and a folder, whose files become objects, may follow. The
proxy also answers as a web server, and in the language of Google Cloud Storage.

Prints the addresses with and without TLS. The proxy answers `PUT /-/faults` with a list of faults, each
[part of the path, kind, how often]; kinds are HTTP statuses, and those in `Proxy.answer`. `GET /-/requests`
lists the requests since then, as [method, path, range, bytes of the answer, fault].
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

STALLED = 5  # seconds of a stalled answer


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target = ""
    faults: ClassVar[list[list[Any]]] = []
    requests: ClassVar[list[list[Any]]] = []
    lock = threading.Lock()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/-/faults":
            type(self).faults, type(self).requests = json.loads(body), []
            self.send(200, {}, b"")
            return
        if self.path == "/-/requests":
            self.send(200, {}, json.dumps(self.requests).encode())
            return
        fault = self.next_fault()
        noted = [self.command, self.path, self.headers.get("Range"), 0, fault]
        self.requests.append(noted)
        if fault == "stall":
            time.sleep(STALLED)
        if fault in ("stall", "close"):
            self.close_connection = True
            return
        if fault.isdigit():
            self.send(int(fault), {}, b"")
            return
        google = re.fullmatch(r"(/download)?/storage/v1/b/(\w+)/o/([^?]+)(\?.*)?", self.path)
        if google and not google[1]:
            self.describe(f"/{google[2]}/{google[3]}")
            return
        connection = http.client.HTTPConnection(self.target)
        path = f"/{google[2]}/{google[3]}" if google else self.path
        connection.request(self.command, path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        headers = {key: value for key, value in answer.getheaders() if key != "Content-Length"}
        if fault == "short":  # well-formed, but not all that was asked for
            data = data[: len(data) // 2]
        expected = re.search(r"ifGenerationMatch=(\w+)", self.path)
        if expected and expected[1] != generation(answer):
            self.send(412, {}, b"")
            return
        length = len(data) if self.command != "HEAD" else int(answer.getheader("Content-Length") or 0)
        noted[3] = len(data)
        if fault == "cut":
            data = data[: len(data) // 2]
            self.close_connection = True
        self.send(answer.status, headers, data, length)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

    def describe(self, path: str) -> None:
        """Answer as Google's JSON API on an object."""
        connection = http.client.HTTPConnection(self.target)
        connection.request("HEAD", quote(unquote(path)))
        answer = connection.getresponse()
        connection.close()
        size = answer.getheader("Content-Length")
        found = {"name": path, "size": size, "generation": generation(answer)}
        self.send(answer.status, {}, json.dumps(found).encode())

    def next_fault(self) -> str:
        with self.lock:
            for fault in self.faults:
                part, kind, times = fault
                if part in self.path and times:
                    fault[2] -= 1
                    return str(kind)
        return ""

    def send(self, status: int, headers: dict[str, str], data: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


def generation(answer: http.client.HTTPResponse) -> str:
    return (answer.getheader("ETag") or "").strip('"')


class Store:
    """The address of the proxy, what it got, and what it is to do wrong."""

    def __init__(self, address: str, secure: str, folder: Path) -> None:
        self.address, self.secure, self.folder = address, secure, folder

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"))
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == 200, (path, answer.status, data)
            return data

    def put(self, name: str, data: bytes) -> None:
        """Write an object, which everybody may read."""
        self.ask("PUT", f"/bucket/{name}", data, **{"x-amz-acl": "public-read"})

    def fail(self, *faults: tuple[str, str, int]) -> None:
        """Plan faults, in place of those before, and forget the requests so far."""
        self.ask("PUT", "/-/faults", json.dumps(faults).encode())

    def requests(self) -> list[list[Any]]:
        found: list[list[Any]] = json.loads(self.ask("GET", "/-/requests"))
        return found


@contextmanager
def running(folder: Path) -> Iterator[Store]:
    """Start the server and the proxy, with the bucket `bucket`; end them with the block."""
    process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        store = Store(*process.stdout.readline().split(), folder)
        store.ask("PUT", "/bucket")
        yield store
    finally:
        process.terminate()
        process.communicate()


def main(folder: str, port: str = "0", objects: str = "") -> None:
    import logging

    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").disabled = True
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    Proxy.target = "{}:{}".format(*moto.get_host_and_port())
    if objects:
        put_all(Path(objects), Proxy.target)
    addresses = []
    for scheme in ("http", "https"):
        server = ThreadingHTTPServer(("127.0.0.1", int(port) if scheme == "http" else 0), Proxy)
        if scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate(Path(folder)))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        addresses.append(f"{scheme}://127.0.0.1:{server.server_port}")
    print(*addresses, flush=True)
    threading.Event().wait()


def put_all(folder: Path, address: str) -> None:
    store = Store(f"http://{address}", "", folder)
    store.ask("PUT", "/bucket")
    for path in folder.iterdir():
        if path.is_file():
            store.put(path.name, path.read_bytes())


def certificate(folder: Path) -> Path:
    """Write a certificate of this machine, signed by itself, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    form = serialization.Encoding.PEM
    path.write_bytes(
        made.public_bytes(form)
        + key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


if __name__ == "__main__":
    main(*sys.argv[1:])
