"""A search for hyper-parameters over a federation, chosen by noised sums alone and paid for by every patient's budget.

Reading order: `terms` (what is searched, and what it costs), `study` (what was tried; the door to Optuna), `search`
(trial after trial), `service` (over the hospitals of a coordinator's settings), `cli` (the command `fl-agent search`).
"""
