"""From a model that a consortium made to one that answers at this site, by the site's own decision, and back.

Reading order: `claim` (what a card says about privacy follows from its mechanisms), `evaluation` (candidate against
active model, on this site's own patients), `policy` (whether the figures are good enough), `candidates` (received,
accepted, activated, rolled back), `cli` (the commands `fl-agent candidates ...`).
"""
