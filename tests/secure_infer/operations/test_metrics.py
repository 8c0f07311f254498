"""What the figures promise: no unbounded series, no whole fingerprint, and a port that is taken is named."""

from __future__ import annotations

import socket

import httpx
import pytest

from dicom_node.core.errors import ConfigError
from secure_infer.operations.metrics import LARGEST_CODES, Metrics

PEER, OTHER = "a1" * 32, "b2" * 32


def read(metrics: Metrics) -> str:
    port, close = metrics.serve(0)
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
    close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")
    return text


def test_codes_that_a_peer_invents_do_not_become_series_without_end():
    metrics = Metrics({})
    for number in range(10 * LARGEST_CODES):
        metrics.ended(PEER, "query", f"invented-{number}")
    series = [line for line in read(metrics).splitlines() if line.startswith("veilray_requests_total")]
    assert len(series) == LARGEST_CODES + 1
    assert any('code="other"' in line and line.endswith(f" {9.0 * LARGEST_CODES}") for line in series)


def test_a_peer_appears_under_its_name_or_the_beginning_of_its_fingerprint():
    metrics = Metrics({PEER: "north"})
    metrics.watch_each("quota_left", "Left.", "peer", lambda: {PEER: 1.0, OTHER: 2.0})
    metrics.ended(PEER, "query", "answered")
    metrics.ended(OTHER, "query", "answered")
    text = read(metrics)
    assert 'peer="north"' in text
    assert f'peer="{OTHER[:12]}"' in text
    assert PEER not in text
    assert OTHER[:13] not in text


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ConfigError) as caught:
        Metrics({}).serve(listener.getsockname()[1])
    assert caught.value.code == "listen"
