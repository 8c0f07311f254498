"""The consortium's coordinator: it brings frames to and fro, adds up, and learns sums alone.

Reading order: `settings`, `records` (what survives a kill), `patience` (whom a round waits for), `secure_sum` (one sum
over a courier), `candidate` (the signed model), `coordinator` (joining, rounds, the end), `cli`.
"""
