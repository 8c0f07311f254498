"""What a training run did, for people, while it goes on and afterwards.

Reading order: `record` (what the coordinator writes down, round by round), `wording` (the same in plain words), `live`
(progress in the terminal), `charts` (the one door to matplotlib), `page` (the report as one HTML file), `cli` (the
commands `fl-agent progress` and `fl-agent report`).
"""
