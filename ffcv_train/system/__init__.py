"""The machine and the process: files, memory, signals, ranks, what users see. Imports no other room."""
