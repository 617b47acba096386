"""MAE's initialisation, of encoder and decoders."""

MAE_INIT = [
    dict(type='Xavier', distribution='uniform', layer='Linear'),
    dict(type='Constant', val=1, bias=0, layer='LayerNorm')
]
