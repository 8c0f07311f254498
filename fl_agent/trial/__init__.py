"""A whole consortium on one machine, each owner's programs and settings its own: `fl-agent consortium`.

In reading order: `owners` (where each keeps its own), `patients` (whom the hospitals have), `furnish` (settings and
keys of all owners), `processes` (agents beside the relays) and `cli` (the commands). Sites use systemd instead
(`orthanc_config/systemd`).
"""
