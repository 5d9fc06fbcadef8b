"""Where raw data comes from, one file per source."""
