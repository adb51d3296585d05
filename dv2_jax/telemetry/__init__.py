"""Telemetry of a run: metrics, progress, trace spans, trajectory records, recompilations and interrupts."""
