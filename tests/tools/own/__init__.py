"""Tests of one's own data in one command."""
