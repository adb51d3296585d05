"""Ahead-of-time compilation for devices that are not here: programs, HLO cost model, roofline, reports."""
