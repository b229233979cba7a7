"""Recipes: one module each, holding only its differences from base.py."""
