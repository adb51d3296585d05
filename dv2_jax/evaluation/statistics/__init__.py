"""Statistics of scores: intervals, clusters, paired comparisons, repeated samples, corrections of a judge.

Pure functions of numbers, without input and output. `docs/concepts/statistics.md` says which one is used when.
"""

from dv2_jax.evaluation.statistics.cluster_bootstrap import bootstrap_interval, bootstrap_means, no_bootstrap
from dv2_jax.evaluation.statistics.clusters import ClusterTotals, clustered_interval, clustered_standard_error
from dv2_jax.evaluation.statistics.judge_correction import (
    JudgeQuality,
    cohen_kappa,
    corrected_accuracy,
    krippendorff_alpha,
)
from dv2_jax.evaluation.statistics.paired import PairedCounts, PairedDifference, holm, mcnemar, paired_difference
from dv2_jax.evaluation.statistics.power import smallest_unpaired_difference, smallest_visible_difference
from dv2_jax.evaluation.statistics.proportions import Z95, mean, wilson_interval
from dv2_jax.evaluation.statistics.repeated_samples import pass_at_k, sample_sizes

__all__ = [
    "Z95",
    "ClusterTotals",
    "JudgeQuality",
    "PairedCounts",
    "PairedDifference",
    "bootstrap_interval",
    "bootstrap_means",
    "clustered_interval",
    "clustered_standard_error",
    "cohen_kappa",
    "corrected_accuracy",
    "holm",
    "krippendorff_alpha",
    "mcnemar",
    "mean",
    "no_bootstrap",
    "paired_difference",
    "pass_at_k",
    "sample_sizes",
    "smallest_unpaired_difference",
    "smallest_visible_difference",
    "wilson_interval",
]
