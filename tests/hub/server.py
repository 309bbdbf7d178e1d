"""The process: sockets in, routes in the middle, bytes out.

``python -m tests.hub.server --root DIR --port 0`` listens on 127.0.0.1, prints one line of JSON
with the endpoint, and ends when its standard input closes: it never outlives who started it.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.hub import commits, control, errors, files, publishers, repos
from tests.hub.journal import Exchange
from tests.hub.messages import Body, Reply, Request, error_reply
from tests.hub.site import Router, Site

HOST = "127.0.0.1"

router = Router()
for module in (control, commits, files, publishers, repos):
    router.include(module.router)


def answer(site: Site, request: Request) -> Reply:
    """Carry out one request; whatever goes wrong becomes the Hub's answer."""
    try:
        route = router.find(request)
        if not request.raw_path.startswith(("/_control/", "/_github/", "/_lfs/")):
            # Upload addresses carry their own secret, as those of a storage service do; and
            # GitHub has tokens of its own.
            request.caller = site.accounts.caller(request.headers)
        return route(site, request)
    except errors.HubError as error:
        return error_reply(error)


def answer_with_faults(site: Site, request: Request) -> Reply:
    """Carry out one request, or do to it what the fault rules say."""
    if delay := request.fault("delay"):
        time.sleep(delay.seconds)
    if cut := request.fault("cut_upload"):
        request.body.cut_after = cut.after_bytes
    if refused := request.fault("status"):
        wait = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
        return error_reply(errors.HubError(refused.status, "Injected fault", headers=wait))
    reply = answer(site, request)
    if lost := request.fault("lose_reply"):
        return error_reply(errors.HubError(lost.status, "Injected fault, after the fact"))
    return reply


class Handler(BaseHTTPRequestHandler):
    """One connection, kept alive from request to request."""

    protocol_version = "HTTP/1.1"
    server_version = "LoopbackHub/1"
    disable_nagle_algorithm = True  # or small answers wait 40 ms for an acknowledgement
    server: HubServer

    def do_GET(self) -> None:
        """Serve any request."""
        site = self.server.site
        request = Request(self.command, self.path, self.headers, Body(self.rfile, self.headers))
        if request.raw_path.startswith("/_control/"):  # neither recorded nor struck by faults
            self._serve(request, Exchange(0, self.command, self.path))
            return
        target, range_header = request.readable_target, self.headers.get("Range")
        request.faults = site.faults.striking(self.command, target)
        with site.journal.exchange(self.command, target, range_header) as exchange:
            exchange.faults = [rule.action for rule in request.faults]
            self._serve(request, exchange)
            exchange.bytes_in = request.body.received
            exchange.user = request.caller.name if request.caller else None

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 — the names that http.server calls

    def _serve(self, request: Request, exchange: Exchange) -> None:
        try:
            reply = answer_with_faults(self.server.site, request)
            request.body.drain()
            self._send(reply, exchange, request)
        except errors.ConnectionCutError:
            self._hang_up(reset=False)
        except (BrokenPipeError, ConnectionResetError) as error:
            exchange.error = repr(error)
            self.close_connection = True
        except Exception as error:
            traceback.print_exc()
            exchange.error = repr(error)
            self.close_connection = True  # what is left of the request would be read as the next
            if not exchange.status:
                self._send(error_reply(errors.HubError(500, repr(error))), exchange)

    def _send(self, reply: Reply, exchange: Exchange, request: Request | None = None) -> None:
        exchange.status = reply.status
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value.encode("latin-1", "replace").decode("latin-1"))
        self.send_header("Content-Length", str(reply.length))
        self.send_header("X-Request-Id", str(exchange.number))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(reply, exchange, request)

    def _send_body(self, reply: Reply, exchange: Exchange, request: Request | None) -> None:
        cut = request.fault("cut") if request else None
        left = cut.after_bytes if cut else reply.length
        for chunk in reply.chunks():
            self.wfile.write(chunk[:left])
            exchange.bytes_out += len(chunk[:left])
            left -= len(chunk[:left])
        if cut:
            self._hang_up(reset=cut.reset)

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:  # closing with a linger time of zero sends RST instead of FIN
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: the journal has it all."""


class HubServer(ThreadingHTTPServer):
    """The Hub on a port of the loopback interface."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, site: Site, port: int) -> None:
        super().__init__((HOST, port), Handler)
        self.site = site
        site.endpoint = f"http://{HOST}:{self.server_port}"

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Report what went wrong on a connection, except that the client went away."""
        if not isinstance(sys.exception(), ConnectionError):
            traceback.print_exc()


def stop_at_end_of_input(server: HubServer) -> None:
    """Stop the server when standard input closes, as it does when the parent dies."""
    for _ in sys.stdin:
        pass
    server.shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a Hub until standard input closes."""
    parser = argparse.ArgumentParser(description="A Hugging Face Hub on loopback, for tests.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds everything")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    options = parser.parse_args(arguments)
    server = HubServer(Site(options.root), options.port)
    threading.Thread(target=stop_at_end_of_input, args=(server,), daemon=True).start()
    print(json.dumps({"endpoint": server.site.endpoint}), flush=True)
    server.serve_forever(poll_interval=0.05)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
