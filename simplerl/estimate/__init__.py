"""Estimates from a recipe before anything runs: steps, models, memory, placement, time. No torch, no network."""
