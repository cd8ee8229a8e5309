"""What follows from a recipe before anything runs: sequences, steps, tokens, models, memory. No torch, no network."""
