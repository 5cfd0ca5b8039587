"""The machine that trains: its devices, its load, and several processes that train together.

machine.py         decides device, precision and threads
machine_load.py    load, memory and energy while a run trains; nvml.py reads NVIDIA's GPUs
launch_ranks.py    starts a process (a rank) for each device; collectives.py lets them communicate
"""
