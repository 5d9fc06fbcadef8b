"""Forward passes of rivals' models, in a folder of their own: they import torch, which listing the methods must not."""
