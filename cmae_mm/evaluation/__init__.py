from .data import (
    EvaluationDataError,
    build_eval_dataset,
    check_same_classes,
    eval_dataset_cfgs,
    with_pipeline,
)
from .evaluator import FrozenFeatures, load_frozen
from .features import (
    FeatureSet,
    eval_preprocessor,
    extract_features,
    hold_out,
)
from .health import effective_rank, positive_ranks, spread
from .knn import knn_accuracy, knn_predict
from .linear import linear_sweep
from .low_shot import (
    draw_share,
    draw_shots,
    fit_logistic_regression,
    low_shot,
)
from .report import Score, bootstrap_interval, score

__all__ = [
    'EvaluationDataError', 'FeatureSet', 'FrozenFeatures', 'Score',
    'bootstrap_interval', 'build_eval_dataset', 'check_same_classes',
    'draw_share', 'draw_shots', 'effective_rank', 'eval_dataset_cfgs',
    'eval_preprocessor', 'extract_features', 'fit_logistic_regression',
    'hold_out', 'knn_accuracy', 'knn_predict', 'linear_sweep', 'load_frozen',
    'low_shot', 'positive_ranks', 'score', 'spread', 'with_pipeline'
]
