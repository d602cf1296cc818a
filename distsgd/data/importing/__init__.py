"""Where rows can be imported from: Parquet, CSV, NPZ, folders of images."""
