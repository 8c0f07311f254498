"""What NVFlare's processes may do: our policy files, in place of those that its provisioning writes.

A hospital's has three walls: `site.SiteRelay` takes away every command of the server; there is no launcher that could
start a job; and what a job might name (`class_allow_list`, mode "enforce", no code of its own) is our relay alone. The
boundary of last resort is the relay's own user, who may read nothing else (`orthanc_config/systemd`).
"""

from __future__ import annotations

from typing import Any, Final

from .. import unix

SITE_RELAY: Final = "fl_agent.courier.nvflare.site.SiteRelay"
SERVER_RELAY: Final = "fl_agent.courier.nvflare.server.ServerRelay"
ROLES: Final = ("project_admin", "org_admin", "lead", "member")
RIGHTS: Final = (
    "submit_job",
    "clone_job",
    "manage_job",
    "download_job",
    "view",
    "operate",
    "shell_commands",
    "byoc",
    "server-predeployed-flwr",
)


def _allowed(relay: str) -> dict[str, Any]:
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [relay],
        "allow_log_streaming": False,
    }


def authorization() -> dict[str, Any]:
    """Nobody may do anything, bring code (BYOC) least of all."""
    nothing = dict.fromkeys(RIGHTS, "none")
    return {"format_version": "1.0", "permissions": dict.fromkeys(ROLES, nothing)}


def hospital() -> dict[str, Any]:
    """``resources.json`` of a hospital: one component, and neither launcher nor resource manager for jobs."""
    return {
        **_allowed(SITE_RELAY),
        "client": {"retry_timeout": 30, "compression": "Gzip", "client_register_interval": 0.5},
        "components": [{"id": "relay", "path": SITE_RELAY, "args": {}}],
    }


def coordinator(sites: int) -> dict[str, Any]:
    """``resources.json`` of the server for so many sites: one component, and no store or scheduler of jobs."""
    server = {"max_num_clients": sites, "heart_beat_timeout": 60, "admin_storage": "transfer", "admin_timeout": 10.0}
    return {
        **_allowed(SERVER_RELAY),
        "servers": [server],
        "components": [{"id": "relay", "path": SERVER_RELAY, "args": {}}],
    }


def communication() -> dict[str, Any]:
    """``comm_config.json`` of both sides.

    A receiver keeps a thread and its buffers for each finished answer until its sender may have stopped repeating it,
    65 seconds by default: 0.5 MB a round at 10 rounds a second. Five seconds are enough for a window that a line of
    5 Mbit/s empties in two; who is slower is a drop-out of that round.
    """
    return {
        "allow_adhoc_conns": False,
        "backbone_conn_gen": 2,
        "internal": {"scheme": "tcp", "resources": {"host": "localhost", "connection_security": "mtls"}},
        "streaming_chunk_size": 1 << 18,
        "streaming_window_size": 1 << 20,
        "streaming_ack_interval": 1 << 18,
        "streaming_retry_wait": 2.0,
        "streaming_retry_timeout": 3.0,
        "streaming_max_blob_size": unix.LONGEST + (1 << 16),
    }


def logging() -> dict[str, Any]:
    """``log_config.json``: messages to standard error, for the journal, instead of files that anybody may read."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": "INFO", "handlers": ["stderr"]},
    }
