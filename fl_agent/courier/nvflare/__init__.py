"""NVFlare as courier: its provisioning, mutual TLS and connections dialled outwards, none of its jobs.

In reading order: `wire` (what the coordinator asks the server), `courier` (the coordinator's side), `server` and `site`
(our two classes inside of NVFlare's processes), `policy` (what these processes may do), `provision` (start-up kits),
`run` (starting a kit). `README.md` tells why no job is ever run.
"""
