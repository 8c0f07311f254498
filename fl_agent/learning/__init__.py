"""What hospitals compute together, without any wire: pure functions of a plan, a state and a site's own rows.

Reading order: `plan` (what is agreed before a run), `terms` (what it costs in privacy, and the header of each of its
rounds), `state` (what all sites must know before a round), `site` (a site's contribution), `metrics` (what else is
summed), `schedule` and `server` (what the coordinator does with a sum), `propose` (from a budget to a plan), `envelope`
(signed frames that carry plans and states).
"""
