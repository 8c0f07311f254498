"""The admin pages as one ASGI application: put together here, served by `serve`.

They read the records, show numbers, states and reasons, can put a failed job back and take a radiologist's reading;
they hold no patient data and no accounts, so they listen on loopback unless a proxy that knows the site's users stands
before them.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.templating import Jinja2Templates
from jinja2 import StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.staticfiles import StaticFiles

from dicom_node.core import logs, loops
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError, VeilRayError
from dicom_node.core.settings import Settings

from . import queries, reading, show
from .pages import router
from .security import Csrf, Guard, allowed_hosts

log = logs.get(__name__)
HERE = Path(__file__).parent
NOTICE = "Research use. Not a medical device. Results are unverified until a physician verifies them."
SENTENCES = {
    404: "There is no such page.",
    405: "This page cannot be asked for in this way.",
}


def create_app(settings: Settings, database: Database, clock: Callable[[], float] = time.time) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    settings : Settings
        The site's settings; ``web.host`` is one of the host names under which the pages answer.
    database : Database
        The site's records, migrated.
    clock : callable
        Seconds since the epoch.

    Returns
    -------
    FastAPI
        An ASGI application without interactive documentation and without redirects.
    """
    app = FastAPI(title="VeilRay", openapi_url=None, redirect_slashes=False)
    templates = _templates(settings)

    def error_page(request: Request, status: int, title: str, sentence: str) -> Response:
        context = {"now": clock(), "status": status, "title": title, "sentence": sentence}
        return templates.TemplateResponse(request, "error.html", context, status_code=status)

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        phrase = HTTPStatus(error.status_code).phrase
        ours = error.detail if error.detail != phrase else SENTENCES.get(error.status_code, phrase)
        return error_page(request, error.status_code, phrase, ours)

    def invalid_request(request: Request, _: Exception) -> Response:
        return error_page(request, 404, "Not Found", "There is no such page: the address holds a wrong number.")

    def known_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, VeilRayError)
        log.error("page-error", **logs.describe(error))
        return error_page(request, error.http_status, "This does not work now", f"{error}.")

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(VeilRayError, known_error)
    csrf = Csrf()
    app.include_router(router(settings, database, clock, templates, csrf))
    app.include_router(reading.router(database, clock, templates, csrf))
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.add_middleware(Guard, hosts=allowed_hosts(settings.web), refuse=error_page)
    return app


def server(app: FastAPI) -> uvicorn.Server:
    """Make the HTTP server: no access log, no version banner, no trust in forwarding headers, bounded connections."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=100,
        timeout_graceful_shutdown=3,
        lifespan="off",
    )
    return uvicorn.Server(config)


def serve(settings: Settings) -> None:
    """Serve the pages until SIGINT or SIGTERM.

    Raises
    ------
    ConfigError
        The address of ``web.host`` and ``web.port`` cannot be listened on.
    Unavailable
        The database cannot be used.
    """
    loops.stop_on_signals()  # the HTTP server raises the signal again when it has stopped: that must not kill us
    database = Database(settings.database_url)
    database.migrate()
    where = f"{settings.web.host}:{settings.web.port}"
    try:
        family = socket.AF_INET6 if ":" in settings.web.host else socket.AF_INET
        listener = socket.create_server((settings.web.host.strip("[]"), settings.web.port), family=family)
    except OSError as error:
        raise ConfigError(f"cannot listen on {where} (web.host, web.port): {error.strerror}") from error
    with listener:
        log.info("ready", host=settings.web.host, port=listener.getsockname()[1])
        server(create_app(settings, database)).run(sockets=[listener])
    database.close()


def _templates(settings: Settings) -> Jinja2Templates:
    templates = Jinja2Templates(directory=HERE / "templates")
    environment = templates.env
    environment.autoescape = True
    environment.undefined = StrictUndefined
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters.update(show.FILTERS)
    environment.globals.update(
        notice=NOTICE,
        site=settings.site.name,
        study_states=queries.STUDY_STATES,
        events=show.EVENTS,
        outcomes=show.OUTCOMES,
        actions=show.ACTIONS,
        engines=show.ENGINES,
    )
    return templates
