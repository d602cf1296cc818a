"""The experiments of the lecture, a file each."""
