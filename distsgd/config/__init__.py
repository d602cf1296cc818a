"""The settings of a training run, from flags and files to a job."""
