PARK_SERVICE_RATES = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.05)
"""Park's ten servers, slowest first, in work per time; here, as Park itself needs no JAX and families no Gymnasium."""
