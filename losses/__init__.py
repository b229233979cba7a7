"""Margins on cosines and the softmax cross-entropy over sharded classes.

A margin is a callable ``logits_NS = margin(cosines_NS, labels_N)``: it shifts each row's target cosine and scales
everything. Label -1 says that the row's positive class is not among these columns. No rank appears here.
"""

from losses.arcface import ArcFace
from losses.combined import CombinedMargin
from losses.cosface import CosFace
from losses.cross_entropy import sharded_cross_entropy
from losses.margin import Margin

__all__ = ["ArcFace", "CombinedMargin", "CosFace", "Margin", "sharded_cross_entropy"]
