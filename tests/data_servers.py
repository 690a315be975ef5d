"""Web servers on 127.0.0.1 that serve a folder, whole or damaged, for the tests of downloads."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def whole(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send the file."""
    _send(handler, content, len(content))


def corrupted(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send the right number of bytes, of which one in the middle is wrong."""
    middle = len(content) // 2
    _send(handler, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], len(content))


def truncated(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Promise the whole file and hang up half way."""
    _send(handler, content[: len(content) // 2], len(content))


def hung_up(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def missing(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Answer 404."""
    handler.send_error(404)


def only_first(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send the training images, and 404 for the rest: the failure comes in the middle of a download."""
    (whole if "train-images" in handler.path else missing)(handler, content)


def _send(handler: BaseHTTPRequestHandler, content: bytes, promised: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(promised))
    handler.end_headers()
    with suppress(ConnectionError):  # torchvision asks once for the headers alone, and hangs up
        handler.wfile.write(content)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, *args, folder: Path, answer: Answer) -> None:
        self.folder, self.answer = folder, answer
        super().__init__(*args)

    def do_GET(self) -> None:
        self.answer(self, (self.folder / Path(self.path).name).read_bytes())

    def log_message(self, *args) -> None:
        """Keep quiet."""


@contextmanager
def serving(folder: Path, answer: Answer = whole) -> Iterator[str]:
    """Serve ``folder`` in a thread, and yield the address, which ends in a slash."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder=folder, answer=answer))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def closed_port() -> str:
    """Return an address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"
