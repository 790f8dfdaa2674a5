"""Recipes on every architecture that a recipe can be for, without weights: shares, rules of shape,
and what a change does to each.
"""
