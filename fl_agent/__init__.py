"""From a consented training set to a signed model.

Reading order: `trainset` (images, patients, cached features), `randomness` (noise nobody can predict), `train` (DP-SGD
with the patient as unit, the one door to Opacus), `figures` (metrics with intervals), `produce` (all of it, to a
published card), `texts` (the card's sentences), `secagg` (sums of many hospitals' updates that reveal no single one),
`__main__` (the command `fl-agent`).
"""
