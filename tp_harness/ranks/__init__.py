"""The program of one rank: its inputs, its module, its runs, and the files that it writes."""
