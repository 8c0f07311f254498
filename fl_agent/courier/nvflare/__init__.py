"""NVFlare as courier: its provisioning, mutual TLS and connections dialled outwards, none of its jobs.

In reading order: `wire` (what the coordinator asks the server), `courier` (the coordinator's side), `server` and
`site` (our two classes inside of NVFlare's processes), `policy` (what these processes may do), `consortium` (the
settings), `roster` and `provision` (start-up kits), `run` (starting a kit), `background` and `local` (all of them on
one machine), `cli` (the commands). `README.md` tells why no job is ever run.
"""
