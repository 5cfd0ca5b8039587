"""Measures, with simulated workers, how many trials per second a sweep's database can handle."""
