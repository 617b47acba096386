from .features import build_eval_dataset, eval_preprocessor, extract_features
from .knn import knn_accuracy

__all__ = [
    'build_eval_dataset', 'eval_preprocessor', 'extract_features',
    'knn_accuracy'
]
