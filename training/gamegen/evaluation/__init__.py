"""Measurements of a model folder: what a player's words and keys do, how long it holds, how close it is to the truth."""
