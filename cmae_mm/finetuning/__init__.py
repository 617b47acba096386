"""Fine-tuning: from labelled images to a finished model.

- ``data`` reads labels, ``masks`` masks and ``boxes`` COCO files.
- ``recipe`` chooses epochs, rate and augmentation.
- ``classifier``, ``segmenter`` and ``detector`` make the config of a task,
  predict images and measure predictions, each with a
  :class:`~cmae_mm.finetuning.model.FinishedModel`.
- ``training`` runs a config, and keeps the best checkpoint.
- ``predictions`` writes tables (parquet by pyarrow, extra='embed') and masks,
  ``pictures`` draws.
- ``export`` writes models for ONNX, timm and transformers.
"""
