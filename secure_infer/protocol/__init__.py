"""Dealt two-party computation: a private layer on a private input, with randomness from a third organisation.

`README.md` beside this file is the specification. Reading order: `messages` (all labels and messages), `prg` and
`ring` (masks and fixed point), `plan` (what a program needs), `layers` and `gate` (the arithmetic, with `kernels` and
`packing` below), and the three roles as state machines (`party0` the hospital, `party1`
the owner of the weights, `dealer` with `deal`, `manifest` and `seal`). Nothing here
touches a socket, a file or a clock.
"""
