"""From raw source to prepared examples. Knows no model."""
