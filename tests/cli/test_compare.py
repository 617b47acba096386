"""A pre-trained start beside random weights, at equal steps."""
import json
import statistics

import torch
from helpers import CLASSIFIER, run_tool
from mmengine.config import Config
from mmpretrain.registry import MODELS

from cmae_mm.visualization.loss_curve import read_metrics, read_scalars


def test_what_is_missing_is_trained_and_the_rest_is_read(image_root, tmp_path):
    def images(split):
        return dict(
            batch_size=8, num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            dataset=dict(
                type='CustomDataset', data_root=str(image_root),
                data_prefix=split,
                pipeline=[dict(type='LoadImageFromFile'),
                          dict(type='Resize', scale=(32, 32)),
                          dict(type='PackInputs')]))

    Config(dict(
        default_scope='mmpretrain', model=CLASSIFIER,
        train_dataloader=images('train'), val_dataloader=images('val'),
        train_cfg=dict(by_epoch=True, max_epochs=1), val_cfg=dict(),
        val_evaluator=dict(type='Accuracy', topk=(1, )),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=.1)))).dump(
            str(tmp_path / 'classify.py'))
    encoder = MODELS.build(CLASSIFIER['backbone'])
    torch.save({f'backbone.{k}': v for k, v in encoder.state_dict().items()},
               tmp_path / 'encoder.pth')
    before = {'random_seed0': (3., 40.), 'random_seed1': (1., 50.),
              'pretrained_seed0': (1., 60.)}
    for name, (loss, top1) in before.items():
        (tmp_path / 'work' / name).mkdir(parents=True)
        (tmp_path / 'work' / name / 'result.json').write_text(
            json.dumps({'loss': loss, 'accuracy/top1': top1}))

    said = run_tool(
        'cmae', 'compare', tmp_path / 'classify.py', tmp_path / 'encoder.pth',
        '--seeds', 0, 1, '--work-dir', tmp_path / 'work', '--json',
        '--cfg-options', 'model.backbone.init_cfg.type=Pretrained')
    assert said.count('training from') == 1
    assert 'training from pretrained weights with seed 1' in said
    trained = str(tmp_path / 'work/pretrained_seed1')
    assert len(read_scalars(trained)) == 3
    loss = read_scalars(trained)[-1]['loss']
    top1 = read_metrics(trained)['accuracy/top1']
    line = next(s for s in said.splitlines() if s.startswith('{"config'))
    result = json.loads(line)
    assert result['loss'] == dict(
        random=[2., statistics.stdev([3., 1.])],
        pretrained=[statistics.mean([1., loss]),
                    statistics.stdev([1., loss])])
    assert result['accuracy/top1']['pretrained'] == [
        statistics.mean([60., top1]), statistics.stdev([60., top1])]
    saved = json.loads((tmp_path / 'work/comparison.json').read_text())
    assert saved == {k: result[k] for k in ('loss', 'accuracy/top1')}
    log = (tmp_path / 'work/pretrained_seed1/output.txt').read_text()
    assert 'every key matched' in log
