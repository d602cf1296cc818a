"""Predictions of a run over HTTP.

`application` answers requests, whatever carries them; `server` carries them by aiohttp, and
`distsgd.on_ray.ray_serve` by Ray Serve. `live_model` follows the run's checkpoints, `batches`
computes requests together that come at the same time, and `bodies` turns what was sent into rows.
"""
