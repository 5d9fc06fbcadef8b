"""The rivals of FLR, one file each, registered as a third party's package would be."""
