"""Recipes: one module each, with only its differences from base.py."""
