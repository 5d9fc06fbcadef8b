"""Clusters for ``flr-bench run --dask``: working files to begin with."""
