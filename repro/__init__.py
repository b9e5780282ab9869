"""Reproduction of Morcos, Barrett, Rabinowitz & Botvinick (2018), On the importance of single directions for
generalization: training, ablation, noise, selectivity, and a check of every claim."""

__version__ = "0.1.0"
