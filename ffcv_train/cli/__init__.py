"""The commands, a file each: the only room that knows argparse and sys.argv."""
