"""Keep other sites from using a server of this machine by way of the browser of someone who visits them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

LOCAL = {"127.0.0.1", "localhost", "::1"}


class LocalRequests:
    """An ASGI application that refuses requests to another name than this machine's own (DNS rebinding) and
    from pages of other sites (cross-site requests), and passes on all others.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", []))
        if scope["type"] in ("http", "websocket") and not is_local(headers):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"only for pages of this machine"})
        else:
            await self.app(scope, receive, send)


def is_local(headers: dict[bytes, bytes]) -> bool:
    """Whether the host, and the origin if there is one, are this machine as itself calls it."""
    try:
        host = urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").hostname
        origin = urlsplit(headers[b"origin"].decode("latin-1")).hostname if b"origin" in headers else host
    except ValueError:
        return False
    return host in LOCAL and origin in LOCAL
