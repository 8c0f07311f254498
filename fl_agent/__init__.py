"""From a consented training set to a signed model.

Reading order: `order` (what is to be made), `trainset` (images, patients, cached features), `site_rows` (the same of
a hospital's consenting patients), `randomness` (noise nobody can predict), `train` (DP-SGD with the patient as unit;
for a linear head by `ghost`) and `accounting` (what it costs), the two doors to Opacus, `head` and `deep` (what can
be trained: a linear head, or a network of its own), `calibration`, `figures` (metrics with intervals), `produce` (all
of it, to a published card), `texts` (the card's sentences), `secagg` (sums of many hospitals' updates that reveal no
single one), `ledger` (what all of it costs the patients over the life of a site), `runreport` (a run's record, live
and as a page), `learning` (what hospitals compute together), `agent` (a hospital's part in it), `coordinator`,
`courier` (how their frames travel), `simulate` (a federation in one process), `trial` (a consortium's programs on one
machine), `search` (hyper-parameters, paid for), `segmentation` (outlines of opacities), `__main__` (the command
`fl-agent`).
"""
