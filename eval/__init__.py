"""Evaluation: pairs of faces (lfw, cfp_fp, agedb_30), templates of faces (IJB-B, IJB-C), ROC curves."""
