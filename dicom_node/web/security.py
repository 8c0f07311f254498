"""What stands between the admin pages and a hostile network: host names, security headers, CSRF tokens, quiet errors.

Against DNS rebinding the Host header must be one of a few names (RFC 9110 7.2); against injected content the Content
Security Policy (W3C CSP 3) allows nothing but our own files; against forged requests a form carries a token that
belongs to a SameSite=Strict cookie (RFC 6265bis; OWASP "signed double-submit cookie").
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node.core import logs
from dicom_node.core.settings import WebSettings

log = logs.get(__name__)
COOKIE = "veilray_csrf"
MAXIMUM_FORM_BYTES = 4096  # our largest form is a token, a name and a choice
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def allowed_hosts(settings: WebSettings) -> frozenset[str]:
    """Return the host names, without port, under which the pages may be asked for.

    A wildcard address to listen on is nobody's name: a proxy in front then asks for ``localhost``.
    """
    names = {"localhost", "127.0.0.1", "[::1]"}
    host = settings.host.strip("[]").lower()
    try:
        address = ip_address(host)
    except ValueError:
        return frozenset(names | {host})
    if not address.is_unspecified:
        names.add(f"[{address}]" if address.version == 6 else str(address))
    return frozenset(names)


def host_name(header: str) -> str:
    """Return the Host header's name in lower case, without port; ``[::1]`` keeps its brackets."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()


class Guard:
    """ASGI middleware round everything: refuses unknown hosts, adds the headers, turns a fault into a quiet page.

    Parameters
    ----------
    app : ASGIApp
        What is guarded.
    hosts : frozenset of str
        Allowed names, see `allowed_hosts`.
    refuse : callable
        Makes the error page: ``refuse(request, status, title, sentence)``.
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str], refuse: Callable[[Request, int, str, str], Response]
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope)
        if host_name(Headers(scope=scope).get("host", "")) not in self._hosts:
            title, sentence = "Unknown host name", "These pages answer to localhost and to web.host of site.toml alone."
            await self._refuse(request, 421, title, sentence)(scope, receive, guarded)
            return
        try:
            await self._app(scope, receive, guarded)
        except Exception as error:
            # The outermost edge: whoever asks gets no stack trace, the log gets the class and the place of the fault.
            log.error("page-fault", **logs.describe(error))
            if started:
                raise
            sentence = "The page could not be made; the log of dicom-node web says where it stopped."
            await self._refuse(request, 500, "Something went wrong", sentence)(scope, receive, guarded)


class Csrf:
    """Tokens for forms: a token is the HMAC-SHA-256, under a key of this process, of the visitor's random cookie.

    A page of another origin cannot read the token, and one that can set cookies for the same host (another port of
    localhost) cannot compute it.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def visitor(self, request: Request) -> str:
        """Return the visitor's cookie value, a new one where there is none yet."""
        known = request.cookies.get(COOKIE, "")
        return known if 40 <= len(known) <= 64 else secrets.token_urlsafe(32)

    def token(self, visitor: str) -> str:
        """Return the token for this visitor's forms."""
        return hmac.new(self._key, visitor.encode(), hashlib.sha256).hexdigest()

    def remember(self, response: Response, visitor: str) -> None:
        """Set the cookie; it dies with the browser's session and no script can read it."""
        response.set_cookie(COOKIE, visitor, path="/", httponly=True, samesite="strict")

    async def require(self, request: Request) -> dict[str, str]:
        """Let the request pass only when its form was made by one of our pages for this visitor.

        Returns
        -------
        dict of str to str
            The form's fields; of one that came twice, the last.

        Raises
        ------
        HTTPException
            403 without a valid token, 413 when the form is too large.
        """
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403, "The request came from another site.")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAXIMUM_FORM_BYTES:
                raise HTTPException(413, "The form is too large.")
        form = {name: values[-1] for name, values in parse_qs(body.decode("ascii", "replace")).items()}
        given = form.get("token", "")
        expected = self.token(request.cookies.get(COOKIE, ""))
        if COOKIE not in request.cookies or not hmac.compare_digest(given.encode(), expected.encode()):
            raise HTTPException(403, "The form has expired. Go back, reload the page and try again.")
        return form
