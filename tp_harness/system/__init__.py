"""This machine: its cores, interrupts, environment and temporary folders."""
