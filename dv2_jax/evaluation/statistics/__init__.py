"""Statistics of scores: intervals, clusters, paired comparisons, repeated samples, corrections of a judge.

Pure functions of numbers, without input and output. `docs/concepts/statistics.md` says which one is used when.
"""

from dv2_jax.evaluation.statistics.cluster_bootstrap import bootstrap_interval, bootstrap_means
from dv2_jax.evaluation.statistics.clusters import ClusterTotals, clustered_interval, clustered_standard_error
from dv2_jax.evaluation.statistics.proportions import Z95, mean, wilson_interval

__all__ = [
    "Z95",
    "ClusterTotals",
    "bootstrap_interval",
    "bootstrap_means",
    "clustered_interval",
    "clustered_standard_error",
    "mean",
    "wilson_interval",
]
