"""Verification of pairs: sets, the protocol, and the command ``python -m eval.pairs``."""
