"""What a run tells: metrics, progress, spans, trajectories and the report page."""
