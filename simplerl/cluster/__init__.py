"""Learners and engines in processes of their own, on one machine or many, by Ray."""
