"""Weights of others read, and a model described for others."""
