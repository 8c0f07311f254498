"""A hospital's part in federated training: it owns rows, identity and budget, and obeys nobody.

Reading order: `rules` (what the administrator allows), `runs` (what was promised and taken, durably), `agent` (frames
in, frames out), `rows` (the site's patients as examples), `cli` (the command `fl-agent run`).
"""
