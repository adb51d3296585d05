"""Ahead-of-time compilation for TPU slices that are not attached: programs, HLO cost model, roofline, reports."""
