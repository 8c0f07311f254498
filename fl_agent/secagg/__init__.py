"""Secure aggregation: the coordinator learns the sum of the hospitals' updates and nothing else.

Bonawitz et al. 2017 (CCS'17, doi 10.1145/3133956.3133982), Figure 4, malicious variant, complete graph; `README.md`
beside this file is the specification. Reading order: `messages` and `frames` (every label and byte layout), `header`
(what the coordinator signs) and `policy` (what a site accepts), `shamir`, `masks` and `encode` (the arithmetic),
`rounds` (a round is entered once), `stages` and the two machines without I/O, `client` and `server`; `noise` and
`accounting` make the sum differentially private.
"""
