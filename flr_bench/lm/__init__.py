"""The machinery all language-model methods share. Knows no data source and no runner."""
