"""A real S3-compatible server (moto's) in a thread, which can be made to fail."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from threading import Thread
from typing import Any, Literal

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import MotoRequestHandler
from werkzeug.serving import BaseWSGIServer, make_server

Fault = Literal["error", "cut", "none"]
BUCKET = "bucket"


class _Quiet(MotoRequestHandler):
    def log_request(self, *args: object) -> None:
        """Say nothing."""


class S3Server:
    """Serves one bucket on 127.0.0.1; its content outlives `stop` and `start`."""

    def __init__(self) -> None:
        self.fault: Fault = "none"
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer | None = None
        self._thread: Thread | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True, request_handler=_Quiet)
        self.port = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.fault == "error":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return []
        if self.fault == "cut":
            environ["wsgi.input"].read(10)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        return self._app(environ, start_response)
