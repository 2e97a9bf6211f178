"""Finding layers of any network by a probing pass: the last layer, the feature map, the dense head."""
