"""The bench of encrypted inference runs as a whole, on the smallest network and across the slowest link."""

from __future__ import annotations

import subprocess
import sys

from tests.bench.links import LINKS
from tests.bench.mpc import run


def test_the_smallest_network_is_measured_in_three_processes_and_across_a_link():
    found, peers = run(["default"], 2, crypten=False, links=["wan"])
    spans = ("online_s", "online_p95_s", "offline_s", "plain_s", "wan_s", "wan_offline_s")
    sizes = ("online_mb", "rss_mb", "hospital_rss_mb", "party_rss_mb", "dealer_rss_mb")
    assert all(found[f"default_{name}"] > 0 for name in spans + sizes)
    assert found["default_logit_error"] < 1e-3
    assert found["default_runs"] == found["default_wan_runs"] == 2
    link = LINKS["wan"]  # no answer can be faster than a round trip and the time that its bytes take
    assert found["default_wan_s"] > link.round_trip_s + 0.9e6 * found["default_online_mb"] / link.bytes_per_s
    assert "load_at_start" in found
    assert set(peers["links"]) == {"wan"}


def test_the_hospital_of_the_bench_holds_no_torch():
    script = "import sys, tests.bench.hospital_process; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
