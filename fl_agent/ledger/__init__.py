"""What training has cost this site's patients, over its life; `README.md` says what is promised.

Reading order: `mechanisms` (what can be done to data), `accountant` (what that costs), `entries` (the durable rows),
`ledger` (reserve, begin, spend, release), `statement` (used and left), `cli` (the command `fl-agent budget`).
"""
