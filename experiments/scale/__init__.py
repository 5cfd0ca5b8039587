"""How many trials a second a sweep's database bears, by simulated workers."""
