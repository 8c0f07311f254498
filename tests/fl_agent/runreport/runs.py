"""A run of three sites as the coordinator would record it."""

from __future__ import annotations

import math

from fl_agent.runreport.record import RoundRecord, RunRecord

SITES = ("north clinic", "st-mary", "university")


def a_run(planned: int = 40) -> RunRecord:
    return RunRecord(
        run="5f" * 16,
        model="head on efficientnet-lite0",
        mode="distributed",
        delta=1e-4,
        sites=SITES,
        planned=planned,
        started_at=1_790_000_000.0,
        settings={"patients drawn per step": "25 %", "learning rate": "2.0"},
    )


def a_round(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        seconds=0.4 + 0.02 * (number % 5),
        survivors=2 if number % 13 == 0 else 3,
        bytes_up={site: 15_400 + 10 * place for place, site in enumerate(SITES)},
        bytes_down=dict.fromkeys(SITES, 15_900),
        loss=0.4 + 0.7 * math.exp(-number / 9),
        metrics={"auc_pneumonia": 0.96 - 0.3 * math.exp(-number / 8)},
        epsilon={site: (1.9 + place) * math.sqrt(number / 10) for place, site in enumerate(SITES)},
        distributed_epsilon=0.9 * math.sqrt(number / 10),
    )
