"""A model of decoders on Trn1: what a degree would cost, from work, a roofline, and published measurements.

Nothing here is measured by this tool, and nothing here imports torch. Every number that leaves this package is to be
shown as MODELLED.
"""

MODELLED = "model, not measured"
