"""Dealt two-party computation: a private layer on a private input, with randomness from a third organisation.

`README.md` beside this file is the specification. Reading order: `messages` (all labels and messages), `prg` and
`ring` (masks and fixed point), `plan` (what a program needs), `linear` (one kind of layer), the three roles as state
machines without I/O (`party0` the hospital, `party1` the owner of the weights, `dealer`), `ledger` (which bundles are
spent), and `channel` and `server`, which alone touch sockets.
"""
