"""Contract tests that every recommender passes; shipped, so that plug-ins inherit them."""
