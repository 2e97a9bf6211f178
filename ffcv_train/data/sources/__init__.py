"""Images from folders, zips, tar shards and torchvision sets, behind one interface."""
