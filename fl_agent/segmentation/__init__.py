"""Where an opacity is: a small network trained pixel by pixel under the same privacy, patient as unit.

Reading order: `network` (what is trained, its loss and figures), `examples` (pictures with masks, drawn or read),
`card` (what is published; no card of a classifier can hold it), `produce` (all of it), `cli` (the command
`fl-agent train-segmentation`). The private layers compile for encrypted evaluation; no worker serves them yet.
"""
