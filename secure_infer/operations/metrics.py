"""What a service tells its operator's Prometheus (text format 0.0.4), on loopback; the one door to its client library.

No figure is about a patient. A hospital appears under the name that the settings give its certificate, else under the
beginning of the fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dicom_node.core.errors import ConfigError

LOOPBACK: Final = "127.0.0.1"
SHORT: Final = 12
SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: Peers choose the codes of the failures that they report: no more than these become series of their own.
LARGEST_CODES: Final = 64


class Metrics:
    """The figures of one service.

    Parameters
    ----------
    names : mapping of str to str
        Names of peers by the fingerprints of their certificates.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._codes: set[str] = set()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "veilray_requests", "Requests by result.", ("peer", "kind", "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "veilray_seconds", "Time of a request's phases.", ("phase",), buckets=SECONDS, registry=self._registry
        )
        self._bytes = Counter("veilray_bytes", "Bytes of frames.", ("direction",), registry=self._registry)
        self._reloads = Counter("veilray_reloads", "Settings and certificates.", ("code",), registry=self._registry)

    def rename(self, names: Mapping[str, str]) -> None:
        """Take other names of peers."""
        self._names = names

    def ended(self, peer: str, kind: str, code: str) -> None:
        """Count a request of the certificate `peer`; `code` is its error's, or what was done."""
        if code not in self._codes:
            if len(self._codes) >= LARGEST_CODES:
                code = "other"
            self._codes.add(code)
        self._requests.labels(self._names.get(peer, peer[:SHORT]), kind, code).inc()

    def took(self, phase: str, seconds: float) -> None:
        """Note how long a phase took."""
        self._seconds.labels(phase).observe(seconds)

    def moved(self, sent: int, received: int) -> None:
        """Count bytes of frames."""
        self._bytes.labels("sent").inc(sent)
        self._bytes.labels("received").inc(received)

    def reloaded(self, code: str) -> None:
        """Count a reload; `code` is its error's, or ``done``."""
        self._reloads.labels(code).inc()

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Ask for a figure whenever the figures are read."""
        Gauge(f"veilray_{name}", text, registry=self._registry).set_function(value)

    def watch_each(self, name: str, text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        """Ask for a figure of each of several things; fingerprints become names."""
        self._registry.register(_Each(f"veilray_{name}", text, label, lambda: self._named(values())))

    def _named(self, values: Mapping[str, float]) -> dict[str, float]:
        return {self._names.get(key, key[:SHORT]): value for key, value in values.items()}

    def serve(self, port: int) -> tuple[int, Callable[[], None]]:
        """Answer on loopback from now on.

        Returns
        -------
        tuple of int and callable
            The port, and what ends it.

        Raises
        ------
        ConfigError
            The port is taken (``listen``).
        """
        try:
            server, thread = start_http_server(port, LOOPBACK, self._registry)
        except OSError as error:
            raise ConfigError(f"cannot listen on metrics_port {port}: {error.strerror}", code="listen") from error

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, close


class _Each(Collector):
    """A gauge with one label, whose values are asked for."""

    def __init__(self, name: str, text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        self._name, self._text, self._label, self._values = name, text, label, values

    def describe(self) -> Iterator[Metric]:
        """Name the figure without asking for it."""
        yield GaugeMetricFamily(self._name, self._text, labels=(self._label,))

    def collect(self) -> Iterator[Metric]:
        """Ask now."""
        family = GaugeMetricFamily(self._name, self._text, labels=(self._label,))
        for key, value in self._values().items():
            family.add_metric((key,), value)
        yield family
