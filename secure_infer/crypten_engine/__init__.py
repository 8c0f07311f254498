"""The second encrypted engine: CrypTen 0.4.1 (Knott et al. 2021), hardened; the oracle that the first is compared with.

CrypTen computes on shares modulo 2^64 in a child process of its own, since its state is global to a process. What it
must not do itself is taken from it: its 32-bit generators, its transport, its online dealer, its local truncation.

Reading order
-------------
tuples
    Which correlated randomness a program takes, and how the dealer makes it: public, without CrypTen.
dealer
    The dealer's part: seeds, and corrections for party 1.
pipe, process
    Frames between a service and its child, and the child as the service sees it.
library, child
    The one door of CrypTen: what replaces its parts, its self-test, and the child's main loop.
relay
    One query between child and peer.
hospital, owner
    The engine at the hospital, and party 1's side.
"""
