"""Fine-tuning on labelled images.

- ``data`` reads labels, ``masks`` masks and ``boxes`` COCO files.
- ``recipe`` chooses epochs, rate and augmentation.
- ``classifier``, ``segmenter`` and ``detector`` build the config of a task,
  predict images and measure predictions, each with a
  :class:`~cmae_mm.finetuning.model.FinetunedModel`.
- ``training`` trains a config and saves the best checkpoint.
- ``predictions`` writes tables (parquet by pyarrow, extra='embed') and masks,
  ``pictures`` draws.
- ``export`` writes models for ONNX, timm and transformers.
"""
