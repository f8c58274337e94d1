"""Measurements of a model folder: what words and keys do, how long it holds, how close it is to the truth."""
